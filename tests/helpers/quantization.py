"""Build small graphs with named layers, run them as written, and compare their outputs."""

from __future__ import annotations

import numpy as np
import onnxruntime

from edgevit.export.check import check
from edgevit.export.graph import OnnxGraph
from edgevit.runtimes.base import BuildOptions
from edgevit.runtimes.onnxruntime import OnnxRuntimeEngine
from edgevit.types import Array, Run
from tests.helpers.graphs import HEADER, parse


def checked_graph(text: str, **weights: Array) -> OnnxGraph:
    """Return a checked graph from its signature and body; each node is named `net/<its first output>`."""
    graph = parse(f"{HEADER} g {text}", **weights)
    for node in graph.model.graph:
        node.name = f"net/{node.outputs[0].name}"
    return check(graph)


def load(graph: OnnxGraph) -> Run:
    """Prepare a graph to run node by node in ONNX Runtime, without optimizations."""
    return OnnxRuntimeEngine(onnxruntime, graph.to_bytes(), BuildOptions(threads=1), optimized=False).run


def output(graph: OnnxGraph, image: Array) -> Array:
    """Return the output `y` for the input `x`."""
    return load(graph)({"x": image})["y"]


def snr_db(expected: Array, actual: Array) -> float:
    """Return the signal-to-noise ratio in dB."""
    noise_power = ((actual - expected).astype(float) ** 2).mean()
    return 10 * float(np.log10((expected.astype(float) ** 2).mean() / noise_power))
