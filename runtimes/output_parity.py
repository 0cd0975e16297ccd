"""Compare one output of an engine with PyTorch's.

Several measures are taken row by row and stored; pass or fail is derived from them and the tolerance of the precision.
An engine in fp32 may be off by what float32 itself allows: a multiple of the error of PyTorch's own float32 outputs, if
that is more than the tolerance. The top-1 class is judged on photos, and only if the lead of PyTorch's best class is
beyond the accepted errors.

Lower precisions are judged about the mean of the output: a constant offset, such as 293 K, is no signal, and would hide
the loss of what varies. Rows of few values, such as a single score, are judged about zero: their spread is left to
chance. fp32 is judged by its largest error, in standard deviations.

NaN or infinity that PyTorch does not output, and rows of one batch that disagree about the same image, always fail. NaN
and infinity that PyTorch outputs too, such as logits of -inf for masked classes, must be equal and are left out of the
measures.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from edgevit.arrays import finite_std, relative, snr_db
from edgevit.dense.outputs import is_class_map
from edgevit.errors import ParityError
from edgevit.precisions import get_policy
from edgevit.runtimes.channel_parity import ChannelNoise, channel_noise
from edgevit.runtimes.pixel_parity import (
    PixelAgreement,
    is_class_logits,
    logits_agreement,
    map_agreement,
)
from edgevit.types import PHOTOS, Array, Precision

_Rows: TypeAlias = NDArray[np.float64]  # (rows, values)

# Lead of a logit in deviations of its noise: four of the difference of two logits, reversed once in 30,000 rows.
_NOISE_DEVIATIONS = 4 * math.sqrt(2)
_MIN_CENTERED_VALUES = 64  # of a row that is judged about its mean
_FLOAT32_NOISE = 1e-5  # spread of an output over its mean, below which it is constant but for rounding


@dataclass(frozen=True, slots=True, kw_only=True)
class OutputParity:
    """The differences of one output from PyTorch's, for one stage and one kind of input."""

    stage: str
    kind: str
    output: str
    precision: Precision
    batch: int
    std: float  # of PyTorch's finite outputs
    max_abs: tuple[float, ...]  # largest absolute difference of each row
    cosine: tuple[float, ...]  # cosine similarity of each row; in lower precisions also about its mean, if that is less
    noise_power: float  # mean squared difference over all rows
    mean_square: float  # of PyTorch's output
    signal_power: float  # its variance if it is judged about its mean, else its mean square
    same_top1: tuple[bool, ...]  # of each row; empty if the output is not (rows, classes)
    lead: tuple[float, ...]  # of PyTorch's best class over the second, of each row; empty like `same_top1`
    float32_error: float | None  # largest difference of PyTorch's float32 from its float64; None: not measured
    finite: bool  # as finite as PyTorch's outputs: NaN and infinity at the same places
    rows_differ: float  # largest difference between rows of one batch that hold the same image
    input_sensitivity: float  # spread between PyTorch's rows over the spread within them
    pixels: PixelAgreement | None = None  # of the class of each pixel; None if the output is not one of segmentation
    channels: ChannelNoise | None = None  # of lower precisions, about the mean of each channel; None: not measured
    is_class_map: bool = False  # classes and not values: only their agreement is judged

    @property
    def max_abs_of_std(self) -> float:
        return relative(max(self.max_abs), self.std)

    @property
    def snr_db(self) -> float:
        return snr_db(relative(self.noise_power, self.signal_power))

    @property
    def float32_error_of_std(self) -> float | None:
        return None if self.float32_error is None or self.std <= 0 else self.float32_error / self.std

    @property
    def allowed_error_of_std(self) -> float | None:
        """The largest accepted difference, in standard deviations; None if it is not judged."""
        allowed = get_policy(self.precision).tolerance
        if allowed.max_abs_of_std is None:
            return None
        return max(allowed.max_abs_of_std, (allowed.max_float32_errors or 0.0) * (self.float32_error_of_std or 0.0))

    @property
    def agreement(self) -> float | None:
        """The fraction of photos with the same top-1 class, of those with a lead beyond the accepted errors.

        None if there are none. On noise, the best of many equal logits says nothing.
        """
        if self.kind != PHOTOS:
            return None
        decided = [same for same, lead in zip(self.same_top1, self.lead, strict=True) if lead > self.reversible_lead]
        return sum(decided) / len(decided) if decided else None

    @property
    def reversible_lead(self) -> float:
        """The lead of a class that errors within the tolerance can reverse."""
        snr_db = get_policy(self.precision).tolerance.snr_db
        noise = 0.0 if snr_db is None else math.sqrt(self.signal_power) * 10 ** (-snr_db / 20)
        return max(2 * (self.allowed_error_of_std or 0.0) * self.std, _NOISE_DEVIATIONS * noise)

    @property
    def failures(self) -> tuple[str, ...]:
        """The reasons why this output does not pass; empty if it passes."""
        if not self.finite:
            return ("it has NaN or infinity at other places than the reference",)
        if self.is_class_map:
            return self._pixel_failures(get_policy(self.precision).tolerance.map_agreement)
        policy = get_policy(self.precision)
        allowed, max_error = policy.tolerance, self.allowed_error_of_std
        rows_allowed = max(policy.max_row_spread_std, max_error or 0.0) * self.std
        failures = []
        # "not within" instead of "beyond", so that a measure that is NaN fails too.
        if max_error is not None and not self.max_abs_of_std <= max_error:
            own = self.float32_error_of_std
            known = "" if own is None else f" (the model's own float32 error is {own:.1e})"
            failures.append(f"max error {self.max_abs_of_std:.1e} std, allowed {max_error:.2g}{known}")
        if not min(self.cosine) >= allowed.cosine:
            failures.append(f"cosine {min(self.cosine):.6f}, at least {allowed.cosine:g}")
        if allowed.snr_db is not None and not self.snr_db >= allowed.snr_db:
            failures.append(f"SNR {self.snr_db:.1f} dB, at least {allowed.snr_db:g}")
        if allowed.agreement is not None and self.agreement is not None and not self.agreement >= allowed.agreement:
            failures.append(f"top-1 agreement {self.agreement:.1%}, at least {allowed.agreement:.1%}")
        failures += self._pixel_failures(allowed.agreement)
        if self.channels is not None and self.channels.lost_most and self.kind == PHOTOS:
            failures.append(str(self.channels))
        if not self.rows_differ <= rows_allowed:
            failures.append(f"rows of one batch differ by {self.rows_differ:.1e} on the same image")
        return tuple(failures)

    def _pixel_failures(self, least: float | None) -> tuple[str, ...]:
        """The reason why too few pixels have PyTorch's class; on noise, the best of many equal logits says nothing."""
        decided = self.pixels.decided if self.pixels is not None and self.kind == PHOTOS else None
        if least is None or decided is None or decided >= least:
            return ()
        return (f"pixel agreement {decided:.2%}, at least {least:.2%}",)

    @property
    def passed(self) -> bool:
        return not self.failures


