"""Engines take arrays as they are: read-only, in another order, without axes; and they keep nothing of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from edgevit.runtimes.base import BuildOptions
from edgevit.runtimes.registry import get_runtime
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
