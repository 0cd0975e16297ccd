"""`edgevit run`: classify photos with a bundle, or find objects or regions in them."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgevit.cli import argument_types
from edgevit.cli.console import Console
from edgevit.cli.parser import Arguments, Command, add_strict, add_threads
from edgevit.errors import UsageError
from edgevit.types import DENSE_TASKS

if TYPE_CHECKING:
    from edgevit.bundles.bundle import Bundle
    from edgevit.bundles.predict import Prediction
    from edgevit.errors import ImageError

_TOP, _MIN_SCORE, _MAX_BOXES = 5, 0.3, 100  # the defaults of options that not every model uses
_DETECTORS = ("detectors", ("detection",))
_DENSE = ("detectors and segmentation models", DENSE_TASKS)
_USED_BY = {
    "top": ("classifiers", ("classification",)),
    "out": _DENSE,
    "coco": _DENSE,
    "min_score": _DETECTORS,
    "max_boxes": _DETECTORS,
    "class_agnostic": _DETECTORS,
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `edgevit run`."""
    parser.add_argument("bundle", type=argument_types.path, metavar="BUNDLE", help="a bundle folder")
    parser.add_argument(
        "image", type=argument_types.path, nargs="+", metavar="IMAGE", help="an image file or a folder of them"
    )
    parser.add_argument("--top", type=int, metavar="N", help="classes to print for each image (default: 5)")
    dense = parser.add_argument_group("detection and segmentation")
    dense.add_argument(
        "--out",
        type=argument_types.path,
        metavar="DIR",
        help="folder for NAME.boxes.jpg or NAME.mask.png (default: the current folder)",
    )
    dense.add_argument(
        "--min-score", type=float, metavar="S", help="lowest score of boxes that are drawn and printed (default: 0.3)"
    )
    dense.add_argument("--max-boxes", type=int, metavar="N", help="most boxes for each image (default: 100)")
    dense.add_argument(
        "--class-agnostic", action="store_true", help="let boxes of different classes suppress each other"
    )
    dense.add_argument(
        "--coco",
        metavar="FILE",
        help="write every box above 0.05, or every mask, in COCO's result format; category ids count from 1",
    )
    parser.add_argument(
        "--cache",
        type=argument_types.path,
        metavar="DIR",
        help="keep the compiled model in DIR, so that the next run starts faster (OpenVINO, ONNX Runtime); "
        "only you may write there",
    )
    add_strict(parser)
    add_threads(parser)


def run(arguments: Arguments, console: Console) -> int:
    """Print the answers for each image."""
    from edgevit.bundles.bundle import Bundle

    bundle = Bundle.open(arguments.bundle)
    _require_used(arguments, bundle)
    if bundle.manifest.model.task in DENSE_TASKS:
        return _draw(bundle, arguments, console)
    return _classify(bundle, arguments, console)


def _require_used(arguments: Arguments, bundle: Bundle) -> None:
    """Raise UsageError for an option that the bundle's model or runtime has no use for."""
    from edgevit.runtimes.registry import get_runtime

    task = bundle.manifest.model.task
    for name, (user, tasks) in _USED_BY.items():
        if getattr(arguments, name) not in (None, False) and task not in tasks:
            option = f"--{name.replace('_', '-')}"
            raise UsageError(f"{option} is for {user}; {bundle.name} is for {task}: leave it out")
    if arguments.cache is not None and not (runtime := get_runtime(bundle.fmt)).caches_compiled:
        raise UsageError(f"--cache is for compiled models, and {runtime.title} has none: leave it out")


def _classify(bundle: Bundle, arguments: Arguments, console: Console) -> int:
    """Print the most likely classes of each image."""
    from edgevit.bundles.predict import classify

    skipped: list[ImageError] = []
    predictions = classify(
        bundle,
        arguments.image,
        top=_TOP if arguments.top is None else arguments.top,
        threads=arguments.threads,
        cache_dir=arguments.cache,
        on_skip=None if arguments.strict else skipped.append,
    )
    console.result(*prediction_lines(predictions))
    _finish(console, [prediction.to_json() for prediction in predictions], skipped)
    return 0


