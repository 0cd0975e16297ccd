"""The steps of a search, with races whose times are known."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from edgevit.bundles.bundle import Bundle
from edgevit.errors import ParityError
from edgevit.export.quantization.groups import GroupChoice
from edgevit.pipeline.tuning import search as steps
from edgevit.pipeline.tuning.deadline import Deadline, OutOfTimeError
from edgevit.pipeline.tuning.racing import Race, Standing
from edgevit.pipeline.tuning.search import Lane, Search
from edgevit.pipeline.tuning.space import Configuration, Variant
from edgevit.pipeline.tuning.workspace import Refusal, Workspace
from edgevit.runtimes.openvino import OpenVino

VARIANTS = [Variant(fmt="openvino", precision=precision) for precision in ("fp32", "bf16", "int8")]


def time_ms(configuration: Configuration) -> float:
    """In bf16 less than in int8 with the rest in fp32, and more than in int8 with the rest in bf16."""
    if configuration.session.to_json() == {"inference_precision": "bf16"}:
        return 5.0
    return {"fp32": 50.0, "bf16": 12.0, "int8": 20.0}[configuration.variant.precision]


def race(configurations: Sequence[Configuration], time_ms: Callable[[Configuration], float] = time_ms) -> Race:
    ordered = sorted(configurations, key=time_ms)
    best = time_ms(ordered[0])
    return Race(
        tuple(
            Standing(
                name=each.name,
                p50_ms=time_ms(each),
                images=1,
                ratio=time_ms(each) / best,
                interval=None,
                runs=9,
                dropped=time_ms(each) > best,
            )
            for each in ordered
        )
    )


def searching(bench: Any, *, variants: Sequence[Variant] = VARIANTS) -> Search:
    """Return a search whose engines are built."""
    nothing_kept: dict[str, Any] = {"refused": {}, "built": lambda _: None}
    anything: Any = SimpleNamespace(batch=1, graph=None, check=lambda: None, **nothing_kept)
    return Search(
        builder=anything,
        workspace=anything,
        bench=bench,
        deadline=anything,
        variants=variants,
        threads=(1,),
        throughput=False,
        on_step=lambda _: None,
        bundles={each.name: anything for each in variants},
        refused=[],
    )


@pytest.fixture(autouse=True)
def of_this_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave forms out, and have all settings of a processor that has them all."""
    monkeypatch.setattr(steps, "other_forms", lambda *_, **__: ())
    monkeypatch.setattr(OpenVino, "usable_values", lambda _, setting: setting.values)


def test_int8_with_the_rest_in_bf16_is_tried_although_bf16_leads() -> None:
    search = searching(SimpleNamespace(race=race))
    search._race_variants()
    for step in search._steps:
        step.run()
    found = {precision: each.session.to_json() for (_, precision), each in search.best.items()}
    assert found == {"fp32": {}, "bf16": {}, "int8": {"inference_precision": "bf16"}}
    assert [step.name for step in search._steps].count("inference precision of openvino-int8") == 1


@pytest.mark.parametrize("end", [OutOfTimeError, KeyboardInterrupt])
@pytest.mark.parametrize(
    ("races", "first"), [(1, "session settings of openvino"), (2, "the rest of session settings of openvino")]
)
def test_a_step_that_has_changed_the_best_is_not_called_not_tried(
    end: type[BaseException], races: int, first: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The time is up before the settings race, or before their combination does."""
    count = 0

    def racing(configurations: Sequence[Configuration]) -> Race:
        nonlocal count
        count += 1
        if count > races:
            raise end
        return race(configurations, settings_ms)

    def settings_ms(configuration: Configuration) -> float:
        return 5.0 if configuration.session.chosen else 10.0

    monkeypatch.setattr(Search, "_build_standard", lambda *_: None)
    search = searching(SimpleNamespace(race=racing), variants=VARIANTS[:1])
    search.run()
    assert search.not_tried[0] == first
    assert bool(search.best[Lane("openvino", "fp32")].session.chosen) is (races == 2)


def test_engines_that_a_killed_search_has_built_need_no_time(
    shared_bundle: Callable[[str], Bundle], tmp_path: Path
) -> None:
    """The time is up at once, for the search and for a step."""
    kept, refused, missing = (Variant(fmt="ort", precision=precision) for precision in ("fp32", "int8", "fp16"))
    trial = replace(kept, groups=(GroupChoice(group="linear", in_int8=False, moved=True),))
    workspace = Workspace(tmp_path)
    for variant in (kept, trial):
        folder = workspace.bundle_folder(variant)
        shutil.copytree(shared_bundle("ort").path, folder / "bundle")
    workspace.refuse(Refusal(refused.name, "its outputs differ", ParityError))
    search = searching(SimpleNamespace(race=race), variants=(kept, refused, missing))
    search.bundles, search.workspace = {}, workspace
    search.deadline = Deadline(1.0, start_s=0.0, clock=lambda: 100.0)
    search.run()
    assert search.bundles.keys() == {kept.name}
    assert [each.name for each in search.refused] == [refused.name]
    assert search.not_tried == [f"build {missing.name}", "race of the variants"]
    assert search._build_trial(trial)
    assert search.bundles.keys() == {kept.name, trial.name}
