"""onnxsim, on probation: in a process of its own, within a time box, and only where it helps and changes nothing.

A simplifier that crashes, hangs, runs out of memory or changes what the graph computes must not take the export with
it: its result is then left out, and the record says why.
"""

from __future__ import annotations

import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeAlias

import numpy as np
import onnx_ir as ir

from edgevit.errors import ExportError
from edgevit.export.graph import OnnxGraph
from edgevit.export.ir_helpers import remove_unused
from edgevit.subprocesses import run_python
from edgevit.types import Array

TIME_BOX_S = 60.0
_LARGE = 4096  # numbers: no shape and no axis has as many, and weights are folded before
_LARGEST_CHANGE = 1e-5  # of the output's standard deviation: rounding, no more

_CHILD = """
import sys
sys.modules["torch"] = None  # onnxsim would import it, and needs it for nothing here
import onnx, onnxsim
model, ok = onnxsim.simplify(onnx.load(sys.argv[1]), check_n=0)
if not ok:
    sys.exit("onnxsim says that its own result is wrong")
onnx.save(model, sys.argv[2])
"""

Weights: TypeAlias = Mapping[str, ir.TensorProtocol]
Evaluate = Callable[[OnnxGraph], Mapping[str, Array]]


def simplify(
    graph: OnnxGraph,
    evaluate: Evaluate,
    *,
    folder: Path | None = None,
    time_box_s: float = TIME_BOX_S,
    child: str = _CHILD,
) -> OnnxGraph:
    """The graph after onnxsim, or as it was with the reason in its history. `evaluate` runs a graph on test input.

    The files that go to and fro lie in `folder`, which somebody clears where this process is killed; without it, in the
    system's folder for temporary files.
    """
    start = time.perf_counter()

    def left_out(reason: str) -> OnnxGraph:
        elapsed_s = time.perf_counter() - start
        return graph.with_model("onnxsim", graph.model, elapsed_s=elapsed_s, note=f"left out: {reason}")

    try:
        simplified = _run(graph, folder, time_box_s, child)
    except subprocess.TimeoutExpired:
        return left_out(f"not done within {time_box_s:.0f} s")
    except (ExportError, OSError) as error:
        return left_out(str(error))
    if simplified.node_count >= graph.node_count:
        return left_out("nothing to simplify")
    change = _change(evaluate(graph), evaluate(simplified))
    if not change <= _LARGEST_CHANGE:
        return left_out(f"it changes the result by {change:.1e} of its standard deviation")
    return graph.with_model("onnxsim", simplified.model, elapsed_s=time.perf_counter() - start)


def _run(graph: OnnxGraph, folder: Path | None, time_box_s: float, child: str) -> OnnxGraph:
    with tempfile.TemporaryDirectory(prefix="edgevit-", dir=folder) as place:
        before, after = Path(place) / "before.onnx", Path(place) / "after.onnx"
        light, weights = _without_weights(graph)
        light.save(before)
        done = run_python(str(before), str(after), code=child, timeout_s=time_box_s)
        if done.returncode != 0:
            lines = done.stderr.strip().splitlines()
            ended = f"killed by signal {-done.returncode}" if done.returncode < 0 else f"status {done.returncode}"
            raise ExportError(f"it failed ({lines[-1] if lines else ended})")
        return _with_weights(OnnxGraph.load(after), weights)


def _without_weights(graph: OnnxGraph) -> tuple[OnnxGraph, Weights]:
    """The graph with its large weights as inputs, and the weights: 100 MB need not travel to be left as they are."""
    model = graph.model.clone()
    large = {
        name: value.const_value
        for name, value in model.graph.initializers.items()
        if value.const_value is not None and value.const_value.size > _LARGE
    }
    for name in large:
        value = model.graph.initializers.pop(name)
        value.const_value = None
        model.graph.inputs.append(value)
    return OnnxGraph(model), large


def _with_weights(graph: OnnxGraph, weights: Weights) -> OnnxGraph:
    inputs = graph.model.graph.inputs
    for value in [value for value in inputs if value.name in weights]:
        inputs.remove(value)
        value.const_value = weights[str(value.name)]
        graph.model.graph.register_initializer(value)
    remove_unused(graph.model)
    return graph


def _change(before: Mapping[str, Array], after: Mapping[str, Array]) -> float:
    """The largest difference of any output, in that output's standard deviations; infinite where one is missing."""
    if before.keys() != after.keys() or any(before[name].shape != after[name].shape for name in before):
        return float("inf")
    return max(float(np.abs(after[name] - before[name]).max() / (np.std(before[name]) or 1.0)) for name in before)