def _draw(bundle: Bundle, arguments: Arguments, console: Console) -> int:
    """Draw the boxes or the mask of each image and print them."""
    from edgevit.bundles.pictures import PictureOptions, answer
    from edgevit.cli.console import require_writable, write_json
    from edgevit.dense.nms import DEFAULT_NMS

    if arguments.coco == "-":
        raise UsageError("--coco writes a file, and stdout has the printed results; name a file: --coco results.json")
    require_writable(arguments.coco, "--coco")
    min_score = _MIN_SCORE if arguments.min_score is None else arguments.min_score
    max_boxes = _MAX_BOXES if arguments.max_boxes is None else arguments.max_boxes
    if not 0 <= min_score <= 1 or max_boxes < 1:
        raise UsageError("--min-score must be from 0 to 1, and --max-boxes at least 1")
    nms = replace(
        DEFAULT_NMS,
        min_score=min(DEFAULT_NMS.min_score, min_score),
        kept=max_boxes,
        class_agnostic=arguments.class_agnostic,
    )
    skipped: list[ImageError] = []
    answers = answer(
        bundle,
        arguments.image,
        PictureOptions(out=arguments.out or Path(), min_score=min_score, nms=nms, coco=arguments.coco is not None),
        threads=arguments.threads,
        cache_dir=arguments.cache,
        on_skip=None if arguments.strict else skipped.append,
    )
    for each in answers:
        console.result(f"{each.image} -> {each.picture}", *(f"  {line}" for line in each.lines))
    if arguments.coco is not None:
        write_json(arguments.coco, [entry for each in answers for entry in each.coco], "--coco")
    limits = _limit_notes(bundle, min_score=arguments.min_score, max_boxes=arguments.max_boxes)
    _finish(console, [each.to_json() for each in answers], skipped, notes=limits)
    return 0


def _limit_notes(bundle: Bundle, *, min_score: float | None, max_boxes: int | None) -> list[str]:
    """Return a line for each given limit beyond those of a model that selects its boxes in the graph."""
    from edgevit.dense.nms import DEFAULT_NMS
    from edgevit.dense.outputs import selected_count

    count = selected_count(bundle.manifest.outputs, bundle.manifest.model.output_form)
    if count is None:
        return []
    notes = []
    if max_boxes is not None and max_boxes > count:
        notes.append(f"the model returns at most {count} boxes, so --max-boxes {max_boxes} finds no more")
    if min_score is not None and min_score < DEFAULT_NMS.min_score:
        notes.append(
            f"the model leaves out boxes up to its own least score, {DEFAULT_NMS.min_score:g} by default: "
            f"--min-score {min_score:g} may find no more"
        )
    return [f"{note}; for all boxes export it with --outputs boxes" for note in notes]


def _finish(
    console: Console, answers: list[dict[str, Any]], skipped: Sequence[ImageError], notes: Sequence[str] = ()
) -> None:
    from edgevit.images import skipped_notes

    lines = [*notes, *skipped_notes(skipped, len(answers) + len(skipped))]
    console.print(*(f"note: {line}" for line in lines))
    console.finish({"answers": answers, "notes": lines})


def prediction_lines(predictions: Iterable[Prediction]) -> list[str]:
    """Return the path of each image, followed by its most likely classes with their probabilities."""
    lines: list[str] = []
    for prediction in predictions:
        lines.append(str(prediction.image))
        lines += [f"  {probability:6.1%}  {name}" for _, name, probability in prediction.top]
    return lines


COMMAND = Command(
    name="run",
    help="classify images with a bundle, or draw the objects or regions that it finds",
    add_arguments=add_arguments,
    run=run,
)
