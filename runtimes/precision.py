"""The precision that an engine runs, read back from its runtime."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from edgevit.errors import PrecisionError
from edgevit.precisions import chosen_in_session
from edgevit.types import Precision

TF32 = "tf32"  # fp32 in memory, multiplied with the 10-bit mantissa of fp16
UNKNOWN = "unknown"  # precision of layers for which a runtime reports none
# Fraction of the requested MACs that has to run in the requested precision: runtimes fuse and pad layers a little.
MIN_FRACTION_OF_REQUESTED = 0.95
# The same for layers, if the MACs of layers are unknown: small layers, which stay in float, can outnumber large ones.
MIN_LAYER_FRACTION_OF_REQUESTED = 0.25


@dataclass(frozen=True, slots=True)
class ExecutedPrecision:
    """Layers and MACs of an engine by precision. Only layers that multiply count: convolutions and matmuls."""

    layers: Mapping[str, int] = field(default_factory=dict)
    macs: Mapping[str, int] = field(default_factory=dict)  # of the same layers, for the batch that ran; empty: unknown

    @property
    def actual(self) -> str:
        """The precision with the most MACs, or with the most layers if MACs are unknown; "unknown" without both."""
        known = self.macs or self.layers
        return max(known, key=lambda name: known[name]) if known else UNKNOWN

    def layer_fraction(self, precision: str) -> float:
        """Return the fraction of layers in `precision`, 0 to 1; NaN if the runtime reports none."""
        return _fraction(self.layers, precision)

    def fraction(self, precision: str) -> float:
        """Return the fraction of MACs in `precision`, 0 to 1; of layers if MACs are unknown."""
        return _fraction(self.macs or self.layers, precision)

    @property
    def summary(self) -> str:
        """The fraction of each precision below fp32, or of fp32 if there is none.

        For example "int8: 91 % of the layers, 97 % of the MACs".
        """
        if not self.layers:
            return "not reported"
        return "; ".join(self._fractions_of(name) for name in (_below_fp32(self.layers) or [self.actual]))

    def _fractions_of(self, precision: str) -> str:
        layers = f"{precision}: {_percent(self.layer_fraction(precision))} of the layers"
        if not self.macs:
            return layers
        return f"{layers}, {_percent(self.fraction(precision))} of the MACs"

    def to_json(self) -> dict[str, Any]:
        """Return counts and fractions as manifests store them."""
        return {
            "found": self.actual,
            "layers": dict(self.layers),
            "multiply_adds": dict(self.macs),
            "layer_shares": {name: self.layer_fraction(name) for name in self.layers},
            "multiply_add_shares": {name: self.fraction(name) for name in self.macs},
        }

    def require(self, precision: Precision, *, runtime: str, expected: float | None = None) -> None:
        """Raise PrecisionError if less than the requested precision runs, or if fp32 was requested and less runs.

        `expected` is the fraction of MACs, 0 to 1, that the graph has in `precision`; at least 0.95 of it must run in
        it. If the engine's MACs are unknown, a quarter of that fraction of its layers must; if `expected` is unknown, a
        quarter of its layers. In bf16, which the runtime is asked for, `expected` is 1 unless it is given. Layers of
        unknown precision are left out. If no known layer has `precision`, accept the engine only if at least as many
        layers are unknown as known.
        """
        if expected is not None and not 0 <= expected <= 1:  # NaN too, which no comparison below would refuse
            raise PrecisionError(f"invalid {precision} fraction in the manifest ({expected}); export the model again")
        if precision == "fp32":
            self._require_fp32(runtime)
        elif expected is None and chosen_in_session(precision):
            self._require_lower(precision, runtime, 1.0)
        else:
            self._require_lower(precision, runtime, expected)

    def _require_lower(self, precision: Precision, runtime: str, expected: float | None) -> None:
        known = {name: count for name, count in self.layers.items() if name != UNKNOWN}
        part = "" if expected is None else f" for {_percent(expected)} of the MACs"
        if not known.get(precision):
            if sum(known.values()) <= self.layers.get(UNKNOWN, 0):
                return
            raise PrecisionError(
                f"requested {precision}{part if expected != 1 else ''}, but {runtime} runs "
                f"{_list_counts(self.layers)}; this machine or this runtime has no {precision} arithmetic: export with "
                "--precision fp32"
            )
        if self.macs and expected is not None:
            enough = self.fraction(precision) >= MIN_FRACTION_OF_REQUESTED * expected
        else:
            wanted = 1.0 if expected is None else expected
            enough = _fraction(known, precision) >= MIN_LAYER_FRACTION_OF_REQUESTED * wanted
        if not enough:
            raise PrecisionError(
                f"requested {precision}{part}, but {runtime} runs "
                f"{self._fractions_of(precision)}; build for another runtime, or export with --precision fp32"
            )

    def _require_fp32(self, runtime: str) -> None:
        lower = {name: self.layers[name] for name in _below_fp32(self.layers) if name != UNKNOWN}
        if lower:
            raise PrecisionError(
                f"requested fp32, but {runtime} runs {_list_counts(lower)}; turn lower precision off in the runtime's "
                "settings, or export with that precision"
            )


def precision_json(requested: Precision, executed: ExecutedPrecision | None) -> dict[str, Any]:
    """Return the precision section of manifests and reports.

    `executed` is None if the engine has not run and its build reported nothing.
    """
    section = ExecutedPrecision().to_json() | {"found": None} if executed is None else executed.to_json()
    return {"asked": requested, **section}


def sum_by_precision(layers: Iterable[tuple[str, int | None]]) -> ExecutedPrecision:
    """Sum layers and MACs by precision, from the precision and the MACs of each layer that multiplies.

    If the MACs of one layer are unknown, all are: fractions of the others would be wrong.
    """
    counts: Counter[str] = Counter()
    macs: Counter[str] = Counter()
    known = True
    for precision, count in layers:
        counts[precision] += 1
        macs[precision] += count or 0
        known = known and bool(count)
    return ExecutedPrecision(dict(counts), dict(macs) if known else {})


def _below_fp32(layers: Mapping[str, int]) -> list[str]:
    return [name for name in layers if name not in ("fp32", "fp64")]


def _fraction(counts: Mapping[str, int], precision: str) -> float:
    total = sum(counts.values())
    return counts.get(precision, 0) / total if total else math.nan


def _percent(fraction: float) -> str:
    """Format a fraction in whole percent. Only exactly 0 and 1 become 0 % and 100 %."""
    if 0 < fraction < 0.005:
        return "less than 1 %"
    return "more than 99 %" if 0.995 <= fraction < 1 else f"{100 * fraction:.0f} %"


def _list_counts(layers: Mapping[str, int]) -> str:
    """Format layer counts, such as "20 int8 and 2 fp32 layers"."""
    return f"{' and '.join(f'{count} {name}' for name, count in layers.items())} layers"
