"""Look up runtimes by format."""

from __future__ import annotations

import importlib
from dataclasses import replace
from pathlib import Path

from edgevit.bundles.bundle import Bundle
from edgevit.errors import MissingError
from edgevit.formats import get_format
from edgevit.runtimes.base import BuildOptions, Engine, ExecutedPrecision, OnPhase, Runtime


def get_runtime(name: str, on_phase: OnPhase | None = None) -> Runtime:
    """The runtime of a format, by name or alias; its package is not imported yet.

    `on_phase` is called as its builds proceed. Raises UsageError with similar names.
    """
    module, _, cls = get_format(name).runtime.partition(":")
    runtime: Runtime = getattr(importlib.import_module(module), cls)(on_phase)
    return runtime


def load_engine(bundle: Bundle, *, threads: int | None = None, cache_dir: Path | None = None) -> Engine:
    """The engine of a bundle, for callers that go on to `require_precision`.

    Raises MissingError where it has yet to be built on the device, PrecisionError where the manifest contradicts
    itself.
    """
    path, options = _engine_of(bundle, threads=threads, cache_dir=cache_dir)
    return get_runtime(bundle.fmt).open(path, options)


def open_engine(bundle: Bundle, *, threads: int | None = None, cache_dir: Path | None = None) -> Engine:
    """The engine of a bundle, to work with. Raises MissingError where it has yet to be built on the device.

    Raises PrecisionError where another precision runs than was asked for: by the manifest, and by the layers of the
    engine itself. Those who judge an engine ask for more, which may load the model again: `require_precision`.
    """
    path, options = _engine_of(bundle, threads=threads, cache_dir=cache_dir)
    engine, executed = get_runtime(bundle.fmt).open_told(path, options)
    try:
        executed.require(options.precision, runtime=bundle.fmt, expected=bundle.asked_share)
    except BaseException:
        engine.close()
        raise
    return engine


def _engine_of(bundle: Bundle, *, threads: int | None, cache_dir: Path | None) -> tuple[Path, BuildOptions]:
    """The file to open and how, of a bundle that says nothing else of its precision than was asked for."""
    if bundle.engine_path is None:
        raise MissingError(f"{bundle.name} holds no engine yet; on the device: edgevit build {bundle.path}")
    options = replace(bundle.options, threads=threads, cache_dir=cache_dir)
    said = f"{bundle.fmt}, by the manifest of {bundle.name},"
    bundle.recorded_precision.require(options.precision, runtime=said, expected=bundle.asked_share)
    return bundle.engine_path, options


def require_precision(bundle: Bundle, engine: Engine) -> ExecutedPrecision:
    """What runs in the engine of a bundle. Raises PrecisionError where that is not what was asked for."""
    executed = engine.executed_precision()
    executed.require(bundle.options.precision, runtime=bundle.fmt, expected=bundle.asked_share)
    return executed
