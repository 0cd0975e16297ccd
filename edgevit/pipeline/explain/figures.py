"""The difference of a tensor from PyTorch's, in a few figures."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from edgevit.arrays import differences, finite_std, noise_to_signal, relative, snr_db
from edgevit.types import Array


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """The differences of tensors from PyTorch's: noise over signal, and the largest in standard deviations."""

    noise_to_signal: float  # power of the differences over the power of PyTorch's values
    max_of_std: float

    @property
    def snr_db(self) -> float:
        return snr_db(self.noise_to_signal)

    def __str__(self) -> str:
        if self.max_of_std == 0:
            return "equal"
        if not math.isfinite(self.noise_to_signal):
            return "NaN or infinity at other places"
        return f"SNR {self.snr_db:.0f} dB, max error {self.max_of_std:.1e} std"


def difference(actual: Sequence[Array], expected: Sequence[Array]) -> Difference:
    """Compare tensors with PyTorch's, each in proportion to its own size; the worst of them counts."""
    noise, largest = 0.0, 0.0
    for values, wanted in zip(actual, expected, strict=True):
        error = differences(values, wanted)
        noise = max(noise, noise_to_signal([values], [wanted]))
        largest = max(largest, relative(float(error.max(initial=0.0)), finite_std(wanted)))
    return Difference(noise_to_signal=noise, max_of_std=largest)
