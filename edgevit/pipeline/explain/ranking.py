"""Rank modules by the noise that their own rounding adds to the model's outputs, and choose those to keep in float."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

from edgevit.pipeline.explain.figures import Difference
from edgevit.pipeline.explain.localize import expected_outputs
from edgevit.pipeline.explain.units import Tensorwise, Unit
from edgevit.precisions import get_policy
from edgevit.types import Precision

MAX_KEPT = 8  # modules that are proposed to stay in float
_MARGIN = 0.5  # of the accepted noise: the errors of modules do not add up exactly
_MOVED = 4.0  # times the noise of the module around it: an operator that a pass moved over the border of a module


@dataclass(frozen=True, slots=True, kw_only=True)
class Ranked:
    """A module and the noise of its own, without its submodules'."""

    unit: Unit
    own: Difference  # of its outputs, for the same inputs
    at_output: Difference  # of the model's outputs if this module alone is wrong

    def __str__(self) -> str:
        return f"{self.unit.name}: by itself SNR {self.own.snr_db:.0f} dB, at the output {self.at_output.snr_db:.0f} dB"


def rank_modules(run: Tensorwise, units: Sequence[Unit], *, deadline_s: float) -> tuple[Ranked, ...]:
    """Return the innermost units, those with the most noise at the output first, as far as time allows.

    `units` are in the order in which they end; the last is the whole model.
    """
    whole = units[-1]
    found: list[Ranked] = []
    for unit in units[:-1]:
        if time.monotonic() > deadline_s:
            break
        inner = [each for each in found if each.unit.call.is_in(unit.call)]
        own = _measure(run, unit, whole)
        moved = [each for each in inner if each.at_output.noise_to_signal > _MOVED * own.at_output.noise_to_signal]
        found = [each for each in found if each not in moved]
        rest = sum(each.at_output.noise_to_signal for each in inner if each not in moved)
        if not inner or own.at_output.noise_to_signal > 2 * rest:
            found.append(own)
    return tuple(sorted(found, key=lambda each: -each.at_output.noise_to_signal))


def choose_to_keep(ranked: Sequence[Ranked], precision: Precision) -> tuple[str, ...]:
    """Return the fewest modules without whose noise the outputs would be accepted; empty if it takes too many.

    The noise of the outputs is about the sum of that of all modules. Empty too if the runtime chooses the precision of
    each operator, as in bf16.
    """
    if not get_policy(precision).converts_graph:
        return ()
    accepted = _MARGIN * _accepted_noise(precision)
    for count in range(min(MAX_KEPT, len(ranked)) + 1):
        if sum(each.at_output.noise_to_signal for each in ranked[count:]) <= accepted:
            return tuple(dict.fromkeys(each.unit.call.path for each in ranked[:count]))
    return ()


def _accepted_noise(precision: Precision) -> float:
    """Return the noise over signal at which an output is just accepted."""
    tolerance = get_policy(precision).tolerance
    if tolerance.snr_db is not None:
        return float(10 ** (-tolerance.snr_db / 10))
    return float(1 / tolerance.cosine**2 - 1)  # noise at right angles to the signal


def _measure(run: Tensorwise, unit: Unit, whole: Unit) -> Ranked:
    expected, actual = expected_outputs(run, unit), run.outputs(unit)
    wrong = tuple(
        tensor + (values - wanted) for tensor, values, wanted in zip(unit.last.outputs, actual, expected, strict=True)
    )
    outputs = run.recording.repeat(whole.call, results={unit.last: wrong})
    return Ranked(
        unit=unit,
        own=run.compare(unit, actual, expected),
        at_output=run.compare(whole, outputs, whole.call.outputs),
    )
