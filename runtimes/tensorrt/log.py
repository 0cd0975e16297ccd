"""TensorRT's log, and errors from it: TensorRT only logs why a call failed."""

from __future__ import annotations

import functools
import re
from typing import Protocol

from edgevit.errors import BuildError, EdgevitError
from edgevit.runtimes.tensorrt import api, cuda
from edgevit.runtimes.tensorrt.versions import TensorRtModule

_OLD_DRIVER = r"(?i)initialization failure with error: 35\b|driver version is insufficient|InsufficientDriver"
_OTHER_GPU = r"cannot run on this GPU"
_UNSUPPORTED_GPU = r"TensorRT-RTX does not support this compute capability"
_OUT_OF_MEMORY = r"(?i)out ?of ?memory|bad_alloc|MemoryAllocation"  # in TensorRT's messages


def failure(
    trt: TensorRtModule,
    what: str,
    *messages: str,
    remedy: str | None = None,
    kind: type[EdgevitError] = BuildError,
    title: str = "TensorRT",
) -> EdgevitError:
    """Return the error for a failure that TensorRT only logs. Its first messages are nearest to the cause.

    Without a `remedy`, the error recommends to lint the graph.
    """
    lines = [*messages, *process_logger(trt).take()]
    reason = " ".join(" ".join(lines[:2]).split())
    if any(re.search(_OUT_OF_MEMORY, line) for line in lines):
        remedy = "free GPU memory (on a Jetson: add swap), or reduce --workspace"
    elif any(re.search(_OLD_DRIVER, line) for line in lines):
        remedy = f"{cuda.OLD_DRIVER} (it supports CUDA {cuda.driver_version() or 'of an unknown version'})"
    elif any(re.search(_UNSUPPORTED_GPU, line) for line in lines):
        remedy = "use --fmt trt on this machine, or another GPU"
    elif any(re.search(_OTHER_GPU, line) for line in lines):
        remedy = "export it again with the GPU's compute capability in --sm, or without --sm"
    elif remedy is None:
        remedy = f"check the graph: edgevit lint BUNDLE --target trt:{version_name(trt)}"
    return kind(f"{title}: {what}: {reason or 'no reason reported'}; {remedy}")


def version_name(trt: TensorRtModule) -> str:
    """Return TensorRT's version in the form of --target and --trt-version."""
    return ".".join(str(trt.__version__).split(".")[:2])


def parsed_node(message: str) -> tuple[str, str] | None:
    """Return name and operator of the node that the parser reports to begin with; None for another message."""
    parsed = re.fullmatch(r"Parsing node: (.*) \[(\w+)\]", message)
    return (parsed[1], parsed[2]) if parsed else None


class ErrorLog(api.ILogger, Protocol):
    """A logger that keeps errors, warnings about the device and the node being parsed, and prints nothing."""

    parsing: tuple[str, str]  # name and operator of the last node that a parser began with; empty before

    def take(self) -> list[str]:
        """Return the errors logged since the last call."""

    def take_device_warnings(self) -> list[str]:
        """Return the warnings since the last call that an engine was built on another model of device."""


@functools.cache
def process_logger(trt: TensorRtModule) -> ErrorLog:
    """Return the process's only logger: TensorRT uses the first logger it is given and ignores later ones."""

    class Log(trt.ILogger):  # type: ignore[misc,name-defined]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self._errors: list[str] = []
            self._device_warnings: list[str] = []
            self.parsing = ("", "")

        def log(self, severity: api.Enumerator, msg: str) -> None:
            if severity in (trt.ILogger.ERROR, trt.ILogger.INTERNAL_ERROR):
                self._errors.append(msg)
            elif severity == trt.ILogger.WARNING and "different models of devices" in msg:
                self._device_warnings.append(msg)
            else:
                self.parsing = parsed_node(msg) or self.parsing

        def take(self) -> list[str]:
            errors, self._errors = self._errors, []
            return errors

        def take_device_warnings(self) -> list[str]:
            messages, self._device_warnings = self._device_warnings, []
            return messages

    return Log()


def load_plugins(trt: TensorRtModule) -> None:
    """Register TensorRT's own plugins, by which RoiAlign, DeformConv and others are parsed and loaded.

    Without the library, graphs without these operators work; the parser names the operators that need it.
    """
    logger = process_logger(trt)
    trt.init_libnvinfer_plugins(logger, "")
    logger.take()
