"""Candidates of a measurement, and one timed run of a candidate."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from edgevit.errors import MeasureError, UsageError
from edgevit.files import first_line
from edgevit.latency import clock
from edgevit.peak_memory import resident_mb
from edgevit.runtimes.base import GPU, THREADS_REQUESTED, Engine
from edgevit.runtimes.loading import Loading, memory_rise_mb
from edgevit.runtimes.parity import ParitySummary
from edgevit.types import Array

# Detail of a candidate made of a PyTorch model that the user named: the options of the command line that name it.
PYTORCH_MODEL = "pytorch_model"


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A callable to measure, with details for the report.

    `infer` runs one inference on one batch and returns its outputs as NumPy arrays (one, a sequence or a mapping), so
    that they are computed when it returns. `details` go into the report: hash of the artifact, precision, whether the
    engine replays a CUDA graph.
    """

    name: str
    infer: Callable[[], object]
    batch: int = 1
    input_shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    threads: int | None = None
    load_s: float | None = None
    first_inference_ms: float | None = None
    memory_rise_mb: float | None = None
    peak_memory_mb: float | None = None
    device_memory_mb: float | None = None
    details: Mapping[str, str] = field(default_factory=dict)
    compute_ms: Callable[[], float | None] | None = None  # time of the last inference on the GPU
    parity: ParitySummary | None = None  # with PyTorch; None if it was not compared

    @property
    def uses_gpu(self) -> bool:
        return GPU in self.details


def candidate_from_engine(
    name: str,
    engine: Engine,
    feeds: Mapping[str, Array],
    *,
    threads: int | None = None,
    loading: Loading | None = None,
    details: Mapping[str, str] | None = None,
) -> Candidate:
    """Return a candidate that runs `engine` on `feeds`.

    If `threads` are requested, those that run are reported. Runs an inference. It counts as the first one, and for the
    memory, only if the engine has not run before.

    Raises UsageError if the engine does not accept the feeds, MeasureError if the inference fails.
    """
    shapes = {spec.name: feeds[spec.name].shape for spec in engine.inputs if spec.name in feeds}
    had_run = engine.has_run
    candidate = candidate_from_callable(
        name,
        functools.partial(engine.run, feeds),
        batch=_batch_size(engine, feeds),
        input_shapes=shapes,
        threads=threads if threads is None else engine.threads or threads,
        loading=loading,
    )
    details = {**engine.conditions, **_requested(threads, engine), **(details or {})}
    compute_ms = engine.compute_ms if engine.compute_ms() is not None else None
    candidate = replace(candidate, details=details, device_memory_mb=engine.device_memory_mb, compute_ms=compute_ms)
    return replace(candidate, first_inference_ms=None, memory_rise_mb=None) if had_run else candidate


def _requested(threads: int | None, engine: Engine) -> dict[str, str]:
    """Return the requested number of threads as a detail if the engine runs another one."""
    differs = threads is not None and engine.threads not in (None, threads)
    return {THREADS_REQUESTED: str(threads)} if differs else {}


def candidate_from_callable(
    name: str,
    infer: Callable[[], object],
    *,
    batch: int = 1,
    input_shapes: Mapping[str, tuple[int, ...]] | None = None,
    threads: int | None = None,
    loading: Loading | None = None,
    details: Mapping[str, str] | None = None,
) -> Candidate:
    """Return a candidate that calls `infer`, for example `lambda: model(images).numpy()` for a PyTorch model.

    Runs the first inference. Raises MeasureError if it fails.
    """
    before_mb = resident_mb()
    _, duration_ns, outputs = timed(name, infer)
    require_valid_outputs(name, outputs)
    rises = [loading.memory_rise_mb if loading else None, memory_rise_mb(before_mb)]
    return Candidate(
        name=name,
        infer=infer,
        batch=batch,
        input_shapes=dict(input_shapes or {}),
        threads=threads,
        load_s=loading.load_s if loading else None,
        first_inference_ms=duration_ns / 1e6,
        memory_rise_mb=sum(rise for rise in rises if rise is not None) if None not in rises else None,
        peak_memory_mb=loading.peak_memory_mb if loading else None,
        details=dict(details or {}),
    )


def timed(name: str, infer: Callable[[], object]) -> tuple[int, int, object]:
    """Run once and return start and duration in ns, and the outputs, which are freed outside the timed part."""
    start_ns = clock.now_ns()
    try:
        outputs = infer()
    except UsageError:
        raise
    except Exception as error:
        raise MeasureError(f"an inference of {name} failed ({first_line(error)}); run edgevit verify BUNDLE") from error
    return start_ns, clock.now_ns() - start_ns, outputs


def require_valid_outputs(name: str, outputs: object) -> None:
    """Raise MeasureError unless the outputs are finite numbers in host memory."""
    if isinstance(outputs, Mapping):
        values = list(outputs.values())
    else:
        values = list(outputs) if isinstance(outputs, tuple | list) else [outputs]
    for value in values or [None]:
        if not isinstance(value, np.ndarray | np.generic):
            raise MeasureError(
                f"{name} returned {type(value).__name__} instead of a NumPy array, so its outputs may not be computed "
                "yet; return arrays, as in model(images).numpy()"
            )
        if value.dtype.kind in "fc" and not _is_valid(np.asarray(value)):
            raise MeasureError(f"{name} returned NaN or infinity; run edgevit verify BUNDLE")


def _is_valid(value: Array) -> bool:
    """Return whether an output has neither NaN nor infinity, except -inf in real outputs: logits of masked classes."""
    if value.dtype.kind == "c":
        return bool(np.isfinite(value).all())
    return bool((value < np.inf).all())


def _batch_size(engine: Engine, feeds: Mapping[str, Array]) -> int:
    """Return the images per call: the size of the first input's dynamic axis, else of its first axis."""
    spec = engine.inputs[0]
    shape = feeds[spec.name].shape if spec.name in feeds else ()
    axis = spec.shape.index("batch") if spec.is_dynamic else 0
    return shape[axis] if axis < len(shape) else 1
