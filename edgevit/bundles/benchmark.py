"""Measure the latency of bundles side by side."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from edgevit.bundles.bundle import Bundle, display_names
from edgevit.bundles.engine import load_engine, open_engine, require_precision, used_threads
from edgevit.bundles.latency_file import bundle_details
from edgevit.bundles.source_model import FROM_MANIFEST, PytorchSource, load_unchecked, require_match
from edgevit.errors import MeasureError
from edgevit.formats import get_format
from edgevit.latency.measure import Candidate, LatencyReport, MeasurePlan, OnMeasure, candidate_from_engine, measure
from edgevit.latency.memory import peak_memory_of
from edgevit.runtimes.base import BuildOptions, Engine
from edgevit.runtimes.loading import Loading, timed_load
from edgevit.runtimes.pytorch import TORCH_MODES, TorchEngine, TorchMode, torch_mode
from edgevit.runtimes.registry import get_runtime
from edgevit.subprocesses import python_command
from edgevit.types import Array

_RUN_ONCE = "import sys; from edgevit.bundles.benchmark import run_once; run_once(*sys.argv[1:])"


def measure_bundles(
    bundles: Sequence[Bundle],
    *,
    against: Sequence[str] = (),
    source: PytorchSource = FROM_MANIFEST,
    threads: int | None = None,
    duration_s: float = 3.0,
    on_progress: OnMeasure | None = None,
) -> tuple[LatencyReport, ...]:
    """Measure all bundles in interleaved rounds of one process; the first bundle is the reference of the ratios.

    `against` adds candidates made from the first bundle: a name of TORCH_MODES for its PyTorch model, which `source`
    names, or a format, built from its ONNX file.

    Raises UsageError for an unknown name, MissingError if a runtime is not installed.
    """
    plan = MeasurePlan(
        min_duration_s=duration_s,
        max_duration_s=max(120.0, 2 * duration_s),
        turn_s=min(0.2, duration_s / 16),  # enough rounds for an interval
    )
    others = [name if name in TORCH_MODES else get_format(name).name for name in against]
    with ExitStack() as stack:
        candidates = [
            _bundle_candidate(stack, name, bundle, used_threads(bundle, threads))
            for name, bundle in zip(display_names(bundles), bundles, strict=True)
        ]
        threads = used_threads(bundles[0], threads)
        for other in others:
            if other in TORCH_MODES:
                candidates.append(_torch_candidate(stack, bundles[0], source, threads, mode=torch_mode(other)))
            else:
                candidates.append(_other_runtime(stack, bundles[0], other, threads))
        return measure(candidates, plan, on_progress)


def run_once(path: str, threads: str | None = None) -> None:
    """Load a bundle's engine and run one batch. Runs in a process of its own, whose peak memory is measured."""
    bundle = Bundle.open(path)
    with open_engine(bundle, threads=int(threads) if threads is not None else None) as engine:
        engine.run(_feeds(bundle))


def _bundle_candidate(stack: ExitStack, name: str, bundle: Bundle, threads: int | None) -> Candidate:
    """The bundle's own engine, which has to run in the bundle's precision."""
    peak_mb = _peak_memory_mb(bundle, threads)
    if bundle.engine_path is not None:
        stack.enter_context(get_runtime(bundle.fmt).session())
    engine, loading = timed_load(lambda: load_engine(bundle, threads=threads))
    stack.enter_context(engine)
    return candidate_from_engine(
        name,
        engine,
        _feeds(bundle),
        threads=threads,
        loading=replace(loading, peak_memory_mb=peak_mb),
        details=bundle_details(bundle, precision=require_precision(bundle, engine).actual),
    )


def _torch_candidate(
    stack: ExitStack, bundle: Bundle, source: PytorchSource, threads: int | None, *, mode: TorchMode
) -> Candidate:
    """PyTorch with the model that the bundle was exported from."""
    with load_engine(bundle, threads=threads) as engine:
        inputs, outputs = engine.inputs, engine.outputs
    model, loading = timed_load(lambda: load_unchecked(bundle, source))
    if not bundle.manifest.model.has_random_weights:  # their values do not matter to the time
        require_match(bundle, model)
    torch_engine = TorchEngine(model.module, inputs, outputs, threads=threads, mode=mode)
    if mode.compiled:
        torch_engine.compile(_feeds(bundle))
    return _candidate(stack, mode.title, bundle, (torch_engine, loading), threads)


def _other_runtime(stack: ExitStack, bundle: Bundle, fmt: str, threads: int | None) -> Candidate:
    """Another runtime on the bundle's ONNX file."""
    runtime = get_runtime(fmt)
    options = BuildOptions(threads=threads, dynamic_batch=bundle.options.dynamic_batch, batch=bundle.options.batch)
    folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="edgevit-")))
    artifact = runtime.build(bundle.model_path, folder, options)
    stack.enter_context(runtime.session())
    return _candidate(stack, fmt, bundle, timed_load(lambda: runtime.open(artifact.path, options)), threads)


def _candidate(
    stack: ExitStack, name: str, bundle: Bundle, loaded: tuple[Engine, Loading], threads: int | None
) -> Candidate:
    """A loaded engine that is not the bundle's own; any precision is accepted, and reported."""
    engine, loading = loaded
    stack.enter_context(engine)
    precision = engine.executed_precision().actual
    return candidate_from_engine(
        name, engine, _feeds(bundle), threads=threads, loading=loading, details={"precision": precision}
    )


def _peak_memory_mb(bundle: Bundle, threads: int | None) -> float | None:
    """Peak memory of a process that loads the engine and runs once; None if it cannot be measured.

    A separate process, because in this one the other candidates would add to the peak.
    """
    arguments = [str(bundle.path), *([str(threads)] if threads is not None else [])]
    with contextlib.suppress(MeasureError):  # the engine may still load in this process
        return peak_memory_of(python_command(*arguments, code=_RUN_ONCE, is_child=False))
    return None


def _feeds(bundle: Bundle) -> dict[str, Array]:
    """One batch of the bundle's reference inputs."""
    return bundle.references()[0].batch(bundle.options.batch_to_measure)
