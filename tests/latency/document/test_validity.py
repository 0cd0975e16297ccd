"""Each condition of a valid measurement is yes, no or unknown, and decides the headline."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from edgevit.latency.clock import Probe
from edgevit.latency.document.content import session_of
from edgevit.latency.document.product import EngineParity
from edgevit.latency.document.verdict import certified, document_verdict, headline
from edgevit.runtimes.parity import ParitySummary
from tests.helpers import documents, samples
from tests.helpers.documents import NAMES, document, product, report, session, trace


def answers(**changes: Any) -> dict[str, str]:
    return {check.name: check.answer for check in session(**changes).entries[0].checks}


def test_a_measurement_that_meets_all_conditions_is_certified() -> None:
    assert set(answers().values()) == {"yes"}
    assert (certified(session()), headline(session())) == ("yes", "certified")


COUNTED = dataclasses.replace(samples.AFTER, throttle_events={"oc1_event_cnt": 5})
UNCOUNTED = dataclasses.replace(samples.BOARD, state=dataclasses.replace(samples.QUIET, throttle_events={}, limits={}))
SPIKED = dataclasses.replace(samples.AFTER, throttle_events={"oc1_event_cnt": 3, "oc3_event_cnt": 900})


@pytest.mark.parametrize(
    ("condition", "changes", "answer"),
    [
        ("clocks held", {"trace": trace(clock=(2000.0, 2000.0, 1700.0, 2000.0))}, "no"),
        ("clocks held", {"trace": trace(clock=(2000.0, 1500.0))}, "unknown"),  # two samples
        ("clocks held", {"trace": None}, "unknown"),
        ("no thermal or current limit", {"trace": trace(limit=2.0)}, "no"),
        ("no thermal or current limit", {"after": COUNTED}, "no"),
        ("no thermal or current limit", {"after": SPIKED}, "yes"),  # OC3 lowers no clock
        ("no thermal or current limit", {"environment": UNCOUNTED, "trace": None}, "unknown"),
        ("warm-up settled", {"steady": False}, "no"),
        ("warm-up settled", {"clock_steady": False}, "no"),
        ("machine's speed constant", {"probes": (Probe(0, 0.5), Probe(1, 0.7))}, "no"),
        ("machine's speed constant", {"probes": ()}, "unknown"),
        ("no load of others", {"after": samples.BUSY_AFTER}, "no"),
        ("no load of others", {"after": dataclasses.replace(samples.AFTER, busy_cpu_s=None)}, "unknown"),
    ],
)
def test_a_condition(condition: str, changes: dict[str, Any], answer: str) -> None:
    found = answers(**changes)
    assert found[condition] == answer
    assert {value for name, value in found.items() if name != condition} <= {"yes", "unknown"}
    assert certified(session(**changes)) == answer


def test_only_spikes_of_over_current_are_said_to_lower_no_clock() -> None:
    before = dataclasses.replace(samples.QUIET, throttle_events={"oc1_event_cnt": 3, "oc3_event_cnt": 0}, time_s=0.0)
    after = dataclasses.replace(SPIKED, throttle_events={"oc1_event_cnt": 4, "oc3_event_cnt": 900}, time_s=100.0)
    one = session(environment=dataclasses.replace(samples.BOARD, state=before), after=after)
    (check,) = [each for each in one.entries[0].checks if each.name == "no thermal or current limit"]
    assert check.evidence == "the machine throttled: oc1_event_cnt +1, oc3_event_cnt 9.0/s, which lowers no clock"


@pytest.mark.parametrize(
    ("condition", "turns", "answer"),
    [
        ("no drift", [[1000.0] * 5] * 10 + [[1200.0] * 5] * 10, "no"),
        ("no drift", [[9000.0] * 10] * 7, "unknown"),
        ("duration", [[50.0] * 20] * 20, "no"),
        ("samples", [[7000.0]] * 10, "no"),
    ],
)
def test_a_condition_of_the_samples(condition: str, turns: list[list[float]], answer: str) -> None:
    shown = {field: getattr(samples.report(turns), field) for field in ("samples_ms", "starts_ns", "rounds")}
    assert answers(**shown)[condition] == answer


@pytest.mark.parametrize(
    ("changes", "details", "answer"),
    [
        ({"parity": None}, {}, "unknown"),
        ({"parity": EngineParity(passed=False, snr_db=3.0)}, {}, "no"),
        ({"engine_sha256": "another engine, built since"}, {}, "unknown"),
        ({}, {"engine_sha256": None}, "unknown"),
    ],
)
def test_parity_counts_only_for_the_engine_that_was_verified(
    changes: dict[str, Any], details: dict[str, Any], answer: str
) -> None:
    first = report()
    known = {name: text for name, text in {**first.details, **details}.items() if text is not None}
    one = session_of([dataclasses.replace(first, details=known)], {NAMES[0]: product(**changes)})
    assert {check.name: check.answer for check in one.entries[0].checks}["parity of this engine"] == answer


def test_the_parity_of_the_open_engine_comes_first() -> None:
    failed = ParitySummary(passed=False, max_error_std=2.0, cosine=0.5)
    assert answers(parity=failed)["parity of this engine"] == "no"


def test_what_was_measured_for_comparison_needs_no_parity() -> None:
    two = session_of([report(), report(NAMES[1])], {NAMES[0]: product()})
    assert "parity of this engine" not in {check.name for check in two.entries[1].checks}
    assert headline(two) == "certified"


def test_the_headline_names_reasons_engines_and_what_is_unknown() -> None:
    slow = report(NAMES[1], 56.0, steady=False, trace=None)
    one = session_of([report(trace=None), slow], {name: product(name) for name in NAMES})
    assert headline(one) == (
        "not certified: the pace did not settle in 40 warm-up runs (int8-ort); unknown: clocks held"
    )
    assert headline(session(trace=None)) == "certified as far as known; unknown: clocks held"
    busy = session(after=samples.BUSY_AFTER)
    assert headline(busy) == "not certified: other processes took 37 % of the cores"
    assert document_verdict(document(session(), busy))[1].startswith("not certified: 1 of 2 runs")
    assert document_verdict(documents.document()) == ("yes", "certified")
