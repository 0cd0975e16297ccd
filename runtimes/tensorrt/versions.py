"""Supported TensorRT versions."""

from __future__ import annotations

import re
from pathlib import Path
from types import ModuleType
from typing import Any, Literal, Protocol, TypeAlias, TypeGuard, cast

from edgevit.errors import MissingError
from edgevit.formats import DEFAULT_TENSORRT
from edgevit.runtimes.tensorrt import api

_JETSON_RELEASE = Path("/etc/nv_tegra_release")
_JETSON_TREE = Path("/proc/device-tree/compatible")  # lists "nvidia,tegra234", also in a container without the release
_JETPACK = "install JetPack 6 or 7 with its own TensorRT"
JETSON_INSTALL = "sudo apt install python3-libnvinfer, and use python3 -m venv --system-site-packages"

Line: TypeAlias = Literal["8.6", "10", "11"]


class TensorRtModule(Protocol):
    """The names of the module `tensorrt` that all supported versions have, TensorRT-RTX included."""

    __version__: str
    Builder: api.BuilderFactory
    OnnxParser: api.ParserFactory
    Runtime: api.RuntimeFactory
    ILogger: type[Any]  # a base class of ours, with the members of api.ILogger
    INormalizationLayer: type[Any]
    IProfiler: type[Any]  # a base class of ours, which reports layers
    BuilderFlag: api.BuilderFlag
    DataType: api.DataType
    LayerInformationFormat: api.LayerInformationFormat
    LayerType: api.LayerType
    MemoryPoolType: api.MemoryPoolType
    OnnxParserFlag: api.OnnxParserFlag
    ProfilingVerbosity: api.ProfilingVerbosity
    TensorIOMode: api.TensorIOMode
    init_libnvinfer_plugins: api.PluginLoader

    def __hash__(self) -> int: ...


class TensorRtModule86(TensorRtModule, Protocol):
    """The module of TensorRT 8.6."""

    BuilderFlag: api.BuilderFlag86
    NetworkDefinitionCreationFlag: api.NetworkDefinitionCreationFlag86


class TensorRtModule10(TensorRtModule, Protocol):
    """The module of TensorRT 10 and newer."""

    NetworkDefinitionCreationFlag: api.NetworkDefinitionCreationFlag10
    IProgressMonitor: type[Any]  # a base class of ours, with the members of api.IProgressMonitor10


class TensorRtModuleRtx(TensorRtModule10, Protocol):
    """The module `tensorrt_rtx`."""

    ComputeCapability: object


def supported_module(module: ModuleType) -> TensorRtModule:
    """Return the module `tensorrt`, typed. Raises MissingError if edgevit does not support its version."""
    supported_line(module.__version__)
    return cast(TensorRtModule, module)


def is_86(trt: TensorRtModule) -> TypeGuard[TensorRtModule86]:
    return supported_line(trt.__version__) == "8.6"


def is_10(trt: TensorRtModule) -> TypeGuard[TensorRtModule10]:
    """Whether the version is 10 or newer."""
    return supported_line(trt.__version__) != "8.6"


def is_jetson() -> bool:
    """Whether this machine is a Jetson, for which PyPI's `tensorrt` does not build: JetPack has its own."""
    try:
        return _JETSON_RELEASE.exists() or b"nvidia,tegra" in _JETSON_TREE.read_bytes()
    except OSError:
        return False


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
        remedy = _JETPACK if is_jetson() else f"install tensorrt>={DEFAULT_TENSORRT}"
        raise MissingError(f"edgevit supports TensorRT 8.6, 10 and 11, not {version}; {remedy}")
    older = _JETPACK if is_jetson() else "pip install 'tensorrt<12'"
    raise MissingError(
        f"TensorRT {version} is newer than the versions edgevit supports (8.6, 10 and 11); upgrade edgevit, or {older}"
    )
