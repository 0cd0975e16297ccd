"""The engines that are kept for --fmt auto: read with care, chosen by what the export may use."""

from __future__ import annotations

import json
import logging
from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from edgevit.pipeline.tuning.device_cache import Choice, cache_file, choose, read_choices, write_choices
from edgevit.pipeline.tuning.space import Configuration, Variant
from edgevit.types import Precision


def choice(precision: Precision, p50_ms: float, *, threads: int = 2, fmt: str = "ort") -> Choice:
    configuration = Configuration(variant=Variant(fmt=fmt, precision=precision), threads=threads)
    if fmt == "ort":
        configuration = configuration.with_setting("arena", "off")
    return Choice(configuration=configuration, p50_ms=p50_ms, accuracy="SNR 40 dB")


INT8, FP32, SINGLE = choice("int8", 1.0), choice("fp32", 2.0), choice("fp32", 3.0, threads=1)
FOUND = (INT8, FP32, SINGLE)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGEVIT_CACHE", str(tmp_path))


def test_choices_are_read_back_as_they_were_written() -> None:
    assert read_choices("key") == ()
    assert write_choices("key", "model", FOUND)
    assert read_choices("key") == FOUND
    assert read_choices("another key") == ()


def test_a_choice_of_an_older_file_has_the_safe_range() -> None:
    wide = replace(INT8, int8_range="full")
    assert write_choices("key", "model", [wide]) and read_choices("key") == (wide,)
    content = json.loads(cache_file("key").read_text())
    del content["choices"][0]["int8_range"]
    cache_file("key").write_text(json.dumps(content))
    assert read_choices("key") == (INT8,)


def kept(new: Sequence[Choice], *, after: Sequence[Choice], refused: Collection[str] = ()) -> tuple[Choice, ...]:
    """Return what is known after two searches."""
    cache_file("key").unlink(missing_ok=True)
    write_choices("key", "model", after)
    write_choices("key", "model", new, refused=refused)
    return read_choices("key")


def test_a_narrower_search_hides_no_better_engine() -> None:
    bf16, fp32 = choice("bf16", 0.45, fmt="openvino"), choice("fp32", 0.6, fmt="openvino")
    ort = choice("fp32", 0.63)
    assert kept([ort], after=[bf16, fp32]) == (bf16, fp32, ort)
    assert kept([bf16, fp32], after=[ort]) == (bf16, fp32, ort)


def test_a_search_that_measures_the_earlier_recommendation_again_decides() -> None:
    other = choice("fp32", 1.5, fmt="openvino")
    again = replace(INT8, p50_ms=1.01)
    assert kept([other, again], after=[INT8, FP32]) == (other, again, FP32)


def test_an_engine_that_is_refused_is_removed() -> None:
    other = choice("fp32", 5.0, fmt="openvino")
    assert kept([other], after=FOUND, refused=[INT8.configuration.name]) == (FP32, SINGLE, other)
    assert kept([other], after=FOUND, refused=["fp32-ort"]) == (INT8, other)


@pytest.mark.parametrize(("ms", "is_first"), [(1.02, True), (1.05, False)])
def test_of_equally_fast_recommendations_the_more_exact_is_the_best(ms: float, *, is_first: bool) -> None:
    exact, int8 = choice("fp32", ms, fmt="openvino"), choice("int8", 1.0)
    for new, after in ((exact, int8), (int8, exact)):
        assert (kept([new], after=[after])[0] == exact) is is_first


def test_times_of_a_busy_machine_are_scaled_by_what_both_searches_measured() -> None:
    bf16, busy = choice("bf16", 1.3, fmt="openvino"), choice("fp32", 1.9)
    assert kept([choice("fp32", 0.63)], after=[bf16, busy])[0] == bf16


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[]",
        '{"schema": 2, "choices": []}',
        '{"schema": 1, "choices": [{"fmt": "ort"}]}',
        json.dumps({"schema": 1, "choices": [{**INT8.to_json(), "session": {"arena": "x"}}]}),
        json.dumps({"schema": 1, "choices": [{**INT8.to_json(), "p50_ms": -1}]}),
        json.dumps({"schema": 1, "choices": [{**INT8.to_json(), "int8_range": "wide"}]}),
    ],
)
def test_a_damaged_cache_is_ignored_with_one_line(content: str, caplog: pytest.LogCaptureFixture) -> None:
    cache_file("key").parent.mkdir()
    cache_file("key").write_text(content)
    with caplog.at_level(logging.WARNING):
        assert read_choices("key") == ()
    (record,) = caplog.records
    assert "is damaged and is ignored" in record.getMessage()


def test_a_cache_that_is_no_file_is_ignored(caplog: pytest.LogCaptureFixture) -> None:
    cache_file("key").mkdir(parents=True)
    with caplog.at_level(logging.WARNING):
        assert read_choices("key") == ()
    assert len(caplog.records) == 1


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"calibrated": True}, INT8),
        ({"calibrated": False}, FP32),
        ({"calibrated": True, "precision": "fp32"}, FP32),
        ({"calibrated": True, "threads": 1}, SINGLE),
        ({"calibrated": False, "precision": "int8"}, None),
        ({"calibrated": True, "threads": 8}, None),
    ],
)
def test_the_best_engine_that_the_options_allow_is_chosen(options: dict[str, Any], expected: Choice | None) -> None:
    found, note = choose(FOUND, **{"precision": None, "threads": None, **options})
    assert found == expected
    assert ("--calib" in note) == (expected is FP32 and not options["calibrated"])
