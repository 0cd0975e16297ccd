"""Exceptions raised by edgevit. Each class carries the exit status of the command line.

    EdgevitError               4
      UsageError               2   (also a ValueError)
        CheckpointError        2
        ImageError             2
        BundleError            2
      MissingError             3
      ExportError              4
      BuildError               5
      InferenceError           5
      ParityError              6
      MeasureError             7
      RegressionError          8
      PrecisionError           9

Any other exception is a bug in edgevit: the command line writes its traceback to a log file and exits with 70.
"""

from __future__ import annotations

import difflib
import signal
from collections.abc import Iterable
from pathlib import Path

INTERNAL_ERROR = 70  # EX_SOFTWARE of sysexits.h
BROKEN_PIPE = 128 + signal.SIGPIPE  # 141, as the shell reports programs that this signal ends
EXIT_STATUSES = {
    0: "done",
    1: "lint found errors",
    2: "usage: a wrong name, option or file; --json or --report cannot be written",
    3: "a package or device is missing",
    4: "export failed, or the folder of a bundle cannot be written",
    5: "build failed",
    6: "parity or accuracy failed",
    7: "not measurable",
    8: "slower than the baseline allows",
    9: "the requested precision is not what runs",
    INTERNAL_ERROR: "an error of edgevit itself",
    BROKEN_PIPE: "the reader of the output ended first, as head does",
}


class EdgevitError(Exception):
    """Base class of all errors that edgevit raises on purpose: the message says what is wrong and what to do."""

    exit_status = 4


class UsageError(EdgevitError, ValueError):
    """The request is wrong: an unknown name, contradictory options, or an unsuitable file."""

    exit_status = 2


class CheckpointError(UsageError):
    """A weights file cannot be read, or its keys do not match the model."""


class ImageError(UsageError):
    """An image file cannot be read: the one at `path`."""

    def __init__(self, message: str, *, path: Path | None = None) -> None:
        super().__init__(message)
        self.path = path


class BundleError(UsageError):
    """A folder is not a bundle, or a bundle is incomplete or was modified."""


class MissingError(EdgevitError):
    """A required package or device is not available on this machine."""

    exit_status = 3


class ExportError(EdgevitError):
    """The module could not be converted to a valid ONNX graph, or its bundle could not be written."""

    exit_status = 4


class BuildError(EdgevitError):
    """A runtime failed to build or load an engine."""

    exit_status = 5


class InferenceError(EdgevitError):
    """A loaded engine failed to run."""

    exit_status = 5


class ParityError(EdgevitError):
    """The engine's outputs differ from PyTorch's. `report` is the ParityReport, if there is one.

    `explanation` is the Explanation that names the first module that differs, if one was requested.
    """

    exit_status = 6

    def __init__(self, message: str, *, report: object = None, explanation: object = None) -> None:
        super().__init__(message)
        self.report = report
        self.explanation = explanation


class MeasureError(EdgevitError):
    """The measurement does not support the requested figure."""

    exit_status = 7


class RegressionError(EdgevitError):
    """An engine is slower than its baseline allows."""

    exit_status = 8


class PrecisionError(EdgevitError):
    """The engine does not run in the requested precision."""

    exit_status = 9


_MAX_LISTED = 16  # longer lists are not printed in an error


def unknown_name(kind: str, name: str, known: Iterable[str]) -> UsageError:
    """Return the error for an unregistered name, which lists the known names and suggests the closest."""
    names = sorted(known)
    choices = f"choose from {', '.join(names)}" if len(names) <= _MAX_LISTED else "see edgevit list"
    return UsageError(f"unknown {kind} {name!r}; {choices}.{did_you_mean(name, names)}")


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return a sentence that suggests the closest of the `known` names, or an empty string if none is close."""
    close = difflib.get_close_matches(name, list(known), n=3, cutoff=0.6)
    return f" Did you mean {' or '.join(repr(match) for match in close)}?" if close else ""
