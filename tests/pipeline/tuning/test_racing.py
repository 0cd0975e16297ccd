"""Races on recorded samples: slow candidates leave early, what cannot be told apart stays."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import pytest

from edgevit.latency.plan import MeasurePlan
from edgevit.latency.report import LatencyReport
from edgevit.pipeline.tuning.deadline import OutOfTimeError
from edgevit.pipeline.tuning.racing import RUNGS, Race, judge, race, too_slow
from edgevit.untrusted import InvalidError
from tests.helpers.samples import noisy, report


def recorded(times_ms: Mapping[str, float], asked: list[tuple[str, ...]]) -> Callable[..., Sequence[LatencyReport]]:
    """Return a function that measures candidates with known medians; `asked` gets the names of each call."""

    def measure(names: Sequence[str], plan: MeasurePlan) -> Sequence[LatencyReport]:
        asked.append(tuple(names))
        return [
            report(noisy(times_ms[name], seed=len(asked) * 100 + index, rounds=plan.min_rounds), name=name)
            for index, name in enumerate(names)
        ]

    return measure


def forever() -> float:
    return 1e3


def test_a_slower_candidate_is_measured_in_the_first_rung_only() -> None:
    asked: list[tuple[str, ...]] = []
    outcome = race(["a", "b", "c"], recorded({"a": 10.0, "b": 10.05, "c": 20.0}, asked), remaining_s=forever)
    assert asked == [("a", "b", "c"), ("a", "b")]
    assert set(outcome.kept) == {"a", "b"}
    assert outcome.standing("c").dropped
    assert outcome.standing("c").ratio == pytest.approx(2.0, rel=0.05)
    assert outcome.standings[-1].name == "c"


@pytest.mark.parametrize(
    ("first_ms", "images", "expected"),
    [
        ({"a": 20.0, "b": 17_000.0}, {}, ["b"]),
        ({"a": 20.0, "b": 900.0}, {}, []),  # a race costs little, and a first run may prepare memory
        ({"a": 2_000.0, "b": 17_000.0}, {}, []),  # a large model, and less than 10 times as slow
        ({"a": 200.0, "b": 4_000.0}, {"b": 16}, []),  # of 16 images
        ({"a": 20.0, "b": 40_000.0, "c": 17_000.0}, {}, ["c", "b"]),
        ({"b": 17_000.0}, {}, []),
        ({}, {}, []),
    ],
)
def test_one_inference_tells_the_candidates_that_are_too_slow(
    first_ms: dict[str, float], images: dict[str, int], expected: list[str]
) -> None:
    found = too_slow(first_ms, {name: images.get(name, 1) for name in first_ms})
    assert [each.name for each in found] == expected
    assert all(each.dropped and each.runs == 1 and each.ratio > 10 for each in found)


def test_a_single_survivor_ends_the_race() -> None:
    asked: list[tuple[str, ...]] = []
    assert race(["a", "b"], recorded({"a": 10.0, "b": 15.0}, asked), remaining_s=forever).kept == ("a",)
    assert len(asked) == 1 < len(RUNGS)


def test_a_change_within_the_noise_does_not_replace_the_incumbent() -> None:
    close = race(["old", "new"], recorded({"old": 10.0, "new": 9.95}, []), remaining_s=forever)
    assert close.winner("old") == "old"
    assert race(["old", "new"], recorded({"old": 10.0, "new": 8.0}, []), remaining_s=forever).winner("old") == "new"


def test_the_time_for_an_image_decides() -> None:
    measure_one = recorded({"one": 10.0, "four": 36.0}, [])

    def measure(names: Sequence[str], plan: MeasurePlan) -> Sequence[LatencyReport]:
        return [replace(each, batch=4 if each.name == "four" else 1) for each in measure_one(names, plan)]

    outcome = race(["one", "four"], measure, remaining_s=forever)
    assert outcome.winner("one") == "four"
    assert outcome.standing("four").images == 4
    assert outcome.standing("one").ratio == pytest.approx(10 / 9, rel=0.05)


def test_the_second_rung_is_left_out_when_the_time_is_up() -> None:
    asked: list[tuple[str, ...]] = []
    left_s = iter([5.0, 0.0])
    outcome = race(["a", "b"], recorded({"a": 10.0, "b": 10.0}, asked), remaining_s=lambda: next(left_s))
    assert len(asked) == 1
    assert len(outcome.kept) == 2


def test_a_rung_that_runs_out_of_time_leaves_the_earlier_one() -> None:
    asked: list[tuple[str, ...]] = []
    inner = recorded({"a": 10.0, "b": 10.0}, asked)

    def measure(names: Sequence[str], plan: MeasurePlan) -> Sequence[LatencyReport]:
        if asked:
            raise OutOfTimeError
        return inner(names, plan)

    assert len(race(["a", "b"], measure, remaining_s=forever).kept) == 2
    with pytest.raises(OutOfTimeError):
        race(["a", "b"], measure, remaining_s=forever)


def test_each_rung_is_bounded_by_the_time_that_remains() -> None:
    plans: list[MeasurePlan] = []

    def measure(names: Sequence[str], plan: MeasurePlan) -> Sequence[LatencyReport]:
        plans.append(plan)
        return [report(noisy(10.0, seed=index), name=name) for index, name in enumerate(names)]

    race(["a", "b"], measure, remaining_s=lambda: 8.0)
    assert [plan.max_total_s for plan in plans] == [4.0, 8.0]


def test_too_few_rounds_drop_nobody() -> None:
    outcome = judge([report([[10.0]] * 3, name="a"), report([[90.0]] * 3, name="b")])
    assert outcome.kept == ("a", "b")
    assert outcome.standing("b").interval is None


def test_an_outcome_is_read_back_as_it_was_written() -> None:
    outcome = race(["a", "b"], recorded({"a": 10.0, "b": 15.0}, []), remaining_s=forever)
    assert Race.parse(outcome.to_json(), "races") == outcome
    with pytest.raises(InvalidError):
        Race.parse([{**outcome.to_json()[0], "p50_ms": "fast"}], "races")
