"""Engines take arrays as they are: read-only, in another order, without axes; and they keep nothing of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import onnx
import pytest

from edgevit.errors import UsageError
from edgevit.runtimes.base import BatchRange, BuildOptions
from edgevit.runtimes.registry import get_runtime
from edgevit.types import Array
from tests.helpers.formats import ON_CPU

GRAPH = """<ir_version: 10, opset_import: ["" : 20]>
g (float[3, 4] x, float scale) => (float[3, 4] y) { y = Mul (x, scale) }"""


@pytest.mark.parametrize("fmt", ON_CPU)
def test_an_engine_takes_any_array_and_returns_its_own(fmt: str, tmp_path: Path) -> None:
    onnx.save(onnx.parser.parse_model(GRAPH), tmp_path / "model.onnx")
    runtime, options = get_runtime(fmt), BuildOptions()
    fortran = np.asfortranarray(np.arange(12, dtype=np.float32).reshape(3, 4))
    read_only = np.ones((3, 4), np.float32)
    read_only.setflags(write=False)
    with runtime.open(runtime.build(tmp_path / "model.onnx", tmp_path, options).path, options) as engine:
        first = engine.run({"x": fortran, "scale": np.array(2, np.float32)})["y"]
        second = engine.run({"x": read_only, "scale": np.array(3, np.float32)})["y"]
    assert np.array_equal(first, 2 * fortran)
    assert np.array_equal(second, np.full((3, 4), 3, np.float32))
    assert np.array_equal(read_only, np.ones((3, 4)))


CONVOLUTION = """<ir_version: 10, opset_import: ["" : 20]>
g (float[2, 3, 64, 64] x, float[8, 3, 3, 3] w) => (float[2, 8, 62, 62] y) { y = Conv (x, w) }"""


def _read_only(array: Array) -> Array:
    array = array.copy()
    array.setflags(write=False)
    return array


def _channels_last(array: Array) -> Array:
    return np.ascontiguousarray(array.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)


def _sliced(array: Array) -> Array:
    larger = np.zeros((*array.shape[:-1], 2 * array.shape[-1]), array.dtype)
    larger[..., ::2] = array
    return larger[..., ::2]


def _from_buffer(array: Array, offset: int = 0) -> Array:
    return np.frombuffer(bytes(offset) + array.tobytes(), array.dtype, offset=offset).reshape(array.shape)


def _unaligned(array: Array) -> Array:
    return _from_buffer(array, offset=1)


LAYOUTS: Mapping[str, Callable[[Array], Array]] = {
    "read-only": _read_only,
    "channels last": _channels_last,
    "fortran": np.asfortranarray,
    "sliced": _sliced,
    "from a buffer": _from_buffer,
    "unaligned": _unaligned,
}


@pytest.mark.parametrize("fmt", ON_CPU)
def test_the_layout_of_the_inputs_in_memory_changes_no_output(fmt: str, tmp_path: Path) -> None:
    onnx.save(onnx.parser.parse_model(CONVOLUTION), tmp_path / "model.onnx")
    runtime, options = get_runtime(fmt), BuildOptions()
    generator = np.random.default_rng(0)
    shapes = {"x": (2, 3, 64, 64), "w": (8, 3, 3, 3)}
    feeds = {name: generator.standard_normal(shape, np.float32) for name, shape in shapes.items()}
    with runtime.open(runtime.build(tmp_path / "model.onnx", tmp_path, options).path, options) as engine:
        expected = engine.run(feeds)["y"]
        for layout, arrange in LAYOUTS.items():
            arranged = {name: arrange(array) for name, array in feeds.items()}
            assert np.array_equal(arranged["x"], feeds["x"])
            assert np.array_equal(engine.run(arranged)["y"], expected), layout


@pytest.mark.parametrize("fmt", ON_CPU)
def test_wrong_feeds_are_refused_after_right_ones_too(fmt: str, tmp_path: Path) -> None:
    onnx.save(onnx.parser.parse_model(GRAPH), tmp_path / "model.onnx")
    runtime, options = get_runtime(fmt), BuildOptions()
    right = {"x": np.ones((3, 4), np.float32), "scale": np.array(2, np.float32)}
    wrong: list[Any] = [
        {"x": right["x"]},
        {**right, "other": right["x"]},
        {"y": right["x"], "scale": right["scale"]},
        {**right, "x": right["x"].astype(np.float64)},
        {**right, "x": right["x"].astype(">f4")},
        {**right, "x": right["x"].T},
        {**right, "x": right["x"][:, :1]},
        {**right, "scale": np.ones(1, np.float32)},
        {**right, "scale": 2.0},
        {**right, "x": right["x"].tolist()},
        list(right.values()),
    ]
    with runtime.open(runtime.build(tmp_path / "model.onnx", tmp_path, options).path, options) as engine:
        for feeds in wrong:
            assert np.array_equal(engine.run(right)["y"], 2 * right["x"])
            with pytest.raises(UsageError):
                engine.run(feeds)
        assert np.array_equal(engine.run(MappingProxyType(right))["y"], 2 * right["x"])


SUM = """<ir_version: 10, opset_import: ["" : 20]>
g (float[{rows}, 64] x) => (float[{rows}, 64] y, float[{rows}, 64] z) {{ y = Add (x, x) z = Neg (x) }}"""


@pytest.mark.parametrize("rows", ["1", "512", "n"], ids=["small", "large", "dynamic"])
@pytest.mark.parametrize("fmt", ON_CPU)
def test_an_engine_shares_no_memory_with_its_caller_after_a_run(fmt: str, rows: str, tmp_path: Path) -> None:
    onnx.save(onnx.parser.parse_model(SUM.format(rows=rows)), tmp_path / "model.onnx")
    batches = BatchRange(1, 2, 512) if rows == "n" else None
    runtime, options = get_runtime(fmt), BuildOptions(dynamic_batch=batches)
    outputs = []
    with runtime.open(runtime.build(tmp_path / "model.onnx", tmp_path, options).path, options) as engine:
        for index in range(20):
            count = 1 + 100 * (index % 4) if rows == "n" else int(rows)
            x = np.full((count, 64), index, np.float32)
            outputs.append(engine.run({"x": x}))
            x.fill(-1)  # and then freed: its memory is that of a later array
    for index, found in enumerate(outputs):
        assert (found["y"] == 2 * index).all() and (found["z"] == -index).all()


@pytest.mark.parametrize("fmt", ON_CPU)
def test_a_batch_out_of_bounds_is_refused_after_others_within(fmt: str, tmp_path: Path) -> None:
    onnx.save(onnx.parser.parse_model(SUM.format(rows="n")), tmp_path / "model.onnx")
    runtime, options = get_runtime(fmt), BuildOptions(dynamic_batch=BatchRange(1, 2, 3))
    with runtime.open(runtime.build(tmp_path / "model.onnx", tmp_path, options).path, options) as engine:
        for count in (1, 3, 3, 2):
            assert engine.run({"x": np.ones((count, 64), np.float32)})["y"].shape == (count, 64)
        with pytest.raises(UsageError, match="batches of 1:2:3"):
            engine.run({"x": np.ones((4, 64), np.float32)})
