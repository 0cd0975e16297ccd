"""EngineRecord: the machine an engine is bound to."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from edgevit.errors import BuildError, BundleError
from edgevit.runtimes.tensorrt.record import EngineRecord

ORIN = EngineRecord(tensorrt="10.3.0.30", compute_capability="8.7", gpu="Orin", system="Linux-aarch64")


def test_a_record_reads_back_as_written(tmp_path: Path) -> None:
    path = ORIN.write(tmp_path, layers={"fp16": 3})
    assert EngineRecord.read(tmp_path / "model.engine") == ORIN
    assert json.loads(path.read_text("utf-8"))["layers"] == {"fp16": 3}
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
    "content",
    [None, "", "[]", "{}", '{"schema_version": 1}', '{"schema_version": 2, "tensorrt": "10.3"}', "\ufffd{"],
)
def test_an_engine_without_a_readable_record_is_an_error(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "engine.json").write_text(content, "utf-8")
    with pytest.raises(BundleError, match="edgevit build"):
        EngineRecord.read(tmp_path / "model.engine")
