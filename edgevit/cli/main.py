"""Parse arguments, run one command, map exceptions to the exit status."""

from __future__ import annotations

import gc
import importlib
import os
import platform
import re
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path

import edgevit
from edgevit.cli.console import Console, close_stream, prepare_streams, require_writable
from edgevit.cli.parser import Command, Parser, build_parser, parse
from edgevit.cli.signals import Stop
from edgevit.errors import BROKEN_PIPE, INTERNAL_ERROR, EdgevitError, MissingError, UsageError
from edgevit.files import cache_folder, os_reason
from edgevit.memory import ANY_COMMAND_MB, OUT_OF_MEMORY, require_address_space

# The modules of edgevit.cli that define a COMMAND, in the order in which `edgevit --help` lists them.
COMMANDS = (
    "list",
    "export",
    "tune",
    "build",
    "verify",
    "run",
    "evaluate",
    "latency",
    "report",
    "optimize",
    "lint",
    "plan",
    "doctor",
    "completion",
)

_EXPORT_PACKAGES = frozenset({"torch", "onnx", "onnx_ir", "onnxscript", "safetensors"})  # of the extra [export]
_LIBRARY = re.compile(r"[\w./+-]+\.so[\w.]*: .+")  # in a message of the dynamic linker
_MAX_MESSAGE = 300  # characters of an internal error; the log holds the rest


def run_process() -> int:
    """Run the command line of this process, and return its exit status.

    Python looks for garbage once more before it ends, which takes a second after an import of PyTorch. The system
    frees the memory anyway, and what has to be cleaned up is registered with `atexit`.
    """
    try:
        status = main()
    except BrokenPipeError:  # stderr is closed too, so nobody reads of an error
        close_stream(sys.stdout)
        close_stream(sys.stderr)
        status = BROKEN_PIPE
    gc.freeze()
    return status


def main(words: Sequence[str] | None = None) -> int:
    """Run one command line and return its exit status (errors.EXIT_STATUSES)."""
    prepare_streams()
    parser = command_line()
    arguments = parse(parser, words)
    if arguments.run is None:
        parser.print_help()
        return 0
    stop = Stop(arguments.if_stopped)
    stop.install()
    console = Console(arguments.json, quiet=arguments.quiet, detailed=arguments.verbose, stop=stop)
    try:
        require_address_space(ANY_COMMAND_MB, user="edgevit")
        require_writable(arguments.json)
        status: int = arguments.run(arguments, console)
        sys.stdout.flush()  # here, while a failure can still be reported
        return status
    except BrokenPipeError:  # the reader of our output has closed it, as `head` does
        close_stream(sys.stdout)
        return BROKEN_PIPE
    except KeyboardInterrupt:
        print(f"edgevit: interrupted; {arguments.if_stopped}", file=sys.stderr)
        return 130
    except SystemExit:
        raise
    except BaseException as error:  # not only Exception: panics of pyo3 modules are BaseExceptions
        stop.check()  # the error may be a consequence of the signal
        try:
            return _report(error, console)
        except MemoryError:  # nothing that needs memory may happen here
            os.write(2, b"edgevit: out of memory\n")
            return UsageError.exit_status


def command_line() -> Parser:
    """Return the parser of all commands."""
    return build_parser(commands())


def commands() -> Iterator[Command]:
    """Yield the commands, each from its own module."""
    for name in COMMANDS:
        yield importlib.import_module(f"edgevit.cli.{name}").COMMAND


def _report(error: BaseException, console: Console) -> int:
    """Report the error that ended a command, and return its exit status."""
    if isinstance(error, OSError):
        close_stream(sys.stdout)
    known = _as_edgevit_error(error)
    return _report_unforeseen(error, console) if known is None else console.fail(known)


def _as_edgevit_error(error: BaseException) -> EdgevitError | None:
    """Return the EdgevitError that reports an exception to the user, or None for an unexpected exception."""
    if isinstance(error, EdgevitError):
        return error
    if unloaded := _unloaded_library(error):
        return unloaded
    if isinstance(error, OSError):
        place = f" {error.filename}" if error.filename else ""
        return UsageError(f"cannot read or write{place}: {os_reason(error)}")
    if isinstance(error, ModuleNotFoundError):
        package = (error.name or "").partition(".")[0]
        if package in _EXPORT_PACKAGES:
            return MissingError(f"{package} is not installed: pip install 'edgevit[export]'")
    if isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and OUT_OF_MEMORY.search(str(error))):
        return UsageError("out of memory; reduce --img-size or --batch")
    return None


def _unloaded_library(error: BaseException) -> MissingError | None:
    """Return the error of a package whose native library could not be loaded, or None for another exception."""
    is_loader = isinstance(error, ImportError) or (isinstance(error, OSError) and error.errno is None)  # or of ctypes
    found = _LIBRARY.search(str(error)) if is_loader else None
    if found is None:
        return None
    if OUT_OF_MEMORY.search(found[0]):
        return MissingError(f"out of memory while loading a package ({found[0]}); free memory, or raise ulimit -v")
    return MissingError(f"a package could not be loaded ({found[0]}); install it again")


def _report_unforeseen(error: BaseException, console: Console) -> int:
    """Report a bug in one line, with the path of a log file that holds the traceback."""
    text = " ".join(str(error).split()) or "no message"
    message = f"internal error: {type(error).__name__}: {text[:_MAX_MESSAGE]}"
    print(f"edgevit: {message}; {_logged(error)}", file=sys.stderr)
    console.fail_json(message, INTERNAL_ERROR)
    return INTERNAL_ERROR


def _logged(error: BaseException) -> str:
    """Write the traceback to a log file and return a sentence that says where it is."""
    text = "".join(
        [
            f"edgevit {edgevit.__version__}, Python {platform.python_version()}, {platform.platform()}\n",
            f"command: {sys.argv}\n\n",
            *traceback.format_exception(type(error), error, error.__traceback__),
        ]
    )
    try:
        return f"full traceback: {_write_log(text)}"
    except OSError as failure:
        return f"the traceback could not be written: {failure}"


def _write_log(text: str) -> Path:
    name = f"{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}.log"
    try:
        folder = cache_folder() / "logs"
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / name
        path.write_text(text, "utf-8", "backslashreplace")
    except (OSError, MissingError):  # a read-only or missing home folder
        path = Path(tempfile.mkdtemp(prefix="edgevit-log-")) / name
        path.write_text(text, "utf-8", "backslashreplace")
    return path
