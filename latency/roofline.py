"""The limit that a machine sets to a model: its arithmetic and its memory, measured in the same session."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from edgevit.types import PRECISIONS


@dataclass(frozen=True, slots=True, kw_only=True)
class Roofline:
    """Rates of the machine through one runtime, and the work of one inference (Williams et al. 2009).

    No inference can be faster than its multiply-adds at the best rate of a matrix product, nor than reading its weights
    and inputs and writing its outputs once at the rate of a copy: the larger of both times is the limit. Results
    between layers are left out of the bytes, since they may stay in a cache.
    """

    runtime: str  # through which the matrix products ran
    threads: int | None
    macs_per_s: Mapping[str, float]  # best rate of a matrix product by precision
    copy_bytes_per_s: float  # read and written bytes together
    macs: Mapping[str, int]  # of one batch, by the precision that runs them
    moved_bytes: int  # weights, inputs and outputs of one batch, each once
    activation_bytes: int = 0  # results of convolutions and matmuls of one batch, written and read once

    @property
    def compute_ms(self) -> float:
        """The least time of the multiply-adds. Those in a precision without a rate count at the fp32 rate."""
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
        return self.macs_per_s.get(precision) or self.macs_per_s[PRECISIONS[0]]
