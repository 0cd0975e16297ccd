"""The search space: sensible combinations only, and back from JSON."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from edgevit.errors import UsageError
from edgevit.pipeline.tuning import space
from edgevit.pipeline.tuning.space import Configuration, Variant, combined, opened_like, single_changes, usable_threads
from edgevit.runtimes import openvino
from edgevit.runtimes.onnxruntime import OnnxRuntime
from edgevit.runtimes.openvino import OpenVino
from edgevit.runtimes.registry import get_runtime
from edgevit.untrusted import InvalidError, JsonObject

ORT = Configuration(variant=Variant(fmt="ort", precision="fp32"), threads=2)


def test_a_name_tells_the_variant_and_every_setting() -> None:
    assert ORT.name == "fp32-ort: 2 threads"
    assert ORT.with_setting("spinning", "off").name == "fp32-ort: 2 threads, spinning off"
    assert Variant(fmt="ort", precision="int8", form="native-norm").name == "int8-ort-native-norm"


@pytest.mark.parametrize("fmt", ["ort", "openvino"])
def test_each_setting_is_changed_alone(fmt: str) -> None:
    start = Configuration(variant=Variant(fmt=fmt, precision="fp32"), threads=2)
    changes = list(single_changes(start))
    runtime = get_runtime(fmt)
    usable = [runtime.usable_values(setting) for setting in runtime.settings if not setting.of_precision]
    assert len(changes) == sum(len(values) - 1 for values in usable) > 2
    assert all(len(change.session.chosen) == 1 for change in changes)


@pytest.mark.parametrize(
    ("requested", "tried"), [((), (2, 1)), ((1,), (1,)), ((2, 1, 2), (2, 1)), ((4, 2, 8), (2,)), ((4, 8), (2,))]
)
def test_no_more_threads_are_tried_than_there_are_cores(
    requested: tuple[int, ...], tried: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(space, "available_cores", lambda: 2)
    assert usable_threads(requested) == tried


def test_settings_of_threads_are_left_out_for_one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(OnnxRuntime, "usable_values", lambda _, setting: setting.values)  # of a machine that has all
    single = Configuration(variant=ORT.variant, threads=1)
    names = {change.session.chosen[0][0] for change in single_changes(single)}
    assert names == {"arena", "memory_pattern", "denormals", "graph_optimization", "huge_pages"}


def test_a_changed_setting_can_be_changed_back() -> None:
    start = ORT.with_setting("spinning", "off")
    assert ORT in set(single_changes(start))


def test_changes_are_combined() -> None:
    both = combined(ORT, [ORT.with_setting("arena", "off"), ORT.with_setting("spinning", "off")])
    assert both.session.to_json() == {"arena": "off", "spinning": "off"}


def test_int8_needs_calibration_images() -> None:
    names = [each.name for each in space.variants(["ort", "openvino"], calibrated=False)]
    assert set(names) - {"bf16-openvino"} == {"fp32-ort", "fp32-openvino"}
    assert "int8-ort" in [each.name for each in space.variants(["ort"], calibrated=True)]
    assert "fp16-trt" in [each.name for each in space.variants(["trt"], calibrated=False)]


@pytest.mark.parametrize(("has_bf16", "expected"), [(True, ["fp32", "bf16", "int8"]), (False, ["fp32", "int8"])])
def test_bf16_is_tried_where_the_processor_has_it(
    monkeypatch: pytest.MonkeyPatch, has_bf16: bool, expected: list[str]
) -> None:
    known = ("FP32", "INT8", *(["BF16"] if has_bf16 else []))
    monkeypatch.setattr(openvino, "capabilities", lambda _: known)
    assert [each.precision for each in space.variants(["openvino"], calibrated=True)] == expected


def test_only_installed_runtimes_are_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    missing = {"openvino": (None, "missing: pip install 'edgevit[openvino]'")}
    monkeypatch.setattr(space, "usable_version", lambda runtime: missing.get(runtime.fmt, ("1.0", "")))
    formats, reasons = space.usable_formats(["ort", "openvino"])
    assert formats == ["ort"]
    assert "edgevit[openvino]" in reasons["openvino"]
    with pytest.raises(UsageError):
        space.usable_formats(["orrt"])


def test_under_load_the_streams_decide_the_hint() -> None:
    start = Configuration(variant=Variant(fmt="openvino", precision="fp32"), threads=2)
    hints = {"hint" in each.session.to_json() for each in single_changes(start)}
    assert hints == {True, False}
    assert not any("hint" in each.session.to_json() for each in single_changes(replace(start, streams=2)))


def test_a_configuration_under_load_names_its_batch_and_streams() -> None:
    variant = Variant(fmt="ort", precision="fp32", batch=4)
    assert Configuration(variant=variant, threads=2, streams=1).name == "fp32-ort-batch-4: 2 threads, 1 stream"


@pytest.mark.parametrize("streams", [None, 4])
def test_a_configuration_is_read_back_as_it_was_written(streams: int | None) -> None:
    start = replace(ORT.with_setting("denormals", "zero"), variant=replace(ORT.variant, batch=2), streams=streams)
    assert Configuration.parse(JsonObject.of(start.to_json())) == start


@pytest.mark.parametrize(
    "change",
    [
        {"fmt": "x"},
        {"precision": "fp8"},
        {"form": "x"},
        {"threads": 0},
        {"streams": 0},
        {"batch": 0},
        {"session": {"spinning": "x"}},
    ],
)
def test_a_damaged_configuration_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises((InvalidError, UsageError)):
        Configuration.parse(JsonObject.of({**ORT.to_json(), **change}))


def test_the_inference_precision_is_changed_for_int8_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(OpenVino, "usable_values", lambda _, setting: setting.values)  # of a processor that has all
    fp32 = Configuration(variant=Variant(fmt="openvino", precision="fp32"), threads=1)
    int8 = Configuration(variant=Variant(fmt="openvino", precision="int8"), threads=1)
    bf16 = Configuration(variant=Variant(fmt="openvino", precision="bf16"), threads=1)
    found = {name for start in (fp32, int8) for each in single_changes(start) for name in each.session.to_json()}
    assert found == {"pinning", "denormals", "huge_pages", "inference_precision"}
    lowered = int8.with_setting("inference_precision", "bf16").with_setting("denormals", "zero")
    for start in (fp32, bf16):
        assert not any("inference_precision" in each.session.to_json() for each in single_changes(start))
    assert opened_like(fp32, lowered).session.to_json() == {"denormals": "zero"}
    assert opened_like(lowered, fp32).session.to_json() == {"inference_precision": "bf16"}
