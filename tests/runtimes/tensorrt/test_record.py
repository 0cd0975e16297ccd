"""EngineRecord: the machine an engine is bound to."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from edgevit.errors import BuildError, BundleError
from edgevit.runtimes.tensorrt.record import EngineRecord

AGX = EngineRecord(
    tensorrt="10.3.0.30",
    compute_capability="8.7",
    gpu="Orin",
    system="Linux-aarch64",
    board="NVIDIA Jetson AGX Orin Developer Kit",
    multiprocessors=16,
    memory_mb=62841,
    gpu_uuid="2f2c4b1e-0000-4000-8000-00000000000a",
    power_mode="0000",
)
# As written by the first version of the record, and by a PC.
ORIN = EngineRecord(tensorrt="10.3.0.30", compute_capability="8.7", gpu="Orin", system="Linux-aarch64")
FIRST_FIELDS = ("tensorrt", "compute_capability", "gpu", "system")


def test_a_record_reads_back_as_written(tmp_path: Path) -> None:
    path = ORIN.write(tmp_path, layers={"fp16": 3})
    assert EngineRecord.read(tmp_path / "model.engine") == ORIN
    assert json.loads(path.read_text("utf-8"))["layers"] == {"fp16": 3}
    assert EngineRecord.read(AGX.write(tmp_path).with_name("model.engine")) == AGX
    assert ORIN.notes == ("tensorrt=10.3.0.30", "compute_capability=8.7", "gpu=Orin", "system=Linux-aarch64")


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"tensorrt": "10.3.0.26"}, "TensorRT 10.3.0.30, here 10.3.0.26"),
        ({"tensorrt": "11.4.1"}, "here 11.4.1"),
        ({"compute_capability": "11.0"}, "compute capability 8.7, here 11.0"),
        ({"gpu": "NVIDIA Thor"}, "GPU Orin, here NVIDIA Thor"),
        ({"system": "Linux-x86_64"}, "system Linux-aarch64, here Linux-x86_64"),
    ],
)
def test_an_engine_of_another_machine_is_an_error_with_the_build_command(changed: dict[str, str], words: str) -> None:
    values = {name: getattr(ORIN, name) for name in EngineRecord.__slots__}
    ORIN.require(ORIN, Path("vit-fp16-trt/model.engine"))
    with pytest.raises(BuildError, match=f"{words}.*edgevit build vit-fp16-trt$"):
        ORIN.require(EngineRecord(**(values | changed)), Path("vit-fp16-trt/model.engine"))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"board": "NVIDIA Jetson Orin NX Engineering Reference Developer Kit"}, "board .* AGX .*, here .* Orin NX"),
        ({"multiprocessors": 8}, "number of multiprocessors 16, here 8"),
        ({"memory_mb": 30698}, "62841 MB of GPU memory, here 30698 MB"),
    ],
)
def test_an_engine_of_another_orin_is_an_error(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(BuildError, match=words):
        AGX.require(replace(AGX, **changes), Path("vit-fp16-trt/model.engine"))


@pytest.mark.parametrize(
    "changes", [{"gpu_uuid": "another of the same model"}, {"memory_mb": 62790}, {"power_mode": "0002"}]
)
def test_an_engine_runs_on_another_device_of_the_same_model(changes: dict[str, Any]) -> None:
    AGX.require(replace(AGX, **changes), Path("vit-fp16-trt/model.engine"))


def test_records_of_the_first_version_are_still_read(tmp_path: Path) -> None:
    path = ORIN.write(tmp_path)
    content = json.loads(path.read_text("utf-8"))
    path.write_text(json.dumps({name: content[name] for name in FIRST_FIELDS} | {"schema_version": 1}), "utf-8")
    record = EngineRecord.read(tmp_path / "model.engine")
    assert record == ORIN
    record.require(AGX, tmp_path / "model.engine")  # fields that are missing in the record are not compared


@pytest.mark.parametrize(
    "changes",
    [
        {"tensorrt": "10.3.0.26"},
        {"gpu": "NVIDIA Thor"},
        {"board": "NVIDIA Jetson Orin NX Engineering Reference Developer Kit"},
        {"multiprocessors": 8},
        {"memory_mb": 30698},
        {"gpu_uuid": "another of the same model"},
        {"power_mode": "0002"},
    ],
)
def test_timings_are_kept_for_one_device_and_power_mode(changes: dict[str, Any]) -> None:
    assert AGX.timing_key.startswith("tensorrt-10.3.0.30-Orin-sm8.7-")
    assert replace(AGX, **changes).timing_key != AGX.timing_key
    assert replace(AGX, memory_mb=62790).timing_key == AGX.timing_key


@pytest.mark.parametrize(
    "content",
    [
        None,
        "",
        "[]",
        "{}",
        "\ufffd{",
        '{"schema_version": 1}',
        '{"schema_version": 2, "tensorrt": "10.3"}',
        '{"schema_version": 2, "tensorrt": "10", "compute_capability": "8.7", "gpu": "", "system": "Linux"}',
        json.dumps({"schema_version": 2, **asdict(AGX), "memory_mb": "x"}),
    ],
)
def test_an_engine_without_a_readable_record_is_an_error(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "engine.json").write_text(content, "utf-8")
    with pytest.raises(BundleError, match="edgevit build"):
        EngineRecord.read(tmp_path / "model.engine")


def test_a_record_of_a_later_version_is_an_error(tmp_path: Path) -> None:
    path = AGX.write(tmp_path)
    path.write_text(path.read_text("utf-8").replace('"schema_version": 2', '"schema_version": 3'), "utf-8")
    with pytest.raises(BundleError, match="another version of edgevit; rebuild: edgevit build"):
        EngineRecord.read(tmp_path / "model.engine")
