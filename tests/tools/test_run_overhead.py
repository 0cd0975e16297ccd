"""The tool for the overhead of a run measures the same inference both ways."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

import edgevit
from edgevit.bundles.bundle import Bundle
from tests.tools.run_overhead import FORMATS, bare_sessions, main, measure

FEEDS = {"images": np.random.default_rng(0).random((1, 3, 32, 32), np.float32)}


@pytest.mark.parametrize("fmt", FORMATS)
def test_an_overhead_compares_two_measured_times(shared_bundle: Callable[[str], Bundle], fmt: str) -> None:
    with edgevit.load(shared_bundle(fmt), threads=1) as engine:
        found = measure(engine, FEEDS, name="net", seconds=0.05)
        sessions = [title for title, *_ in bare_sessions(engine, FEEDS)]
    assert [each.title for each in found] == [f"net, {title}" for title in sessions]
    for each in found:
        assert each.bare_us > 0 and each.run_us > 0
        assert f"{each.run_us - each.bare_us:+.1f} us" in str(each)


@pytest.mark.parametrize("fmt", FORMATS)
def test_the_engine_answers_as_before_after_the_bare_session(shared_bundle: Callable[[str], Bundle], fmt: str) -> None:
    other = {"images": 1 - FEEDS["images"]}
    with edgevit.load(shared_bundle(fmt), threads=1) as engine:
        expected = engine.run(other)["logits"]
        measure(engine, FEEDS, name="net", seconds=0.01)
        assert np.array_equal(engine.run(other)["logits"], expected)


def test_the_tool_runs(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("sys.argv", ["run_overhead", "--seconds", "0.01"])
    main()
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 1 + 2 * 3 and all("Engine.run:" in line for line in lines[1:])
