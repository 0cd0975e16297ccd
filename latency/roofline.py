"""The limit that a machine sets to a model: its arithmetic and its memory, measured in the same session."""

from __future__ import annotations

import math
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np

from edgevit.latency import clock
from edgevit.runtimes.base import Engine, Operations, available_cores
from edgevit.runtimes.precision import UNKNOWN
from edgevit.types import PRECISIONS

# (M, K, N) of products whose rate is measured: square ones, and a layer of a transformer.
_SIDE = 1024
MATMUL_SHAPES = ((256, 1024, 1024), (_SIDE, _SIDE, _SIDE), (196, 768, 3072))
_MIN_COPY_BITS, _MAX_COPY_BITS = 20, 28  # 1 MB, which is long enough to time, and 256 MB, beyond all caches
_MIN_CALLS = 5
_SHAPE_S = 0.2  # time that each shape is repeated
_FILLED_S = 1e-4  # a product that takes less may leave parts of a large GPU without work
_MAX_SIDE = 8192  # side of the largest square product


@dataclass(frozen=True, slots=True, kw_only=True)
class Roofline:
    """Rates of the machine through one runtime, and the work of one inference (Williams et al. 2009).

    No inference can be faster than its multiply-adds at the best rate of a matrix product, nor than reading its weights
    and inputs and writing its outputs once at the rate of a copy: the larger of both times is the limit. Results
    between layers are left out of the bytes, since they may stay in a cache. So may the weights of a small model: the
    copy has about as many bytes as the model moves.
    """

    runtime: str  # or library, through which the matrix products ran
    threads: int | None
    macs_per_s: Mapping[str, float]  # best rate of a matrix product by precision
    copy_bytes_per_s: float  # read and written bytes together
    macs: Mapping[str, int]  # of one batch, by the precision that runs them
    moved_bytes: int  # weights, inputs and outputs of one batch, each once
    activation_bytes: int = 0  # results of convolutions and matmuls of one batch, written and read once

    @property
    def compute_ms(self) -> float:
        """The least time of the multiply-adds.

        Those in a precision without a rate count at the fp32 rate, which emulates it; those whose precision the runtime
        does not report, such as TensorRT 8.6 for a whole transformer, count at the best rate.
        """
        return 1e3 * sum(count / self._rate(precision) for precision, count in self.macs.items())

    @property
    def memory_ms(self) -> float:
        return 1e3 * self.moved_bytes / self.copy_bytes_per_s

    @property
    def limit_ms(self) -> float:
        return max(self.compute_ms, self.memory_ms)

    @property
    def bound(self) -> Literal["compute", "memory"]:
        return "compute" if self.compute_ms >= self.memory_ms else "memory"

    def fraction(self, time_ms: float) -> float:
        """Return the fraction of the limit that an inference of `time_ms` reaches; 1 is as fast as the limit."""
        return self.limit_ms / time_ms

    def to_json(self) -> dict[str, Any]:
        derived = {"compute_ms": self.compute_ms, "memory_ms": self.memory_ms, "limit_ms": self.limit_ms}
        return {**asdict(self), **derived, "bound": self.bound}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Roofline:
        return cls(
            runtime=str(data["runtime"]),
            threads=data["threads"],
            macs_per_s={str(name): float(rate) for name, rate in data["macs_per_s"].items()},
            copy_bytes_per_s=float(data["copy_bytes_per_s"]),
            macs={str(name): int(count) for name, count in data["macs"].items()},
            moved_bytes=int(data["moved_bytes"]),
            activation_bytes=int(data["activation_bytes"]),
        )

    def _rate(self, precision: str) -> float:
        if precision == UNKNOWN:
            return max(self.macs_per_s.values())
        return self.macs_per_s.get(precision) or self.macs_per_s[PRECISIONS[0]]


def matmul_rate(engine: Engine, precision: str) -> float | None:
    """Return the best rate of a matrix product on the engine's device, in MACs/s; None if it has none in `precision`.

    Raises MissingError if it has none at all here.
    """
    times_s = {shape: _product_s(engine, shape, precision) for shape in MATMUL_SHAPES}
    side = _SIDE
    while (times_s[side, side, side] or _FILLED_S) < _FILLED_S and side < _MAX_SIDE:
        side *= 2
        times_s[side, side, side] = _product_s(engine, (side, side, side), precision)
    return max((math.prod(shape) / time_s for shape, time_s in times_s.items() if time_s), default=None)


def _product_s(engine: Engine, shape: tuple[int, int, int], precision: str) -> float | None:
    """Return the shortest time of a product of (M, K, N); None if the engine's device has none in `precision`."""
    products = engine.matmul(shape, precision)
    return None if products is None else _shortest_s(products)


def copied_bytes(moved_bytes: int) -> int:
    """Return the bytes whose copy is timed for a model: about as many as it moves, since a cache may hold them."""
    powers = (1 << power for power in range(_MIN_COPY_BITS, _MAX_COPY_BITS))
    return next((size for size in powers if size >= moved_bytes), 1 << _MAX_COPY_BITS)


def device_copy_rate(engine: Engine, moved_bytes: int) -> float | None:
    """Return the best rate of copies in the memory of the engine's device, like copy_rate; None if it is the host's."""
    half = moved_bytes // 2
    copies = engine.copy(half)
    return None if copies is None else 2 * half / _shortest_s(copies)


def copy_rate(threads: int | None, moved_bytes: int) -> float:
    """Return the best rate of copies by NumPy in as many threads, in bytes/s: those read and those written.

    A copy reads one half of `moved_bytes` and writes the other.
    """
    count, half = threads or available_cores(), moved_bytes // 2
    source, target = np.ones(half, np.uint8), np.zeros(half, np.uint8)
    parts = list(zip(np.array_split(target, count), np.array_split(source, count), strict=True))
    with ThreadPoolExecutor(count) as pool:
        return 2 * half / _shortest_s(Operations(run=lambda: list(pool.map(lambda part: np.copyto(*part), parts))))


def _shortest_s(operations: Operations) -> float:
    """Return the shortest time of one operation, which other processes disturb least; the first does not count."""
    with operations:
        operations.run()
        times_s: list[float] = []
        end_ns = clock.now_ns() + round(1e9 * _SHAPE_S)
        while len(times_s) < _MIN_CALLS or clock.now_ns() < end_ns:
            times_s.append(_run_s(operations))
    return min(times_s) / operations.count


def _run_s(operations: Operations) -> float:
    """Run once; return the seconds by the device's clock, or by the host's."""
    start_ns = clock.now_ns()
    operations.run()
    elapsed_s = (clock.now_ns() - start_ns) / 1e9
    return elapsed_s if operations.device_s is None else operations.device_s()
