"""Build small graphs from ONNX text, run them, and compare their outputs."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx.parser
import onnx_ir as ir
import onnxruntime

from edgevit.export import passes
from edgevit.export.graph import OnnxGraph
from edgevit.runtimes.base import BuildOptions
from edgevit.runtimes.onnxruntime import OnnxRuntimeEngine
from edgevit.types import Array

BATCH = 3  # the batch size for a dynamic batch
HEADER = '<ir_version: 10, opset_import: ["" : 21]>'  # of a graph in ONNX's text syntax, as it is captured

# Operators that an optimized graph never contains: each costs copies in some engine or is rejected by its parser.
UNWANTED_OPERATORS = frozenset({
    "ScatterND", "ScatterElements", "Einsum", "Tile", "NonZero", "Loop", "If", "Scan", "Unique", "GatherND",
    "SequenceAt", "SequenceConstruct", "ConstantOfShape", "Range", "Shape", "CastLike",
})  # fmt: skip
MAX_RANK = 5


def parse(text: str, **weights: Array) -> OnnxGraph:
    """Parse a graph in ONNX's text syntax and add `weights` as initializers."""
    model = onnx.parser.parse_model(text)
    for name, array in weights.items():
        model.graph.initializer.append(onnx.numpy_helper.from_array(np.asarray(array), name))
    return OnnxGraph(ir.from_proto(onnx.shape_inference.infer_shapes(model, data_prop=True)))


def noise(*shape: int, seed: int = 1, scale: float = 1.0, offset: float = 0.0) -> Array:
    """Return seeded float32 noise around `offset` with standard deviation `scale`."""
    return (offset + scale * np.random.default_rng(seed).standard_normal(shape)).astype(np.float32)


def batchnorm_parameters(channels: int) -> dict[str, Array]:
    """Return scale, bias, mean and variance of a BatchNormalization that changes every channel."""
    return {
        "scale": noise(channels, seed=2, offset=1),
        "bias": noise(channels, seed=3),
        "mean": noise(channels, seed=4),
        "var": np.abs(noise(channels, seed=5)) + 0.5,
    }


def run(graph: OnnxGraph, seed: int = 0) -> dict[str, Array]:
    """Run a graph on seeded noise in ONNX Runtime without optimizations; return the outputs by name."""
    random = np.random.default_rng(seed)
    engine = OnnxRuntimeEngine(onnxruntime, graph.to_bytes(), BuildOptions(threads=1), optimized=False)
    feeds = {spec.name: random.standard_normal(spec.with_batch(BATCH)).astype(spec.dtype) for spec in engine.inputs}
    return engine.run(feeds)


def assert_same(before: OnnxGraph, after: OnnxGraph, *, exact: bool = False, within: float = 1e-5) -> None:
    """Assert that `after` is valid ONNX and has the same outputs as `before`.

    The largest difference of each output may be `within` times the output's standard deviation; 0 if `exact`.
    """
    onnx.checker.check_model(ir.to_proto(after.model), full_check=True)
    want, got = run(before), run(after)
    assert want.keys() == got.keys()
    for name, array in want.items():
        assert array.shape == got[name].shape
        assert np.abs(array - got[name]).max() <= (0 if exact else within * array.std())


def unwanted_operators(graph: OnnxGraph) -> dict[str, int]:
    """Return the number of nodes of each unwanted operator; empty for a clean graph."""
    return {name: count for name, count in graph.operators.items() if name in UNWANTED_OPERATORS}


def max_rank(graph: OnnxGraph) -> int:
    """Return the largest rank of any tensor in the graph."""
    return max(
        len(value.shape) for node in graph.model.graph.all_nodes() for value in node.outputs if value.shape is not None
    )


def broken_optimize(*, factor: float) -> Callable[[OnnxGraph], OnnxGraph]:
    """Return `passes.optimize` with a fault: the first weight of the graph is multiplied by a factor."""
    optimize = passes.optimize

    def broken(graph: OnnxGraph) -> OnnxGraph:
        graph = optimize(graph)
        weight = next(iter(graph.model.graph.initializers.values()))
        assert weight.const_value is not None
        weight.const_value = ir.tensor(weight.const_value.numpy() * np.float32(factor), name=weight.name)
        return graph

    return broken
