"""`edgevit latency --baseline`: what passes, what fails and what cannot be told, on known measurements."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from edgevit.bundles import benchmark
from edgevit.bundles.bundle import Bundle
from edgevit.cli.main import main
from edgevit.latency.report import LatencyReport
from edgevit.pipeline.report import latency_json
from tests.helpers.samples import noisy, report


def write(path: Path, *reports: LatencyReport) -> str:
    """What `edgevit latency --json` writes of such reports."""
    path.write_text(json.dumps({"latency": latency_json(reports)}))
    return str(path)


@pytest.fixture
def bundle(made: Callable[[str], Bundle]) -> Bundle:
    return made("ort")


@pytest.mark.parametrize(
    ("times", "allowed", "status"), [(1.0, [], 0), (1.2, [], 8), (1.2, ["--max-slowdown", "30%"], 0), (1.1, [], 7)]
)
def test_a_bundle_is_held_against_what_it_took_before(
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
    wrote = tmp_path / "now.json"
    assert main(["latency", str(bundle.path), "--baseline", old, *allowed, "--json", str(wrote)]) == status
    result = json.loads(wrote.read_text())  # written whatever the outcome
    assert result.get("exit_status", 0) == status
    (told,) = result["baseline"]
    assert (told["name"], told["failure"] is None) == (bundle.name, status == 0)
    if status == 0:
        assert "times its baseline" in capsys.readouterr().out
        assert told["ratio_interval"][0] < times < told["ratio_interval"][1]


def test_a_slowdown_comes_before_what_cannot_be_told(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = [str(bundle.path), shutil.copytree(bundle.path, str(tmp_path / "other"))]
    names = [bundle.name, "other"]
    old = write(tmp_path / "old.json", *(report(noisy(10, seed=1), name=name) for name in names))
    now = tuple(report(noisy(ms, seed=2), name=name, run_id="now") for ms, name in zip((11, 20), names, strict=True))
    monkeypatch.setattr(benchmark, "measure_bundles", lambda *_, **__: now)
    assert main(["latency", *paths, "--baseline", old]) == 8


BROKEN = {
    "no JSON": "{",
    "another JSON": "[]",
    "a manifest": '{"latency": null}',
    "no evidence": '{"latency": [{"name": "a"}]}',
    "an old schema": '{"latency": [{"name": "a", "evidence": {"schema": 0}}]}',
}


@pytest.mark.parametrize("content", BROKEN.values(), ids=BROKEN.keys())
def test_what_is_no_baseline_is_refused_before_the_measurement(content: str, bundle: Bundle, tmp_path: Path) -> None:
    (tmp_path / "old.json").write_text(content)
    assert main(["latency", str(bundle.path), "--baseline", str(tmp_path / "old.json")]) == 2


def test_a_baseline_of_something_else_is_refused(
    bundle: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    old = write(tmp_path / "old.json", report(noisy(10, seed=1), name="another"))
    assert main(["latency", str(bundle.path), "--baseline", old]) == 2
    assert f"holds no baseline of {bundle.name}; it holds another" in capsys.readouterr().err
    assert main(["latency", str(bundle.path), "--baseline", str(tmp_path / "none.json")]) == 2
    assert main(["latency", str(bundle.path), "--max-slowdown", "5%"]) == 2


@pytest.mark.parametrize("allowed", ["-5%", "nan%", "inf%"])
def test_an_allowance_that_is_none_is_refused_before_the_measurement(
    allowed: str, bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(benchmark, "measure_bundles", lambda *_, **__: pytest.fail("measured for nothing"))
    old = write(tmp_path / "old.json", report(noisy(10, seed=1), name=bundle.name))
    assert main(["latency", str(bundle.path), "--baseline", old, f"--max-slowdown={allowed}"]) == 2


def test_a_real_measurement_is_a_baseline(bundle: Bundle, tmp_path: Path) -> None:
    """Whether it is as fast the second time is up to the machine, which may be busy."""
    old = str(tmp_path / "old.json")
    measure = ["latency", str(bundle.path), "--duration", "0.2", "--threads", "1"]
    assert main([*measure, "--json", old]) == 0
    assert main([*measure, "--baseline", old, "--max-slowdown", "900%"]) in (0, 7)
