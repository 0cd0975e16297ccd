"""The engines that are kept for --fmt auto: read with care, chosen by what the export may use."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest

from edgevit.pipeline.tuning.device_cache import Choice, cache_file, choose, read_choices, write_choices
from edgevit.pipeline.tuning.space import Configuration, Variant
from edgevit.types import Precision


def choice(precision: Precision, p50_ms: float, *, threads: int = 2) -> Choice:
    configuration = Configuration(variant=Variant(fmt="ort", precision=precision), threads=threads)
    return Choice(configuration=configuration.with_setting("arena", "off"), p50_ms=p50_ms, accuracy="SNR 40 dB")


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


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[]",
        '{"schema": 2, "choices": []}',
        '{"schema": 1, "choices": [{"fmt": "ort"}]}',
        json.dumps({"schema": 1, "choices": [{**INT8.to_json(), "session": {"arena": "x"}}]}),
        json.dumps({"schema": 1, "choices": [{**INT8.to_json(), "p50_ms": -1}]}),
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
