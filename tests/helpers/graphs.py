"""Graphs as text in; operators and equal numbers out."""

from __future__ import annotations

import numpy as np
import onnx.parser
import onnx_ir as ir
import onnxruntime

from edgevit.export.graph import OnnxGraph
from edgevit.runtimes.base import BuildOptions
from edgevit.runtimes.onnxruntime import OnnxRuntimeEngine
from edgevit.types import Array

BATCH = 3  # what a dynamic batch is tested with


def parse(text: str, **weights: Array) -> OnnxGraph:
    """The graph that `text` writes, in ONNX's own syntax, with `weights` as initializers under their names."""
    model = onnx.parser.parse_model(text)
    for name, array in weights.items():
        model.graph.initializer.append(onnx.numpy_helper.from_array(np.asarray(array), name))
    return OnnxGraph(ir.from_proto(onnx.shape_inference.infer_shapes(model, data_prop=True)))


def run(graph: OnnxGraph, seed: int = 0) -> dict[str, Array]:
    """The graph's outputs on seeded noise, as ONNX Runtime reads it without optimising."""
    random = np.random.default_rng(seed)
    engine = OnnxRuntimeEngine(onnxruntime, graph.to_bytes(), BuildOptions(threads=1), optimised=False)
    feeds = {spec.name: random.standard_normal(spec.with_batch(BATCH)).astype(spec.dtype) for spec in engine.inputs}
    return engine.run(feeds)


def assert_same(before: OnnxGraph, after: OnnxGraph, *, exact: bool = False, within: float = 1e-5) -> None:
    """Both graphs are valid ONNX and compute the same, `within` so much of the standard deviation."""
    onnx.checker.check_model(ir.to_proto(after.model), full_check=True)
    want, got = run(before), run(after)
    assert want.keys() == got.keys()
    for name, array in want.items():
        assert array.shape == got[name].shape
        assert np.abs(array - got[name]).max() <= (0 if exact else within * array.std())
