"""Energy of an inference: the idle device is subtracted, and the interval contains the truth."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest

from edgevit.errors import UsageError
from edgevit.latency.sampling.energy import EnergyRecord


def record(*, turns: int = 40, noise_j: float = 0.0, seed: int = 0) -> EnergyRecord:
    """Turns of 10 inferences of 0.25 J in 0.2 s, on a device that takes 5 W when idle."""
    random = np.random.default_rng(seed)
    return EnergyRecord(
        sources=("rapl 0 package-0",),
        idle_w=tuple((5 + value,) for value in 20 * noise_j * random.standard_normal(8)),
        turns_j=tuple((5 * 0.2 + 10 * 0.25 + value,) for value in noise_j * random.standard_normal(turns)),
        turns_s=(0.2,) * turns,
        inferences=10,
    )


def test_the_idle_power_is_subtracted() -> None:
    (estimate,) = record().per_inference().values()
    assert estimate.joules == pytest.approx(0.25) and estimate.idle_w == pytest.approx(5)
    assert estimate.interval is not None and estimate.interval.high - estimate.interval.low < 1e-9


def test_the_interval_contains_the_true_energy_in_99_of_100_cases() -> None:
    intervals = [record(noise_j=0.1, seed=seed).per_inference()["rapl 0 package-0"].interval for seed in range(200)]
    held = [interval is not None and 0.25 in interval for interval in intervals]
    assert sum(held) >= 194  # 198 expected
    assert all(interval is not None and interval.high - interval.low < 0.25 for interval in intervals)


def test_noise_larger_than_the_inference_is_no_figure() -> None:
    clear, hidden = (record(noise_j=noise).per_inference()["rapl 0 package-0"] for noise in (0.1, 50.0))
    assert clear.is_above_idle
    assert not hidden.is_above_idle


def test_few_turns_have_no_interval() -> None:
    assert record(turns=7).per_inference()["rapl 0 package-0"].interval is None


def test_a_record_is_unchanged_by_json_and_a_contradiction_is_refused() -> None:
    original = record(noise_j=0.1)
    assert EnergyRecord.from_json(json.loads(json.dumps(original.to_json()))) == original
    for wrong in ({"turns_s": (0.2,)}, {"turns_j": ((1.0, 2.0),) * 40}, {"inferences": 0}, {"idle_w": ()}):
        with pytest.raises(UsageError, match="energy record"):
            dataclasses.replace(original, **wrong)
