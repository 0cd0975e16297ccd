"""The folder of a search: locked, read with care."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from edgevit.errors import BuildError, EdgevitError, ExportError, ParityError, PrecisionError, UsageError
from edgevit.pipeline.tuning.racing import Race, judge
from edgevit.pipeline.tuning.space import Variant
from edgevit.pipeline.tuning.workspace import Refusal, open_workspace
from tests.helpers.samples import noisy, report

VARIANT = Variant(fmt="ort", precision="int8")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("EDGEVIT_CACHE", str(tmp_path))
    return tmp_path / "tuning"


def race() -> Race:
    return judge([report(noisy(time, seed=int(time)), name=name) for name, time in (("a", 10.0), ("b", 12.0))])


def test_races_and_refusals_outlive_the_process() -> None:
    with open_workspace("key") as workspace:
        workspace.keep_race(["b", "a"], race())
        workspace.refuse(Refusal.of(VARIANT.name, ParityError("parity failed")))
    with open_workspace("key") as workspace:
        assert workspace.race(["a", "b"]) == race()
        assert workspace.race(["a"]) is None
        assert workspace.refused == {"int8-ort": Refusal("int8-ort", "parity failed", ParityError)}
    with open_workspace("key", fresh=True) as workspace:
        assert (workspace.races, workspace.refused) == ({}, {})


@pytest.mark.parametrize(
    ("error", "again"), [(ExportError, True), (BuildError, True), (ParityError, False), (PrecisionError, False)]
)
def test_only_what_fails_again_is_refused_in_the_next_run(error: type[EdgevitError], *, again: bool) -> None:
    with open_workspace("key") as workspace:
        workspace.refuse(Refusal.of(VARIANT.name, error("x")))
        assert VARIANT.name in workspace.refused
    with open_workspace("key") as workspace:
        assert (VARIANT.name not in workspace.refused) is again


def test_a_refusal_has_the_class_of_its_error_in_the_table_of_exit_statuses() -> None:
    class OpsetError(ExportError):
        pass

    refusal = Refusal.of("fp32-ort", OpsetError("needs opset 20\nand more"))
    assert refusal == Refusal("fp32-ort", "needs opset 20", ExportError)
    assert Refusal.parse(refusal.to_json(), "") == refusal


def test_two_searches_of_one_model_do_not_run_at_once() -> None:
    with open_workspace("key"), pytest.raises(UsageError, match="another edgevit tune"), open_workspace("key"):
        pass
    with open_workspace("key"):
        pass


def test_a_damaged_log_is_ignored_with_one_line(cache: Path, caplog: pytest.LogCaptureFixture) -> None:
    (cache / "key").mkdir(parents=True)
    (cache / "key" / "search.json").write_text('{"schema": 1, "races": {"x": 1}, "refused": {}}')
    with caplog.at_level(logging.WARNING), open_workspace("key") as workspace:
        assert workspace.races == {}
    assert len(caplog.records) == 1


def test_a_damaged_bundle_is_built_again(cache: Path) -> None:
    with open_workspace("key") as workspace:
        folder = workspace.bundle_folder(VARIANT) / "model-int8-ort"
        folder.mkdir(parents=True)
        (folder / "manifest.json").write_text("{}")
        assert workspace.built(VARIANT) is None
        assert not folder.exists()
    assert cache.is_dir()
