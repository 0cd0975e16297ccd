"""Output of a command: tables on stdout, JSON to a file, progress and errors on stderr."""

from __future__ import annotations

import codecs
import contextlib
import io
import json
import os
import shlex
import shutil
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO, TypeAlias

from edgevit.cli.signals import Stop
from edgevit.errors import EdgevitError, ParityError, UsageError
from edgevit.files import is_replaceable, message_line, os_reason, write_atomically

if TYPE_CHECKING:
    from rich.console import Console as RichConsole
    from rich.table import Table

    from edgevit.latency.progress import MeasureProgress, OnMeasure
    from edgevit.metrics import OnImages
    from edgevit.pipeline.explain.explanation import Explanation

Part: TypeAlias = "str | Table"  # a line of text or a table
OnStage: TypeAlias = Callable[[str, float | None], None]

_PIPED_WIDTH = 140
_UNENCODABLE = "edgevit.unencodable"


class Console:
    """The output of a command: results on stdout, progress and errors on stderr, JSON on request.

    `json_path` is the argument of --json: a file, or "-" for stdout. `quiet` (-q) leaves out progress and everything
    but the result; `detailed` (-v) adds tables and columns.
    """

    def __init__(
        self, json_path: str | None = None, *, quiet: bool = False, detailed: bool = False, stop: Stop | None = None
    ) -> None:
        self.json_path = json_path
        self.quiet = quiet
        self.detailed = detailed
        self.stop = stop or Stop()

    def result(self, *parts: Part) -> None:
        """Print the result on stdout, unless stdout receives the JSON."""
        if self.json_path != "-":
            _print(_rich_console(), *parts)

    def print(self, *parts: Part) -> None:
        """Print tables and notes on stdout, which -q leaves out."""
        if not self.quiet:
            self.result(*parts)

    def finish(self, result: dict[str, Any], *, next_command: str | None = None) -> None:
        """Write the JSON result if requested, and print the next command, ready to paste."""
        if self.json_path:
            write_json(self.json_path, result)
        if next_command is not None:
            self.print(_as_invoked(next_command))

    def fail(self, error: EdgevitError, *, result: dict[str, Any] | None = None) -> int:
        """Report an error on stderr and as JSON, together with a partial `result`. Return its exit status."""
        parity = _parity_of(error)
        if parity is not None:
            from edgevit.cli.tables import parity_parts

            _print(_rich_console(stderr=True), *parity_parts(parity.results, detailed=self.detailed))
        explanation = _explanation_of(error)
        if explanation is not None:
            _print(_rich_console(stderr=True), *explanation.lines(), *_with_modules_in_float(explanation.keep_float))
        print(f"edgevit: {message_line(error)}", file=sys.stderr)
        found = {"parity": parity.to_json()} if parity else {}
        if explanation is not None:
            found["explanation"] = explanation.to_json()
        self.fail_json(str(error), error.exit_status, found, result)
        return error.exit_status

    def fail_json(self, message: str, exit_status: int, *results: dict[str, Any] | None) -> None:
        """Write an error as JSON, if --json is given."""
        if not self.json_path:
            return
        found = {key: value for result in results if result for key, value in result.items()}
        with contextlib.suppress(UsageError):  # the error may be that this file cannot be written
            write_json(self.json_path, {"error": message, "exit_status": exit_status, **found})

    @contextlib.contextmanager
    def stage_progress(self) -> Iterator[OnStage]:
        """Show stages on stderr. Yield a function to call with None when a stage starts, and with its seconds when
        it ends. It raises SystemExit if a signal has arrived.
        """
        from edgevit.cli import progress

        with progress.show_stages() if not self.quiet else contextlib.nullcontext(_ignore) as show:

            def on_stage(name: str, elapsed_s: float | None) -> None:
                self.stop.check()
                show(name, elapsed_s)

            yield on_stage

    @contextlib.contextmanager
    def measure_progress(self) -> Iterator[OnMeasure]:
        """Show a latency measurement on stderr, with the time that remains."""
        with self.stage_progress() as on_stage:

            def on_measure(progress: MeasureProgress) -> None:
                on_stage(str(progress), None)

            yield on_measure

    def image_progress(self) -> contextlib.AbstractContextManager[OnImages]:
        """Show the number of processed images on stderr."""
        from edgevit.cli import progress

        return progress.show_images() if not self.quiet else contextlib.nullcontext(_ignore)