@dataclass(frozen=True, slots=True)
class Conditions:
    """The stage, the kind of inputs, the precision and the batch size of one comparison."""

    stage: str
    kind: str
    precision: Precision
    batch: int


def compare_output(
    name: str,
    expected: Array,
    actual: Array,
    *,
    conditions: Conditions,
    rows_differ: float,
    float32_error: float | None,
) -> OutputParity:
    """Compare one output row by row. Raises ParityError if the shapes differ."""
    if expected.shape != actual.shape:
        raise ParityError(
            f"{conditions.stage}: output {name} has the shape {actual.shape}, but the reference has {expected.shape}"
        )
    want, got = _rows(expected), _rows(actual)
    classifies = expected.ndim == 2 and want.shape[1] > 1
    same_top1 = tuple((want.argmax(1) == got.argmax(1)).tolist()) if classifies else ()
    lead = _leads(want) if classifies else ()
    std, defined = finite_std(want), np.isfinite(want)
    want, got, finite = _aligned(want, got)
    signal_power = mean_square = float((want**2).mean())
    cosine = _cosine(want, got)
    if conditions.precision != "fp32" and want.shape[1] >= _MIN_CENTERED_VALUES:
        variance = std**2 * float(defined.mean())
        signal_power = variance if variance > _FLOAT32_NOISE**2 * mean_square else mean_square
        cosine = np.minimum(cosine, _centered_cosine(want, got, defined, signal_power))
    difference = np.abs(got - want)
    result = OutputParity(
        stage=conditions.stage,
        kind=conditions.kind,
        output=name,
        precision=conditions.precision,
        batch=conditions.batch,
        std=std,
        max_abs=tuple(difference.max(1).tolist()),
        cosine=tuple(cosine.tolist()),
        noise_power=float((difference**2).mean()),
        mean_square=mean_square,
        signal_power=signal_power,
        same_top1=same_top1,
        lead=lead,
        float32_error=float32_error,
        finite=finite,
        rows_differ=rows_differ,
        input_sensitivity=float(want.std(0).mean() / (want.std() or 1.0)) if len(want) > 1 else 1.0,
    )
    if is_class_map(name, actual):  # references are stored as floats
        return replace(result, pixels=map_agreement(expected, actual), is_class_map=True)
    if conditions.precision != "fp32":
        result = replace(result, channels=channel_noise(expected, actual))
    if is_class_logits(name, expected):
        return replace(result, pixels=logits_agreement(expected, actual, result.reversible_lead))
    return result


