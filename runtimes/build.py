"""Build and load an engine; report what is missing on this machine."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from edgevit.errors import MissingError
from edgevit.files import cache_folder
from edgevit.runtimes.base import Artifact, BuildOptions, Engine, Runtime
from edgevit.runtimes.loading import Loading, timed_load
from edgevit.runtimes.precision import ExecutedPrecision


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildResult:
    """The outcome of a build.

    If the engine needs a device that this machine lacks, to be built or to run, `missing` names it, and the later
    fields are None.
    """

    runtime: Runtime
    artifact: Artifact | None = None
    engine: Engine | None = None
    loading: Loading | None = None
    precision: ExecutedPrecision | None = None  # None: it has not run here, and the build reported none
    missing: str | None = None


def usable_version(runtime: Runtime) -> tuple[str | None, str]:
    """Return the installed version and an empty string, or None and the reason why the runtime cannot be used.

    It may be missing, broken, or of a version that is not supported.
    """
    try:
        version = runtime.version()
        if version is None:
            return None, f"missing: {runtime.install_hint}"
        runtime.load()  # the package may be installed while a library that it needs is not
    except MissingError as error:
        return None, str(error)
    return version, ""


def build_engine(runtime: Runtime, model: Path, folder: Path, options: BuildOptions) -> BuildResult:
    """Build the engine of the ONNX file `model` into `folder`.

    If the build needs a device that this machine lacks, the result says so in `missing`. Raises BuildError, or
    MissingError if a package is missing.
    """
    if runtime.format.builds_on_device and options.cache_dir is None:
        with contextlib.suppress(MissingError):  # without a home folder, kernels are timed again in every build
            options = replace(options, cache_dir=cache_folder())
    try:
        return BuildResult(runtime=runtime, artifact=runtime.build(model, folder, options))
    except MissingError as error:
        if not runtime.format.builds_on_device:
            raise
        return BuildResult(runtime=runtime, missing=str(error))


def open_built(
    built: BuildResult,
    options: BuildOptions,
    *,
    expected_fraction: float | None = None,
    node_macs: Mapping[str, int] | None = None,
) -> BuildResult:
    """Load a built engine and check the precision that it runs in. Raises BuildError or PrecisionError.

    `expected_fraction` is the fraction of MACs, 0 to 1, that the graph has in the requested precision, if known, and
    `node_macs` the MACs of its nodes by name.
    """
    artifact = built.artifact
    if artifact is None:
        return built
    try:
        engine, loading = _load(built.runtime, artifact, options)
    except MissingError as error:
        if not built.runtime.format.runs_on_device:
            raise
        reported = built.runtime.built_precision(artifact.path)
        if reported is not None:
            reported.require(options.precision, runtime=built.runtime.title, expected=expected_fraction)
        return replace(built, missing=str(error), precision=reported)
    engine.node_macs = node_macs or {}
    precision = engine.executed_precision()
    precision.require(options.precision, runtime=built.runtime.title, expected=expected_fraction)
    return replace(built, engine=engine, loading=loading, precision=precision)


def reopen_built(built: BuildResult, options: BuildOptions) -> BuildResult:
    """Load an engine again that was open and closed. Its precision is known. Raises BuildError."""
    if built.engine is None or built.artifact is None:
        return built
    engine, loading = _load(built.runtime, built.artifact, options)
    return replace(built, engine=engine, loading=loading)


def _load(runtime: Runtime, artifact: Artifact, options: BuildOptions) -> tuple[Engine, Loading]:
    with runtime.session():
        return timed_load(lambda: runtime.open(artifact.path, options))
