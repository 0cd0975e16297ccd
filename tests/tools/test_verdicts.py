"""Counts of verdicts: tries are kept, and a count goes on after them."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from edgevit.latency.plan import MeasurePlan
from edgevit.latency.sampling.sampler import INTERVAL_S
from tests.tools import verdicts
from tests.tools.verdicts import Setting, Try


def outcome(setting: Setting, seed: int) -> Try:
    ratio = 1 + setting.slowdown / 100
    verdict = "slower" if setting.slowdown else "cannot tell"
    return Try(
        seed=seed, ratio=ratio, low=0.97 * ratio, high=1.03 * ratio, rounds=16, others=0, samples=9, verdict=verdict
    )


def test_a_stopped_count_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seeds: list[int] = []

    def compare(setting: Setting, seed: int) -> Try:
        seeds.append(seed)
        return outcome(setting, seed)

    monkeypatch.setattr(verdicts, "compare_once", compare)
    out = tmp_path / "tries.jsonl"

    def count(*words: str) -> str:
        monkeypatch.setattr(sys, "argv", ["verdicts", *words, "--out", str(out)])
        verdicts.main()
        return capsys.readouterr().out.splitlines()[-1]

    count("--slowdown", "10", "--tries", "2")
    with out.open("a") as file:
        file.write('\n{"setting": {"slowd')  # killed while it wrote
    assert "0 tries" in count("--slowdown", "10", "--tries", "3", "--sampling", "off", "--minutes", "-1")
    line = count("--slowdown", "10", "--tries", "3")
    assert seeds == [0, 1, 2]
    assert "3 tries: {'slower': 3}; the interval contains the truth 3 times" in line
    assert "3 tries" in count("--slowdown", "10", "--tries", "3") and seeds == [0, 1, 2]


def test_without_sampling_the_sensors_are_not_read_again(monkeypatch: pytest.MonkeyPatch) -> None:
    plans: list[MeasurePlan] = []

    def stop(_candidates: object, plan: MeasurePlan) -> None:
        plans.append(plan)
        raise InterruptedError

    monkeypatch.setattr(verdicts, "measure", stop)
    for sampling in (True, False):
        with pytest.raises(InterruptedError):
            verdicts.compare_once(Setting(slowdown=0, sampling=sampling), 0)
    on, off = plans
    assert on.sample_interval_s == INTERVAL_S and off.sample_interval_s > 3600
