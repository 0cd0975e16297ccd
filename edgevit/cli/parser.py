"""argparse with suggestions for misspelled words, and the options that commands share."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NoReturn, TypeAlias, get_args

import edgevit
from edgevit.cli import argument_types
from edgevit.errors import EXIT_STATUSES, did_you_mean
from edgevit.files import message_line
from edgevit.formats import Int8Range

if TYPE_CHECKING:
    from edgevit.bundles.source_model import PytorchSource
    from edgevit.cli.console import Console

Arguments = argparse.Namespace
Group: TypeAlias = argparse.ArgumentParser | argparse._ArgumentGroup


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """One command of the command line: `edgevit NAME`.

    `run` receives the parsed arguments and the console and returns the exit status. Heavy imports belong inside it:
    `edgevit --help` imports every command's module.
    """

    name: str
    help: str
    add_arguments: Callable[[argparse.ArgumentParser], None]
    run: Callable[[Arguments, Console], int]
    if_stopped: str = "nothing is left behind"  # by a signal: what stays, for the end of the message


class Parser(argparse.ArgumentParser):
    """ArgumentParser that reports an error in one line and suggests the closest names for a misspelled one."""

    def error(self, message: str) -> NoReturn:
        line = message_line(message)
        print(f"edgevit: {line}.{self._suggestion(message)} See: {self.prog} --help", file=sys.stderr)
        raise SystemExit(2)

    def _suggestion(self, message: str) -> str:
        if "unrecognized arguments: " in message:
            wrong = message.rpartition("unrecognized arguments: ")[2].split(" ")[0]
            return did_you_mean(wrong, sorted(self._option_string_actions))
        found = re.search(r"invalid choice: '([^']*)' \(choose from (.*)\)", message)
        return did_you_mean(found[1], re.findall(r"[\w-]+", found[2])) if found else ""


def build_parser(commands: Iterable[Command]) -> Parser:
    """Return the parser of the whole command line."""
    statuses = ", ".join(f"{status} {meaning}" for status, meaning in EXIT_STATUSES.items())
    parser = Parser(
        prog="edgevit",
        description="Export efficient vision models from PyTorch to engines for edge devices, and verify the result.",
        epilog=f"Exit status: {statuses}.",
    )
    parser.add_argument("--version", action="version", version=f"edgevit {edgevit.__version__}")
    subparsers = parser.add_subparsers(title="commands", metavar="COMMAND", parser_class=Parser)
    for command in commands:
        description = f"{command.help[0].upper()}{command.help[1:]}."
        subparser = subparsers.add_parser(command.name, help=command.help, description=description)
        command.add_arguments(subparser)
        subparser.add_argument(
            "--json", metavar="PATH", help="write the result as JSON; - writes to stdout, without tables"
        )
        verbosity = subparser.add_mutually_exclusive_group()
        verbosity.add_argument("-q", "--quiet", action="store_true", help="print only the result, without progress")
        verbosity.add_argument("-v", "--verbose", action="store_true", help="print all tables and columns")
        subparser.set_defaults(run=command.run, parser=subparser, if_stopped=command.if_stopped)
    return parser


def parse(parser: Parser, words: Sequence[str] | None = None) -> Arguments:
    """Parse a command line. `arguments.run` is None if no command is given."""
    parser.set_defaults(run=None, json=None)
    arguments, unknown = parser.parse_known_args(words)
    if unknown:  # report them with the command's own options and its own --help
        getattr(arguments, "parser", parser).error(f"unrecognized arguments: {' '.join(unknown)}")
    return arguments


def subcommands(parser: argparse.ArgumentParser) -> Iterator[tuple[str, argparse.ArgumentParser]]:
    """Yield the name and the parser of each command."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            yield from action.choices.items()


def add_source(parser: argparse.ArgumentParser, *, needed_for: str) -> None:
    """Add --model, --arg and --weights, which name the PyTorch model that a bundle was exported from."""
    parser.add_argument(
        "--model",
        metavar="MODEL",
        help=f"with {needed_for}: the model that the bundle was exported from, if it is your own code "
        "(file.py:FUNCTION); code named by a bundle is never run",
    )
    add_factory_arguments(parser)
    parser.add_argument("--weights", metavar="FILE", help="the checkpoint file of that model")


def add_factory_arguments(group: Group) -> None:
    """Add --arg, which gives an argument to the factory of a model."""
    group.add_argument(
        "--arg",
        type=argument_types.argument,
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="an argument of your factory; repeat it for each",
    )


def pytorch_source(arguments: Arguments) -> PytorchSource:
    """Return the PyTorch model that the options of `add_source` name."""
    from edgevit.bundles.source_model import PytorchSource

    return PytorchSource(model=arguments.model, weights=arguments.weights, arguments=dict(arguments.arg))


def add_strict(group: Group) -> None:
    """Add --strict, which makes an image that cannot be read an error."""
    group.add_argument(
        "--strict", action="store_true", help="fail on an image that cannot be read, instead of leaving it out"
    )


def add_threads(group: Group) -> None:
    """Add --threads."""
    group.add_argument("--threads", type=int, metavar="N", help="CPU threads (default: all cores)")


def add_workspace(group: Group) -> None:
    """Add --workspace."""
    group.add_argument("--workspace", type=int, metavar="MB", help="memory limit of a TensorRT builder")


def add_images(group: Group) -> None:
    """Add --images, whose default is the photos that come with edgevit."""
    group.add_argument(
        "--images",
        type=argument_types.path,
        metavar="DIR",
        help="images for the parity check (default: two included photos)",
    )


def add_int8_range(group: Group, *, default: Int8Range | None, default_text: str) -> None:
    """Add --int8-range; the help says `default_text` of the default."""
    group.add_argument(
        "--int8-range",
        choices=get_args(Int8Range),
        default=default,
        help="range of int8 weights: safe is right on every processor, full needs VNNI on x86 "
        f"(default: {default_text})",
    )


def add_input_shape(group: Group, *, help_text: str) -> None:
    """Add --input-shape."""
    group.add_argument(
        "--input-shape", type=argument_types.input_shape, action="append", metavar="NAME=N,C,H,W", help=help_text
    )
