"""The steps of a search, with races whose times are known."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest

from edgevit.pipeline.tuning import search as steps
from edgevit.pipeline.tuning.racing import Race, Standing
from edgevit.pipeline.tuning.search import Search
from edgevit.pipeline.tuning.space import Configuration, Variant
from edgevit.runtimes.openvino import OpenVino

VARIANTS = [Variant(fmt="openvino", precision=precision) for precision in ("fp32", "bf16", "int8")]


def time_ms(configuration: Configuration) -> float:
    """In bf16 less than in int8 with the rest in fp32, and more than in int8 with the rest in bf16."""
    if configuration.session.to_json() == {"inference_precision": "bf16"}:
        return 5.0
    return {"fp32": 50.0, "bf16": 12.0, "int8": 20.0}[configuration.variant.precision]


def race(configurations: Sequence[Configuration]) -> Race:
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


def test_int8_with_the_rest_in_bf16_is_tried_although_bf16_leads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(steps, "other_forms", lambda *_, **__: ())
    monkeypatch.setattr(OpenVino, "usable_values", lambda _, setting: setting.values)  # of a processor that has all
    anything: Any = SimpleNamespace(batch=1, graph=None, check=lambda: None, race=race)
    search = Search(
        builder=anything,
        workspace=anything,
        bench=anything,
        deadline=anything,
        variants=VARIANTS,
        threads=(1,),
        throughput=False,
        on_step=lambda _: None,
        bundles={each.name: anything for each in VARIANTS},
        refused=[],
    )
    search._race_variants()
    for step in search._steps:
        step.run()
    found = {precision: each.session.to_json() for (_, precision), each in search.best.items()}
    assert found == {"fp32": {}, "bf16": {}, "int8": {"inference_precision": "bf16"}}
    assert [step.name for step in search._steps].count("inference precision of openvino-int8") == 1
