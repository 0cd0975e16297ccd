"""The finalists are checked while there is time, and those that passed are kept."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from edgevit.bundles.bundle import Bundle
from edgevit.errors import EdgevitError, ExportError, MeasureError, ParityError
from edgevit.pipeline.export_run import StageTimer
from edgevit.pipeline.tuning import outcome
from edgevit.pipeline.tuning.device_cache import Choice, read_choices, write_choices
from edgevit.pipeline.tuning.report import recommended
from edgevit.pipeline.tuning.workspace import Refusal
from edgevit.runtimes.parity import ParityReport
from tests.helpers.file_limits import files_up_to
from tests.helpers.tuning_rows import row, verified


@pytest.mark.parametrize(("error", "stays"), [(MeasureError, True), (ParityError, False)])
def test_an_engine_that_there_was_no_time_to_check_is_still_known(
    error: type[EdgevitError], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, stays: bool
) -> None:
    monkeypatch.setenv("EDGEVIT_CACHE", str(tmp_path))
    report: Any = SimpleNamespace(
        model="m",
        refused=[Refusal("int8-ort: 1 thread", "why", error)],
        choices=lambda: [Choice(configuration=row("openvino", 1.0).configuration, p50_ms=1.0, accuracy="")],
    )
    earlier = Choice(configuration=row("ort", 0.5, precision="int8").configuration, p50_ms=0.5, accuracy="")
    write_choices("key", "m", [earlier])
    assert outcome.keep_for_auto(report, "key")
    assert (earlier in read_choices("key")) is stays


def test_the_threads_that_were_tried_are_listed() -> None:
    note = "--threads 4,8 was not tried, since this process may use fewer cores; tried: 1,2"
    assert outcome._threads_note((4, 1, 8), (1, 2)) == note
    assert outcome._threads_note((1,), (1, 2)) == ""


def test_a_full_disk_at_the_end_of_a_search_is_one_line(shared_bundle: Callable[[str], Bundle], tmp_path: Path) -> None:
    """It was the list of all files that could not be copied, with the status of a wrong request."""
    bundle = shared_bundle("ort")
    report: Any = SimpleNamespace(path=tmp_path / "m-fp32-ort", under_load=True, rows=(), to_json=dict)
    with pytest.raises(ExportError) as raised, files_up_to(1000):
        outcome._publish(report, bundle, ParityReport(()))
    pattern = r"cannot write \S+: File too large; free some space, or choose another folder with --out"
    assert re.fullmatch(pattern, str(raised.value))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("exact_ms", "checked"), [(10.1, ["bf16", "fp32"]), (20.0, ["bf16"])])
def test_a_lower_precision_is_not_recommended_before_the_higher_one_is_checked(
    exact_ms: float, checked: list[str]
) -> None:
    """Without time left: an engine that is shown to be slower is not checked."""
    lower, exact = row("openvino", 10.0, precision="bf16"), row("openvino", exact_ms)
    finalists: Any = {each.name: each for each in (exact, lower)}
    examiner: Any = SimpleNamespace(deadline=SimpleNamespace(remaining_s=0.0), verify=lambda *_, **__: verified(0.001))
    found = outcome._verify(examiner, finalists, [exact.latency, lower.latency], StageTimer())
    assert [finalists[name].configuration.variant.precision for name in found] == checked
    winner = recommended(outcome._rows([exact.latency, lower.latency], finalists, found))
    assert winner is not None
    assert winner.configuration.variant.precision == ("fp32" if "fp32" in checked else "bf16")
