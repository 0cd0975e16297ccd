"""From an ONNX file to a loaded engine, on a workstation and on a device alike."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, replace
from pathlib import Path

from edgevit.errors import MissingError
from edgevit.files import cache_folder
from edgevit.runtimes.base import Artifact, BuildOptions, Engine, Runtime
from edgevit.runtimes.loading import Loading, timed_load
from edgevit.runtimes.precision import ExecutedPrecision


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildResult:
    """What became of a build. Some engines need a device that this machine lacks, to be built or to run:
    then `missing` says what, and the rest is empty as far as it goes.
    """

    runtime: Runtime
    artifact: Artifact | None = None
    engine: Engine | None = None
    loading: Loading | None = None
    precision: ExecutedPrecision | None = None  # None: neither has it run here, nor did the build tell
    missing: str | None = None


def usable_version(runtime: Runtime) -> tuple[str | None, str]:
    """The version of the runtime that works here; None, and why, where it is absent, broken or of a refused version."""
    try:
        version = runtime.version()
        if version is None:
            return None, f"missing: pip install 'edgevit[{runtime.format.extra}]'"
        runtime.load()  # its files may be there and what they need not
    except MissingError as error:
        return None, str(error)
    return version, ""


def build_engine(runtime: Runtime, model: Path, folder: Path, options: BuildOptions) -> BuildResult:
    """Builds the engine for `model` into `folder`. The result names what is missing where a device is.

    Raises BuildError, and MissingError where the runtime is one that could be installed here.
    """
    if runtime.format.builds_on_device and options.cache_dir is None:
        with contextlib.suppress(MissingError):  # without a home folder every build times anew
            options = replace(options, cache_dir=cache_folder())
    try:
        return BuildResult(runtime=runtime, artifact=runtime.build(model, folder, options))
    except MissingError as error:
        if not runtime.format.builds_on_device:
            raise
        return BuildResult(runtime=runtime, missing=str(error))


def open_built(built: BuildResult, options: BuildOptions, *, share: float | None = None) -> BuildResult:
    """Loads what was built, and reads back the precision that runs. Raises BuildError, PrecisionError.

    `share` of the multiply-adds stands in the graph in that precision, where it is known.
    """
    artifact = built.artifact
    if artifact is None:
        return built
    try:
        engine, loading = timed_load(lambda: built.runtime.open(artifact.path, options))
    except MissingError as error:
        if not built.runtime.format.runs_on_device:
            raise
        told = built.runtime.built_precision(artifact.path)
        if told is not None:
            told.require(options.precision, runtime=built.runtime.title, expected=share)
        return replace(built, missing=str(error), precision=told)
    precision = engine.executed_precision()
    precision.require(options.precision, runtime=built.runtime.title, expected=share)
    return replace(built, engine=engine, loading=loading, precision=precision)
