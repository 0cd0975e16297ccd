"""`edgevit eval`: measure top-1 and top-5 accuracy on labeled images."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from edgevit.cli import parser as types
from edgevit.cli.console import Console, Part
from edgevit.cli.parser import Arguments, Command, add_threads
from edgevit.cli.tables import make_table
from edgevit.errors import UsageError, did_you_mean

if TYPE_CHECKING:
    from rich.table import Table

    from edgevit.metrics import AccuracyReport
    from edgevit.models.loading import LoadedModel
    from edgevit.types import Interval


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `edgevit eval`."""
    parser.add_argument(
        "bundle", nargs="+", metavar="BUNDLE", help="a bundle; or a MODEL as for export, which runs in PyTorch"
    )
    parser.add_argument(
        "--data",
        type=types.path,
        required=True,
        metavar="DIR",
        help="labeled images: one subfolder per class, or a labels.txt",
    )
    parser.add_argument(
        "--against",
        type=types.names,
        default=(),
        metavar="NAMES",
        help="torch: compare with the PyTorch module that the bundle was exported from",
    )
    parser.add_argument("--weights", metavar="FILE", help="a checkpoint file for MODEL")
    parser.add_argument("--limit", type=int, metavar="N", help="use N images, spread over the classes")
    add_threads(parser)


def run(arguments: Arguments, console: Console) -> int:
    """Evaluate bundles and PyTorch on the same images."""
    from edgevit.bundles.bundle import Bundle
    from edgevit.bundles.evaluate import evaluate_bundles

    names = [name for name in arguments.bundle if _is_model(name)]
    with console.image_progress() as on_progress:
        report = evaluate_bundles(
            [Bundle.open(path) for path in arguments.bundle if not _is_model(path)],
            models=_load_models(names, arguments.weights, console),
            data=arguments.data,
            against=arguments.against,
            threads=arguments.threads,
            limit=arguments.limit,
            on_progress=on_progress,
        )
    console.print(*accuracy_parts(report))
    console.finish(report.to_json())
    return 0


def _is_model(text: str) -> bool:
    """Return whether `text` names a model and not a bundle, whose folder may be missing."""
    return not Path(text).exists() and (":" in text or text.isidentifier())


def _load_models(names: Sequence[str], weights: str | None, console: Console) -> list[LoadedModel]:
    """Load models by name in PyTorch. Raise UsageError for an unknown name or for weights without one model."""
    if weights is not None and len(names) != 1:
        raise UsageError("--weights requires exactly one MODEL; a bundle contains its weights")
    if not names:
        return []
    from edgevit.models import registry
    from edgevit.models.loading import from_name

    known = registry.list_models()
    for name in names:
        if ":" not in name and name not in known:
            raise UsageError(f"no bundle at {name}, and no model of that name.{did_you_mean(name, known)}")
    with console.download_progress() as on_download:
        return [from_name(name, weights=weights, on_download=on_download) for name in names]


def accuracy_parts(report: AccuracyReport) -> list[Part]:
    """Return the accuracy table and its notes: the source of the labels, and outputs that are not finite."""
    counts = {evaluation.name: evaluation.not_finite for evaluation in report.evaluations}
    not_finite = [
        f"{name}: {count} outputs contain NaN or infinity and count as wrong" for name, count in counts.items() if count
    ]
    return [accuracy_table(report), *(f"note: {note}" for note in (report.description, *report.notes, *not_finite))]


def accuracy_table(report: AccuracyReport) -> Table:
    """Return one row for each model on the same images, compared with the first."""
    from edgevit.metrics import agreement, drop_points

    first, *others = report.evaluations
    compared = (f"agrees with {first.name} %", "points lost") if others else ()
    table = make_table("Accuracy, on the same images", "model", "runs", "images", "top-1 %", "top-5 %", *compared)
    for evaluation in report.evaluations:
        against_first = (f"{100 * agreement(first, evaluation):.2f}", str(drop_points(first, evaluation)))
        table.add_row(
            evaluation.name,
            evaluation.precision,
            str(evaluation.images),
            _percent(evaluation.top1, evaluation.top1_interval),
            _percent(evaluation.top5, evaluation.top5_interval),
            *(against_first if evaluation is not first else ()),
        )
    table.caption = "95 % intervals in brackets: Wilson for accuracies, Agresti and Min for paired differences"
    return table


def _percent(fraction: float | None, interval: Interval | None) -> str:
    if fraction is None or interval is None:
        return "-"
    return f"{100 * fraction:.2f} ({100 * interval.low:.2f} to {100 * interval.high:.2f})"


COMMAND = Command(
    name="eval", help="measure top-1 and top-5 accuracy on labeled images", add_arguments=add_arguments, run=run
)
