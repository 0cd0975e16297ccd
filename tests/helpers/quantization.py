"""Build small graphs with named layers, run them as written, compare their outputs, and convert them to int8."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnxruntime

from edgevit.export.check import check
from edgevit.export.graph import OnnxGraph
from edgevit.pipeline.export_run import StageTimer
from edgevit.pipeline.precision import PrecisionConverter
from edgevit.pipeline.references import ReferenceData
from edgevit.runtimes.base import BuildOptions
from edgevit.runtimes.onnxruntime import OnnxRuntimeEngine
from edgevit.types import Array, Reference, Run
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


def int8_converter(
    graph: OnnxGraph,
    rows: Array,
    *,
    fmt: str,
    outputs: Mapping[str, Array] | None = None,
    calibration: Array | None = None,
    check_parity: bool = True,
    max_drop: float | None = None,
) -> PrecisionConverter:
    """Return a converter to int8 whose photos, inputs `x`, are `rows`.

    `outputs` are those of the graph itself and `calibration` the same rows unless given.
    """
    photos = {"x": rows}
    reference = Reference(kind="photos", inputs=photos, outputs=load(graph)(photos) if outputs is None else outputs)
    calibration = rows if calibration is None else calibration
    return PrecisionConverter(
        graph=graph,
        fmt=fmt,
        precision="int8",
        references=ReferenceData(outputs=(reference,), calibration={"x": calibration}, eval_dataset=None),
        batch=1,
        threads=1,
        check_parity=check_parity,
        max_drop=max_drop,
        timer=StageTimer(),
    )
