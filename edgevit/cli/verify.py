"""`edgevit verify`: compare a bundle's engine with PyTorch's reference outputs."""

from __future__ import annotations

import argparse
from functools import cache, partial
from typing import TYPE_CHECKING

from edgevit.cli import argument_types
from edgevit.cli.console import Console, redirect_user_output
from edgevit.cli.parser import Arguments, Command, add_source, add_strict, add_threads, pytorch_source
from edgevit.cli.tables import fixed, make_table, parity_parts, parity_phrase
from edgevit.errors import EdgevitError, ParityError, UsageError
from edgevit.types import PRECISIONS

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from rich.table import Table

    from edgevit.bundles.bundle import Bundle
    from edgevit.bundles.source_model import PytorchSource
    from edgevit.dense.matching import ClassAgreement
    from edgevit.models.loading import LoadedModel
    from edgevit.runtimes.parity import ParityReport
    from edgevit.types import Reference

CLASS_TITLE = "Found by class, for information"
SHOWN_CLASSES = 10  # without -v


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `edgevit verify`."""
    parser.add_argument(
        "bundle",
        type=argument_types.path,
        metavar="BUNDLE",
        help="a bundle folder, or the part of a graph that an explanation has saved (FILE.onnx)",
    )
    parser.add_argument(
        "--images", type=argument_types.path, metavar="DIR", help="compare with PyTorch on these images; needs PyTorch"
    )
    parser.add_argument(
        "--explain",
        action="store_true",
        help="if it fails, find the first PyTorch module that differs (about 60 s); needs PyTorch",
    )
    add_source(parser, needed_for="--images and --explain")
    add_strict(parser)
    add_threads(parser)
    part = parser.add_argument_group("part of a graph", "with FILE.onnx")
    part.add_argument("--fmt", metavar="FMT", help="format whose runtime runs it (default: onnx)")
    part.add_argument("--precision", choices=PRECISIONS, help="precision whose tolerance applies (default: fp32)")


def run(arguments: Arguments, console: Console) -> int:
    """Check parity with the reference outputs in the bundle, or with PyTorch itself."""
    classes: tuple[ClassAgreement, ...] = ()
    names: Sequence[str] | None = None
    if arguments.bundle.suffix == ".onnx" and not arguments.bundle.is_dir():
        parity = _verify_part(arguments)
    else:
        bundle, source = _open_bundle(arguments)
        parity = _verify_bundle(
            bundle,
            source,
            images=arguments.images,
            explain=arguments.explain,
            strict=arguments.strict,
            threads=arguments.threads,
        )
        if arguments.images is None:  # the agreement is that on the photos of reference.npz
            classes, names = _agreement_by_class(bundle, threads=arguments.threads)
    console.result(f"{arguments.bundle}: {parity_phrase(parity.results)}")
    console.print(*parity_parts(parity.results, detailed=console.detailed))
    if classes:
        console.print(_class_table(classes, names, detailed=console.detailed))
    console.finish(parity.to_json() | ({"classes": [each.to_json() for each in classes]} if classes else {}))
    return 0


def _verify_part(arguments: Arguments) -> ParityReport:
    """Run a part of a graph that an explanation has saved. Raises ParityError if it differs, as it should."""
    from edgevit.pipeline.explain.reproducer import check_reproducer

    for option in ("images", "explain", "model", "arg", "weights"):
        if getattr(arguments, option):
            raise UsageError(f"--{option} requires a bundle; {arguments.bundle} has its own inputs and outputs")
    parity = check_reproducer(
        arguments.bundle,
        fmt=arguments.fmt or "onnx",
        precision=arguments.precision or "fp32",
        threads=arguments.threads,
    )
    parity.require()
    return parity


def _open_bundle(arguments: Arguments) -> tuple[Bundle, PytorchSource]:
    """Return the bundle, and the model that was named. Raises UsageError for an option that has no use for them."""
    from edgevit.bundles.bundle import Bundle
    from edgevit.bundles.source_model import FROM_MANIFEST

    if arguments.fmt is not None or arguments.precision is not None:
        raise UsageError("--fmt and --precision require a part of a graph, FILE.onnx; a bundle has its own")
    bundle, source = Bundle.open(arguments.bundle), pytorch_source(arguments)
    if arguments.images is None and not arguments.explain and source != FROM_MANIFEST:
        raise UsageError("--model, --arg and --weights require --images DIR or --explain")
    return bundle, source


def _verify_bundle(
    bundle: Bundle, source: PytorchSource, *, images: Path | None, explain: bool, strict: bool, threads: int | None
) -> ParityReport:
    """Compare with PyTorch. Raises ParityError if the outputs differ, with an explanation if one is requested."""
    from edgevit.bundles.source_model import recreate_model, references_on
    from edgevit.bundles.verify import verify

    load_source = cache(partial(recreate_model, bundle, source))
    with redirect_user_output():
        references = references_on(images, bundle, load_source, strict=strict)
        parity = verify(bundle, references, threads=threads)
        try:
            parity.require()
        except ParityError as error:
            if not explain:
                raise
            raise _explained(error, bundle, parity, references, load_source) from error
    return parity


def _explained(
    error: ParityError,
    bundle: Bundle,
    parity: ParityReport,
    references: Sequence[Reference],
    load_source: Callable[[], LoadedModel],
) -> ParityError:
    """Return the error with an explanation, or with the reason why there is none: its exit status stays."""
    from edgevit.pipeline.explain.bundles import explain_bundle

    try:
        explanation = explain_bundle(bundle, parity, model=load_source(), references=references)
    except (EdgevitError, ImportError) as problem:  # the model cannot be created again, or PyTorch is missing
        return ParityError(f"{error}; it cannot be explained: {problem}", report=error.report)
    return ParityError(f"{error}; {explanation.sentence}", report=error.report, explanation=explanation)


def _agreement_by_class(
    bundle: Bundle, *, threads: int | None
) -> tuple[tuple[ClassAgreement, ...], Sequence[str] | None]:
    """Return the agreement of a dense model's engine with PyTorch, and the names of the classes."""
    from edgevit.bundles.verify import agreement_by_class

    return agreement_by_class(bundle, threads=threads), bundle.classes


def _class_table(classes: Sequence[ClassAgreement], names: Sequence[str] | None, *, detailed: bool) -> Table:
    """Return a row for all classes and one for each, the most frequent first; only a few of them unless `detailed`."""
    from edgevit.dense.draw import class_name

    table = make_table(CLASS_TITLE, "class", "in the reference", "in the engine", "in both", "IoU")
    sums = (sum(getattr(each, name) for each in classes) for name in ("reference", "engine", "both"))
    table.add_row(f"all {len(classes)}", *map(str, sums), "")
    ordered = sorted(classes, key=lambda each: -each.reference)
    for each in ordered if detailed else ordered[:SHOWN_CLASSES]:
        counts = (each.reference, each.engine, each.both)
        table.add_row(class_name(each.label, names), *map(str, counts), fixed(each.iou, 4))
    return table


COMMAND = Command(
    name="verify",
    help="compare a bundle's engine with PyTorch's reference outputs; needs no PyTorch",
    add_arguments=add_arguments,
    run=run,
)
