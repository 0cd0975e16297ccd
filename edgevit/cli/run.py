"""`edgevit run`: classify images with a bundle."""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from typing import TYPE_CHECKING

from edgevit.cli import parser as argument_types
from edgevit.cli.console import Console
from edgevit.cli.parser import Arguments, Command, add_strict, add_threads

if TYPE_CHECKING:
    from edgevit.bundles.predict import Prediction
    from edgevit.errors import ImageError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `edgevit run`."""
    parser.add_argument("bundle", type=argument_types.path, metavar="BUNDLE", help="a bundle folder")
    parser.add_argument(
        "image", type=argument_types.path, nargs="+", metavar="IMAGE", help="an image file or a folder of them"
    )
    parser.add_argument("--top", type=int, default=5, metavar="N", help="classes to print for each image (default: 5)")
    add_strict(parser)
    add_threads(parser)


def run(arguments: Arguments, console: Console) -> int:
    """Print the most likely classes of each image."""
    from edgevit.bundles.bundle import Bundle
    from edgevit.bundles.predict import classify
    from edgevit.images import skipped_notes

    skipped: list[ImageError] = []
    predictions = classify(
        Bundle.open(arguments.bundle),
        arguments.image,
        top=arguments.top,
        threads=arguments.threads,
        on_skip=None if arguments.strict else skipped.append,
    )
    console.result(*prediction_lines(predictions))
    lines = skipped_notes(skipped, len(predictions) + len(skipped))
    console.print(*(f"note: {line}" for line in lines))
    console.finish({"answers": [prediction.to_json() for prediction in predictions], "notes": lines})
    return 0


def prediction_lines(predictions: Iterable[Prediction]) -> list[str]:
    """Return the path of each image, followed by its most likely classes with their probabilities."""
    lines: list[str] = []
    for prediction in predictions:
        lines.append(str(prediction.image))
        lines += [f"  {probability:6.1%}  {name}" for _, name, probability in prediction.top]
    return lines


COMMAND = Command(name="run", help="classify images with a bundle", add_arguments=add_arguments, run=run)
