"""`edgevit eval`: measure top-1 and top-5 accuracy, mAP or mIoU on labeled images."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from edgevit.cli import argument_types
from edgevit.cli.console import Console, Part, redirect_user_output
from edgevit.cli.parser import Arguments, Command, add_source, add_strict, add_threads, pytorch_source
from edgevit.cli.tables import make_table, notes
from edgevit.errors import UsageError, did_you_mean
from edgevit.latency.names import short_names
from edgevit.types import DENSE_TASKS
from edgevit.words import counted

if TYPE_CHECKING:
    from rich.table import Table

    from edgevit.bundles.bundle import Bundle
    from edgevit.bundles.evaluate import EvalOptions
    from edgevit.bundles.evaluate_dense import DenseReport
    from edgevit.bundles.labeled import DenseEvaluation
    from edgevit.bundles.source_model import PytorchSource
    from edgevit.metrics import AccuracyReport, Drop, Evaluation
    from edgevit.models.loading import LoadedModel
    from edgevit.types import Interval

_Evaluation = TypeVar("_Evaluation", bound="Evaluation | DenseEvaluation")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `edgevit eval`."""
    parser.add_argument(
        "bundle", nargs="+", metavar="BUNDLE", help="a bundle; or a MODEL as for export, which runs in PyTorch"
    )
    parser.add_argument(
        "--data",
        type=argument_types.path,
        required=True,
        metavar="DIR",
        help="labeled images: one subfolder per class, or a labels.txt; for detectors a folder in COCO's format, for "
        "segmentation the folders images and masks",
    )
    parser.add_argument(
        "--against",
        type=argument_types.names,
        default=(),
        metavar="NAMES",
        help="torch: compare with the PyTorch module that the bundle was exported from",
    )
    add_source(parser, needed_for="--against torch")
    parser.add_argument("--limit", type=int, metavar="N", help="use N images, spread over the classes")
    parser.add_argument(
        "--reduce-zero-label",
        action="store_true",
        help="in masks 0 means no class, and the classes count from 1, as in ADE20K",
    )
    add_strict(parser)
    add_threads(parser)


def run(arguments: Arguments, console: Console) -> int:
    """Evaluate bundles and PyTorch on the same images."""
    from edgevit.bundles.bundle import Bundle
    from edgevit.bundles.evaluate import TORCH, EvalOptions, evaluate_bundles
    from edgevit.metrics import drop_points

    if unknown := [name for name in arguments.against if name != TORCH]:
        raise UsageError(f"--against accepts only {TORCH}, got {unknown[0]!r}; pass other bundles as arguments")
    names = [name for name in arguments.bundle if _is_model(name)]
    source = _source(arguments, names)
    bundles = [Bundle.open(path) for path in arguments.bundle if not _is_model(path)]
    tasks = {bundle.manifest.model.task for bundle in bundles}
    if arguments.reduce_zero_label and "segmentation" not in tasks:
        raise UsageError("--reduce-zero-label is for the masks of segmentation models; leave it out")
    options = EvalOptions(threads=arguments.threads, limit=arguments.limit, strict=arguments.strict)
    if any(bundle.manifest.model.task in DENSE_TASKS for bundle in bundles):
        return _evaluate_dense(bundles, names, arguments, console, source, options)
    with redirect_user_output(), console.image_progress() as on_progress:
        report = evaluate_bundles(
            bundles,
            models=_load_models(names, None if arguments.against else arguments.weights),
            data=arguments.data,
            pytorch=source if arguments.against else None,
            options=options,
            on_progress=on_progress,
        )
    console.result(*result_lines(report.evaluations, drop_points))
    console.print(*accuracy_parts(report, detailed=console.detailed))
    console.finish(report.to_json())
    return 0


def _evaluate_dense(
    bundles: Sequence[Bundle],
    models: Sequence[str],
    arguments: Arguments,
    console: Console,
    source: PytorchSource,
    options: EvalOptions,
) -> int:
    """Evaluate detectors or segmentation models."""
    from edgevit.bundles.evaluate_dense import evaluate_dense
    from edgevit.bundles.labeled import lost_points

    if models:
        raise UsageError(
            f"{models[0]}: detectors and segmentation models are evaluated as bundles; use --against torch"
        )
    with redirect_user_output(), console.image_progress() as on_progress:
        report = evaluate_dense(
            bundles,
            data=arguments.data,
            pytorch=source if arguments.against else None,
            options=options,
            reduce_zero_label=arguments.reduce_zero_label,
            on_progress=on_progress,
        )
    console.result(*result_lines(report.evaluations, lost_points))
    console.print(*dense_parts(report))
    console.finish(report.to_json())
    return 0


