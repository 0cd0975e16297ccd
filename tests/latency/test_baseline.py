"""`edgevit latency --baseline`: statuses 0, 2, 7 and 8 on known measurements."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from edgevit.bundles import benchmark
from edgevit.bundles.bundle import Bundle
from edgevit.cli.main import main
from edgevit.latency.compare import latency_json
from edgevit.latency.report import LatencyReport
from tests.helpers.samples import noisy, report


def write(path: Path, *reports: LatencyReport) -> str:
    """Write the reports as `edgevit latency --json` does."""
    path.write_text(json.dumps({"latency": latency_json(reports)}))
    return str(path)


@pytest.fixture
def bundle(shared_bundle: Callable[[str], Bundle]) -> Bundle:
    return shared_bundle("ort")


@pytest.mark.parametrize(
    ("times", "allowed", "status"), [(1.0, [], 0), (1.2, [], 8), (1.2, ["--max-slowdown", "30%"], 0), (1.1, [], 7)]
)
def test_a_bundle_is_compared_with_its_baseline(
    times: float,
    allowed: list[str],
    status: int,
    bundle: Bundle,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    old = write(tmp_path / "old.json", report(noisy(10, seed=1), name=bundle.name))
    now = (report(noisy(10 * times, seed=2), name=bundle.name, run_id="now"),)
    monkeypatch.setattr(benchmark, "measure_bundles", lambda *_, **__: now)
    written = tmp_path / "now.json"
    assert main(["latency", str(bundle.path), "--baseline", old, *allowed, "--json", str(written)]) == status
    result = json.loads(written.read_text())  # written for every status
    assert result.get("exit_status", 0) == status
    (check,) = result["baseline"]
    assert (check["name"], check["failure"] is None) == (bundle.name, status == 0)
    if status == 0:
        assert "times its baseline" in capsys.readouterr().out
        assert check["ratio_interval"][0] < times < check["ratio_interval"][1]


def test_a_slowdown_takes_precedence_over_a_missing_verdict(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = [str(bundle.path), shutil.copytree(bundle.path, str(tmp_path / "other"))]
    names = [bundle.name, "other"]
    old = write(tmp_path / "old.json", *(report(noisy(10, seed=1), name=name) for name in names))
    now = tuple(report(noisy(ms, seed=2), name=name, run_id="now") for ms, name in zip((11, 20), names, strict=True))
    monkeypatch.setattr(benchmark, "measure_bundles", lambda *_, **__: now)
    assert main(["latency", *paths, "--baseline", old]) == 8


BROKEN = {
    "not JSON": "{",
    "JSON of another kind": "[]",
    "a manifest": '{"latency": null}',
    "no evidence": '{"latency": [{"name": "a"}]}',
    "deep nesting": "[" * 100_000,
    "deep nesting of an object": '{"latency": ' + '{"a":' * 100_000,
    "entries of a wrong type": '{"latency": [5]}',
    "evidence of a wrong type": '{"latency": [{"name": "a", "evidence": [1]}]}',
    "an infinite number": '{"latency": Infinity}',
    "an old schema": '{"latency": [{"name": "a", "evidence": {"schema": 0}}]}',
}


@pytest.mark.parametrize("content", BROKEN.values(), ids=BROKEN.keys())
def test_a_damaged_baseline_is_a_usage_error_before_the_measurement(
    content: str, bundle: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "old.json").write_text(content)
    assert main(["latency", str(bundle.path), "--baseline", str(tmp_path / "old.json")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "old.json is not a baseline" in line and len(line) < 500


def test_a_baseline_of_another_bundle_is_a_usage_error(
    bundle: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    old = write(tmp_path / "old.json", report(noisy(10, seed=1), name="another"))
    assert main(["latency", str(bundle.path), "--baseline", old]) == 2
    assert f"has no baseline of {bundle.name}, only of another" in capsys.readouterr().err
    assert main(["latency", str(bundle.path), "--baseline", str(tmp_path / "none.json")]) == 2
    assert main(["latency", str(bundle.path), "--max-slowdown", "5%"]) == 2


@pytest.mark.parametrize("allowed", ["-5%", "nan%", "inf%"])
def test_an_invalid_allowance_is_a_usage_error_before_the_measurement(
    allowed: str, bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(benchmark, "measure_bundles", lambda *_, **__: pytest.fail("measured"))
    old = write(tmp_path / "old.json", report(noisy(10, seed=1), name=bundle.name))
    assert main(["latency", str(bundle.path), "--baseline", old, f"--max-slowdown={allowed}"]) == 2


def test_the_result_of_a_measurement_is_a_baseline(bundle: Bundle, tmp_path: Path) -> None:
    """A busy machine may give no verdict in the second measurement, status 7."""
    old = str(tmp_path / "old.json")
    measure = ["latency", str(bundle.path), "--duration", "0.2", "--threads", "1"]
    assert main([*measure, "--json", old]) == 0
    assert main([*measure, "--baseline", old, "--max-slowdown", "900%"]) in (0, 7)
