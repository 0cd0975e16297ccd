"""The error tree. Every error says what, where and the next step, and carries the command line's exit status."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class EdgevitError(Exception):
    """Base of all errors that edgevit raises on purpose."""

    exit_status = 4


class UsageError(EdgevitError, ValueError):
    """The request itself is wrong: an unknown name, a contradiction, a file that is not what it should be."""

    exit_status = 2


class CheckpointError(UsageError):
    """A weights file cannot be read, or its keys are not the model's keys."""


class ImageError(UsageError):
    """An image file cannot be read."""


class BundleError(UsageError):
    """A bundle is incomplete, changed after it was made, or not a bundle."""


class MissingError(EdgevitError):
    """A package or a device that the request needs is not here."""

    exit_status = 3


class ExportError(EdgevitError):
    """The module did not become a valid ONNX graph, or its bundle could not be written."""

    exit_status = 4


class BuildError(EdgevitError):
    """A runtime did not make or did not load an engine."""

    exit_status = 5


class ParityError(EdgevitError):
    """What the engine computes is not what PyTorch computes. `report` is the ParityReport, where there is one."""

    exit_status = 6

    def __init__(self, message: str, *, report: object = None) -> None:
        super().__init__(message)
        self.report = report


class MeasureError(EdgevitError):
    """No honest figure can be given for what was asked."""

    exit_status = 7


class RegressionError(EdgevitError):
    """Slower than the baseline allows."""

    exit_status = 8


class PrecisionError(EdgevitError):
    """The precision that runs is not the precision asked for."""

    exit_status = 9


class RemoteError(EdgevitError):
    """A remote device did not do what it was asked."""

    exit_status = 10


_LISTED = 16  # a longer list of names helps nobody in an error


def unknown_name(kind: str, name: str, known: Iterable[str]) -> UsageError:
    """The error for a name that is not registered: `no runtime 'ovino'; there are … Did you mean 'openvino'?`."""
    names = sorted(known)
    listed = f"there are {', '.join(names)}" if len(names) <= _LISTED else f"there are {len(names)}: edgevit list"
    return UsageError(f"no {kind} {name!r}; {listed}.{near_miss(name, names)}")


def near_miss(name: str, known: Iterable[str]) -> str:
    """A sentence that offers the names closest to a wrong one; empty where none is close."""
    close = difflib.get_close_matches(name, list(known), n=3, cutoff=0.6)
    return f" Did you mean {' or '.join(repr(match) for match in close)}?" if close else ""