def _rows(output: Array) -> _Rows:
    return output.reshape(len(output), -1).astype(np.float64)


def _aligned(want: _Rows, got: _Rows) -> tuple[_Rows, _Rows, bool]:
    """Return both with zero at the values that are undefined in both, and whether `got` has no others.

    Values are undefined if they are NaN or infinity; those of `want` must be the same in `got`.
    """
    undefined = ~np.isfinite(want)
    matching = (want == got) | (np.isnan(want) & np.isnan(got))
    finite = bool(np.where(undefined, matching, np.isfinite(got)).all())
    return np.where(undefined, 0.0, want), np.where(undefined & matching, 0.0, got), finite


def _leads(logits: _Rows) -> tuple[float, ...]:
    """Return the lead of the best class over the second in each row of (rows, classes); 0 if it is not defined."""
    second, best = np.partition(logits, -2, axis=1)[:, -2:].T
    with np.errstate(invalid="ignore"):
        leads = best - second
    return tuple(np.nan_to_num(leads, nan=0.0, posinf=np.inf).tolist())


def _cosine(want: _Rows, got: _Rows) -> NDArray[np.float64]:
    both_zero = (want == 0).all(1) & (got == 0).all(1)
    with np.errstate(invalid="ignore"):  # infinities fail by `finite`
        norms = np.linalg.norm(want, axis=1) * np.linalg.norm(got, axis=1)
        products: NDArray[np.float64] = (want * got).sum(1)
        cosine = np.divide(products, norms, out=np.zeros_like(products), where=norms > 0)
    return np.where(both_zero, 1.0, cosine)


def _centered_cosine(want: _Rows, got: _Rows, defined: NDArray[np.bool_], signal_power: float) -> NDArray[np.float64]:
    """Return the cosine of each row about the mean that PyTorch's row has.

    A row with less spread than the whole output, such as a constant one, is completed to that by a component without
    error, since noise on it is as harmful as on the others and no more.
    """
    mean = want.sum(1) / np.maximum(defined.sum(1), 1)
    want, got = (np.where(defined, each - mean[:, None], 0.0) for each in (want, got))
    power = (want**2).sum(1)
    missing = np.maximum(signal_power * want.shape[1] - power, 0.0)
    with np.errstate(invalid="ignore"):  # infinities fail by `finite`
        norms = np.sqrt((power + missing) * ((got**2).sum(1) + missing))
        cosine: NDArray[np.float64] = np.divide(
            (want * got).sum(1) + missing, norms, out=np.ones_like(norms), where=norms > 0
        )
    return cosine
