"""`edgevit verify`: compare a bundle's engine with PyTorch's reference outputs."""

from __future__ import annotations

import argparse

from edgevit.cli import parser as argument_types
from edgevit.cli.console import Console, redirect_user_output
from edgevit.cli.parser import Arguments, Command, add_source, add_strict, add_threads
from edgevit.cli.tables import parity_parts, parity_phrase
from edgevit.errors import UsageError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `edgevit verify`."""
    parser.add_argument("bundle", type=argument_types.path, metavar="BUNDLE", help="a bundle folder")
    parser.add_argument(
        "--images", type=argument_types.path, metavar="DIR", help="compare with PyTorch on these images; needs PyTorch"
    )
    add_source(parser, needed_for="--images")
    add_strict(parser)
    add_threads(parser)


def run(arguments: Arguments, console: Console) -> int:
    """Check parity with the reference outputs in the bundle, or with PyTorch itself."""
    from edgevit.bundles.bundle import Bundle
    from edgevit.bundles.source_model import FROM_MANIFEST, PytorchSource
    from edgevit.bundles.verify import verify

    bundle, source = Bundle.open(arguments.bundle), PytorchSource(model=arguments.model, weights=arguments.weights)
    if arguments.images is None and source != FROM_MANIFEST:
        raise UsageError("--model and --weights require --images DIR")
    with redirect_user_output():
        parity = verify(
            bundle, images=arguments.images, source=source, strict=arguments.strict, threads=arguments.threads
        )
    parity.require()
    console.result(f"{arguments.bundle}: {parity_phrase(parity.results)}")
    console.print(*parity_parts(parity.results, detailed=console.detailed))
    console.finish(parity.to_json())
    return 0


COMMAND = Command(
    name="verify",
    help="compare a bundle's engine with PyTorch's reference outputs; needs no PyTorch",
    add_arguments=add_arguments,
    run=run,
)
