"""Signal and noise of each channel of an output, about the channel's own mean.

One output may join values of different sizes, such as boxes in pixels and scores from 0 to 1: the errors of the scores
do not show in a measure over all of it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgevit.arrays import snr_db
from edgevit.types import Array

_MIN_VALUES = 16  # of a channel and a row: the spread of fewer says little
_LEAST_SPREAD = 1e-4  # of a channel over the spread of the output, below which the channel is dead or rounding


@dataclass(frozen=True, slots=True, kw_only=True)
class ChannelNoise:
    """The channels of an output that vary, and those of them in which the errors exceed what varies."""

    channels: int
    lost: int
    worst_snr_db: float  # of the channel with the most noise

    @property
    def lost_most(self) -> bool:
        """Whether more than half are lost: fewer may be those that hold little of what a feature map says."""
        return 2 * self.lost > self.channels

    def __str__(self) -> str:
        return f"{self.lost} of {self.channels} channels lose their signal (SNR down to {self.worst_snr_db:.1f} dB)"


def channel_noise(expected: Array, actual: Array) -> ChannelNoise | None:
    """Return the noise of the channels, axis 1 of (rows, channels, positions); None if the output has none that vary.

    An axis with more entries than positions, such as the boxes of (rows, boxes, classes), has none.
    """
    if expected.ndim < 3 or not np.isfinite(expected).all() or not np.isfinite(actual).all():
        return None
    want = expected.reshape(*expected.shape[:2], -1).astype(np.float64)
    if want.shape[2] < max(want.shape[1], _MIN_VALUES):
        return None
    noise = ((actual.reshape(want.shape) - want) ** 2).mean((0, 2))
    signal: NDArray[np.float64] = want.var((0, 2))
    varies = signal > _LEAST_SPREAD**2 * want.var()
    if not varies.any():
        return None
    ratios = noise[varies] / signal[varies]
    return ChannelNoise(
        channels=int(varies.sum()), lost=int((ratios > 1).sum()), worst_snr_db=snr_db(float(ratios.max()))
    )