def _ignore(*_progress: object) -> None:
    """Show no progress."""


def redirect_user_output() -> contextlib.AbstractContextManager[object]:
    """Send what the user's model code prints to stderr: stdout may be parsed as JSON."""
    return contextlib.redirect_stdout(sys.stderr)


def _with_modules_in_float(modules: Sequence[str]) -> Iterator[str]:
    """Yield the running `edgevit export` command with modules that stay in float, ready to paste."""
    if modules and sys.argv[1:2] == ["export"]:
        words = ["edgevit", *sys.argv[1:], "--keep-float", ",".join(modules)]
        yield f"  export again: {_as_invoked(shlex.join(words))}"


def _as_invoked(command: str) -> str:
    """Return an `edgevit ...` command with the path of the running program if `edgevit` is not on PATH."""
    program = sys.argv[0]
    if Path(program).name != "edgevit" or shutil.which("edgevit") is not None:
        return command
    return f"{shlex.quote(program)}{command.removeprefix('edgevit')}"


def prepare_streams() -> None:
    """Make sure that all three standard streams are open and that stdout accepts any file name, in any locale."""
    # Take the number of a closed stream: a file opened later would get it, and then receive the stream's output.
    while (number := os.open(os.devnull, os.O_RDWR)) < 3:
        pass
    os.close(number)
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed by the parent process
            setattr(sys, name, Path(os.devnull).open("w", encoding="utf-8"))  # noqa: SIM115  # stays open
    codecs.register_error(_UNENCODABLE, _encode_anyway)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors=_UNENCODABLE)
    warnings.filterwarnings("ignore", module=r"PIL\.")  # Pillow warns of images that it reads correctly


def close_stream(stream: TextIO) -> None:
    """Redirect stdout or stderr to the null device, so that Python's flush at exit does not fail a second time."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def require_writable(json_path: str | None, option: str = "--json") -> None:
    """Raise UsageError if no file can be written at `json_path`: before the long work, not after it."""
    if json_path is None or json_path == "-":
        return
    if not is_replaceable(Path(json_path)):
        raise UsageError(f"cannot write {json_path}: not a file in a writable folder; choose another path for {option}")


def write_json(path: str, result: dict[str, Any] | list[Any], option: str = "--json") -> None:
    """Write a result to a file, which is replaced only by a complete one, or to stdout for "-"."""
    text = json.dumps(result, indent=2, allow_nan=False) + "\n"
    if path == "-":
        sys.stdout.write(text)
        return
    try:
        write_atomically(Path(path), text)
    except OSError as error:
        raise UsageError(f"cannot write {path}: {os_reason(error)}; choose another path for {option}") from error


def _print(console: RichConsole, *parts: Part) -> None:
    from rich.text import Text

    for part in parts:
        if isinstance(part, str):
            console.print(Text(part), soft_wrap=True)  # a command in a line must stay in one piece to be copied
        else:
            console.print("", part, "", sep="\n")


def _rich_console(*, stderr: bool = False) -> RichConsole:
    from edgevit.cli.rich_console import EscapingConsole

    # Paths and names may contain brackets and colons, which are markup and emoji codes to rich.
    console = EscapingConsole(stderr=stderr, markup=False, emoji=False)
    if console.is_terminal:
        return console
    return EscapingConsole(stderr=stderr, width=_PIPED_WIDTH, markup=False, emoji=False)


def _parity_of(error: EdgevitError) -> Any:
    """Return the ParityReport of an error, or None."""
    if not isinstance(error, ParityError) or error.report is None:
        return None
    from edgevit.runtimes.parity import ParityReport

    return error.report if isinstance(error.report, ParityReport) else None


def _explanation_of(error: EdgevitError) -> Explanation | None:
    """Return the Explanation of an error, or None."""
    if not isinstance(error, ParityError) or error.explanation is None:
        return None
    from edgevit.pipeline.explain.explanation import Explanation

    return error.explanation if isinstance(error.explanation, Explanation) else None


def _encode_anyway(error: UnicodeError) -> tuple[str | bytes, int]:
    """Error handler for characters that an encoding lacks: the raw bytes of a file name, or a backslash escape."""
    try:
        return codecs.lookup_error("surrogateescape")(error)
    except UnicodeError:
        return codecs.backslashreplace_errors(error)
