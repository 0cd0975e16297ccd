"""References to the weights of an ONNX file: the same model, without their bytes."""

from __future__ import annotations

import errno
from pathlib import Path

import numpy as np
import onnx
import pytest

from edgevit.files import weights_file
from edgevit.runtimes.openvino_convert import convert
from edgevit.runtimes.registry import get_runtime
from edgevit.runtimes.weight_references import write_references
from edgevit.types import Array

TEXT = """<ir_version: 10, opset_import: ["" : 21]>
g (float[1, 200] x) => (float[1, 100] y) { h = MatMul (x, w)  y = Add (h, b) }"""


def save_model(path: Path, weight: Array) -> onnx.ModelProto:
    model = onnx.parser.parse_model(TEXT)
    bias = np.arange(100, dtype=np.float32)
    model.graph.initializer.extend(onnx.numpy_helper.from_array(*pair) for pair in ((weight, "w"), (bias, "b")))
    onnx.save(model, path)
    return model


@pytest.fixture
def weight() -> Array:
    return np.random.default_rng(0).standard_normal((200, 100), dtype=np.float32)


def test_large_weights_become_references_and_nothing_else_changes(tmp_path: Path, weight: Array) -> None:
    model = save_model(tmp_path / "model.onnx", weight)
    assert write_references(tmp_path / "model.onnx", tmp_path / "small.onnx")
    small = onnx.load(tmp_path / "small.onnx", load_external_data=False)
    large = small.graph.initializer[0]
    place = {entry.key: entry.value for entry in large.external_data}
    offset, length = int(place["offset"]), int(place["length"])
    large.raw_data = (tmp_path / place["location"]).read_bytes()[offset : offset + length]
    large.ClearField("external_data")
    large.ClearField("data_location")
    assert small == model


def test_openvino_converts_references_to_the_same_weights(tmp_path: Path, weight: Array) -> None:
    ov = get_runtime("openvino").load()
    save_model(tmp_path / "model.onnx", weight)
    for name in ("references", "a, b"):  # OpenVINO takes no path with a comma, so that one is read as bytes
        (tmp_path / name).mkdir()
        convert(ov, tmp_path / "model.onnx", tmp_path / f"{name[0]}.xml", scratch=tmp_path / name)
    assert [path.suffix for path in (tmp_path / "references").iterdir()] != []
    assert list((tmp_path / "a, b").iterdir()) == []
    assert (tmp_path / "r.bin").read_bytes() == (tmp_path / "a.bin").read_bytes()
    assert (tmp_path / "r.bin").stat().st_size >= weight.nbytes


def test_openvino_converts_a_model_with_a_weights_file_on_a_file_system_without_links(
    tmp_path: Path, weight: Array, monkeypatch: pytest.MonkeyPatch
) -> None:
    def link(*_: object, **__: object) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    ov, path, scratch = get_runtime("openvino").load(), tmp_path / "model.onnx", tmp_path / "scratch"
    model = save_model(path, weight)
    scratch.mkdir()
    monkeypatch.setattr("os.link", link)
    convert(ov, path, tmp_path / "whole.xml", scratch=scratch)
    onnx.save(model, path, save_as_external_data=True, location=weights_file(path).name)
    convert(ov, path, tmp_path / "split.xml", scratch=scratch)
    assert (tmp_path / "split.bin").read_bytes() == (tmp_path / "whole.bin").read_bytes()


@pytest.mark.parametrize("content", [b"", b"\x3a\xff\x01", b"not a model"])
def test_a_damaged_file_gets_no_references(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "model.onnx").write_bytes(content)
    assert not write_references(tmp_path / "model.onnx", tmp_path / "small.onnx")
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]


def test_a_file_without_large_weights_gets_no_references(tmp_path: Path, weight: Array) -> None:
    save_model(tmp_path / "model.onnx", weight[:, :1])
    assert not write_references(tmp_path / "model.onnx", tmp_path / "small.onnx")
