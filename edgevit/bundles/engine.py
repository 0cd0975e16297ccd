"""Open a bundle's engine and check the precision that it runs in."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from edgevit.bundles import compiled_cache
from edgevit.bundles.bundle import Bundle
from edgevit.cpu import require_vnni
from edgevit.errors import BundleError, MissingError, UsageError
from edgevit.runtimes.base import BuildOptions, Engine, require_usable_threads
from edgevit.runtimes.precision import ExecutedPrecision
from edgevit.runtimes.registry import get_runtime


def load_engine(bundle: Bundle, *, threads: int | None = None) -> Engine:
    """Load the engine without reading back its precision; follow it with `require_precision`.

    Raises UsageError for many more threads than cores, MissingError if the engine has yet to be built on the device,
    PrecisionError if the precision that the manifest records is not the one that was requested, or if this processor
    would compute the engine wrongly.
    """
    path, options = _engine_file(bundle, threads=threads)
    engine = get_runtime(bundle.fmt).open(path, options)
    engine.node_macs = bundle.manifest.node_macs
    return engine


def open_engine(bundle: Bundle, *, threads: int | None = None, cache_dir: Path | None = None) -> Engine:
    """Load the engine and check the precision of its layers. The fastest checked way to an engine.

    Multiply-accumulates are not counted, since some runtimes load the model a second time for that: verify, eval and
    latency call `load_engine` and `require_precision` instead. `cache_dir` is a folder for compiled models, of which
    a runtime that has any makes the next load faster; the precision of a saved graph is that of the session before.

    Raises MissingError if the engine has yet to be built on the device, PrecisionError if another precision runs than
    was requested.
    """
    runtime = get_runtime(bundle.fmt)
    path, options = _engine_file(bundle, threads=threads)
    if cache_dir is not None and runtime.caches_compiled:
        options = replace(options, cache_dir=compiled_cache.prepare(bundle.manifest, cache_dir))
    engine, executed = runtime.open_with_precision(path, options)
    try:
        executed.require(options.precision, runtime=bundle.fmt, expected=bundle.quantized_fraction)
        if options.cache_dir is not None:
            compiled_cache.seal(options.cache_dir)
    except BaseException:
        engine.close()
        raise
    return engine


def require_precision(bundle: Bundle, engine: Engine) -> ExecutedPrecision:
    """Return the precision that the bundle's engine runs in; raise PrecisionError if it is not the requested one."""
    executed = engine.executed_precision()
    executed.require(bundle.options.precision, runtime=bundle.fmt, expected=bundle.quantized_fraction)
    return executed


def used_threads(bundle: Bundle, threads: int | None) -> int | None:
    """Return the requested number of threads, or else the one that the bundle was tuned for; None: one per core."""
    return bundle.options.threads if threads is None else threads


def _engine_file(bundle: Bundle, *, threads: int | None) -> tuple[Path, BuildOptions]:
    """The engine file and its options, after a check of the processor and of the precision in the manifest."""
    if bundle.engine_path is None:
        raise MissingError(f"{bundle.name} holds no engine yet; on the device: edgevit build {bundle.path}")
    options = replace(bundle.options, threads=used_threads(bundle, threads))
    if threads is not None and threads != bundle.options.threads:  # a bundle tuned elsewhere opens with its own
        require_usable_threads(threads)
    _require_session_settings(bundle)
    if bundle.needs_vnni():
        require_vnni(bundle.name)
    reported_by = f"{bundle.fmt}, by the manifest of {bundle.name},"
    bundle.recorded_precision.require(options.precision, runtime=reported_by, expected=bundle.quantized_fraction)
    return bundle.engine_path, options


def _require_session_settings(bundle: Bundle) -> None:
    """Raise BundleError if the manifest has session settings that the runtime does not know."""
    try:
        get_runtime(bundle.fmt).session_settings(bundle.manifest.build.session)
    except UsageError as error:
        raise BundleError(f"{bundle.name}: {error}; export the bundle again") from error
