"""Supported TensorRT versions."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Literal, TypeAlias, TypeVar

from edgevit.errors import MissingError

Line: TypeAlias = Literal["8.6", "10", "11"]
Function = TypeVar("Function", bound=Callable[..., object])


def versions(*_lines: Line) -> Callable[[Function], Function]:
    """Mark a function as written for some TensorRT versions only; functions without the mark are for all of them.

    It does nothing at run time. tests/runtimes/tensorrt/test_api.py checks the function against the API of these
    versions, and that functions for more versions call it inside an `if`.
    """
    return lambda function: function


def supported_line(version: str) -> Line:
    """Return the release line of a TensorRT version.

    Raises MissingError, with the version to install, if edgevit does not support it.
    """
    match = re.match(r"(\d+)\.(\d+)", version)
    major, minor = (int(match[1]), int(match[2])) if match else (0, 0)
    if (major, minor) == (8, 6):
        return "8.6"
    if major == 10:
        return "10"
    if major == 11:
        return "11"
    if (major, minor) < (8, 6):
        system = "JetPack 5, with Python 3.8" if (major, minor) == (8, 5) else "an older system"
        raise MissingError(
            f"TensorRT {version} belongs to {system}, and its parser has no LayerNormalization; edgevit supports "
            "TensorRT 8.6, 10 and 11: on a Jetson Orin, install JetPack 6 or 7"
        )
    if major in (8, 9):
        raise MissingError(f"edgevit supports TensorRT 8.6, 10 and 11, not {version}; install tensorrt>=10.3")
    raise MissingError(
        f"TensorRT {version} is newer than the versions edgevit supports (8.6, 10 and 11); upgrade edgevit, "
        "or pip install 'tensorrt<12'"
    )