def dense_parts(report: DenseReport) -> list[Part]:
    """Return the table of all figures and its notes."""
    first = report.evaluations[0]
    compared = ("points lost",) if len(report.evaluations) > 1 else ()
    table = make_table(None, "model", "runs", *(f"{name} %" for name in first.figures), *compared)
    for name, evaluation in zip(
        short_names([each.name for each in report.evaluations]), report.evaluations, strict=True
    ):
        lost = report.lost(evaluation)
        table.add_row(
            name,
            evaluation.precision,
            *(_percent(figure.value, figure.interval) for figure in evaluation.figures.values()),
            *(() if evaluation is first else (_percent(lost.value, lost.interval),)),
        )
    return [
        table,
        "95 % intervals: images drawn again with replacement; differences are paired",
        *notes([report.description, *report.notes]),
    ]


def _source(arguments: Arguments, names: Sequence[str]) -> PytorchSource:
    """Return the model and weights given for --against torch. Raise UsageError if they are given without it."""
    from edgevit.bundles.source_model import FROM_MANIFEST

    if (arguments.model is not None or arguments.arg) and not arguments.against:
        raise UsageError("--model and --arg require --against torch")
    if arguments.weights is not None and not arguments.against and len(names) != 1:
        raise UsageError("--weights requires exactly one MODEL; a bundle contains its weights")
    return pytorch_source(arguments) if arguments.against else FROM_MANIFEST


def _is_model(text: str) -> bool:
    """Return whether `text` names a model and not a bundle, whose folder may be missing."""
    return not Path(text).exists() and (":" in text or text.isidentifier())


def _load_models(names: Sequence[str], weights: str | None) -> list[LoadedModel]:
    """Load classifiers by name in PyTorch. Raise UsageError for an unknown name, or that of another model."""
    if not names:
        return []
    from edgevit.models import registry
    from edgevit.models.loading import from_name

    known = registry.list_models(task=None)
    for name in names:
        if ":" in name:
            continue
        if name not in known:
            raise UsageError(f"no bundle at {name}, and no model of that name.{did_you_mean(name, known)}")
        if (task := registry.get_spec(name).task) in DENSE_TASKS:
            raise UsageError(
                f"{name} is for {task}; detectors and segmentation models are evaluated as bundles: export it, and use "
                "--against torch"
            )
    return [from_name(name, weights=weights) for name in names]


def result_lines(evaluations: Sequence[_Evaluation], drop: Callable[[_Evaluation, _Evaluation], Drop]) -> list[str]:
    """Return the accuracy of each model in one line, with its difference to the first; `drop` returns what is lost."""
    first, *others = evaluations
    compared = [f"{_accuracy(each)}, {drop(first, each).phrase(first.name)}" for each in others]
    return [_accuracy(first), *compared]


def _accuracy(evaluation: Evaluation | DenseEvaluation) -> str:
    return f"{evaluation.name}: {evaluation.metric} {evaluation.accuracy:.2%} on {counted(evaluation.images, 'image')}"


def accuracy_parts(report: AccuracyReport, *, detailed: bool = False) -> list[Part]:
    """Return the accuracy table and its notes: the source of the labels, and unusable outputs."""
    not_finite = [
        f"{evaluation.name}: {evaluation.not_finite} outputs contain NaN or infinity and count as wrong"
        for evaluation in report.evaluations
        if evaluation.not_finite
    ]
    first, *others = report.evaluations
    legend = [f"same: the fraction of images with {first.name}'s predicted class"] if others else []
    legend.append("95 % intervals: Wilson for accuracies, Agresti and Min for paired differences")
    return [
        accuracy_table(report, detailed=detailed),
        *legend,
        *notes([report.description, *report.notes, *not_finite]),
    ]


def accuracy_table(report: AccuracyReport, *, detailed: bool = False) -> Table:
    """Return one row for each model on the same images, compared with the first. `detailed` adds columns."""
    from edgevit.metrics import agreement, drop_points

    first, *others = report.evaluations
    names = short_names([evaluation.name for evaluation in report.evaluations])
    more = ("images", "top-5 %") if detailed else ()
    compared = ("same %", "points lost") if others else ()
    table = make_table(None, "model", "runs", "top-1 %", *more, *compared)
    for name, evaluation in zip(names, report.evaluations, strict=True):
        against_first = (f"{100 * agreement(first, evaluation):.2f}", str(drop_points(first, evaluation)))
        details = (str(evaluation.images), _percent(evaluation.top5, evaluation.top5_interval))
        table.add_row(
            name,
            evaluation.precision,
            _percent(evaluation.top1, evaluation.top1_interval),
            *(details if detailed else ()),
            *(against_first if evaluation is not first else ()),
        )
    return table


def _percent(fraction: float | None, interval: Interval | None) -> str:
    if fraction is None or interval is None:
        return "-"
    return f"{100 * fraction:.2f} ({100 * interval.low:.2f} to {100 * interval.high:.2f})"


COMMAND = Command(
    name="eval",
    help="measure top-1 and top-5 accuracy, mAP or mIoU on labeled images",
    add_arguments=add_arguments,
    run=run,
)
