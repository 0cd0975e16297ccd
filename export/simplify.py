"""Run onnxsim in a subprocess; keep the result only if it helps.

A simplifier that crashes, hangs, runs out of memory, or changes the graph's interface or outputs must not stop the
export: its result is discarded, and the graph's history records why.

It runs on request only: docs/concepts.md has the figures.
"""

from __future__ import annotations

import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from edgevit.arrays import differences, finite_std
from edgevit.errors import ExportError
from edgevit.export.graph import OnnxGraph
from edgevit.export.weights import attach_weights, detach_weights, save_model
from edgevit.files import first_line
from edgevit.subprocesses import last_line, run_python
from edgevit.types import Array

TIMEOUT_S = 60.0
_MAX_CHANGE = 1e-5  # in standard deviations of an output: rounding only

_CHILD = """
import sys
sys.modules["torch"] = None  # onnxsim imports it if it can, but does not need it here
import onnx, onnxsim
model, ok = onnxsim.simplify(onnx.load(sys.argv[1]), check_n=0)
if not ok:
    sys.exit("onnxsim reports that its own result is wrong")
onnx.save(model, sys.argv[2])
"""

Evaluate = Callable[[OnnxGraph], Mapping[str, Array]]


def simplify(
    graph: OnnxGraph,
    evaluate: Evaluate,
    *,
    folder: Path | None = None,
    timeout_s: float = TIMEOUT_S,
    child: str = _CHILD,
) -> OnnxGraph:
    """Return the graph simplified by onnxsim, or unchanged with the reason in its history.

    `evaluate` runs a graph on test inputs and returns its outputs by name. Temporary files are written to `folder`,
    which the caller removes if this process is killed, or to the system's temporary folder.
    """
    start = time.perf_counter()
    try:
        simplified = _run(graph, folder, timeout_s, child)
        if simplified.node_count >= graph.node_count:
            reason = "nothing to simplify"
        elif (simplified.inputs, simplified.outputs) != (graph.inputs, graph.outputs):
            reason = "it changes the inputs or outputs"
        else:
            change = _change(evaluate(graph), evaluate(simplified))
            reason = "" if change <= _MAX_CHANGE else f"it changes the result by {change:.1e} of its standard deviation"
    except subprocess.TimeoutExpired:
        reason = f"not finished within {timeout_s:.0f} s"
    except Exception as error:  # whatever onnxsim returned, its failure is not the user's
        reason = first_line(error)
    elapsed_s = time.perf_counter() - start
    if reason:
        return graph.with_model("onnxsim", graph.model, elapsed_s=elapsed_s, note=f"left out: {reason}")
    return graph.with_model("onnxsim", simplified.model, elapsed_s=elapsed_s)


def _run(graph: OnnxGraph, folder: Path | None, timeout_s: float, child: str) -> OnnxGraph:
    with tempfile.TemporaryDirectory(prefix="edgevit-", dir=folder) as temporary:
        before, after = Path(temporary) / "before.onnx", Path(temporary) / "after.onnx"
        light, weights = detach_weights(graph.model)
        save_model(light, before)
        done = run_python(str(before), str(after), code=child, timeout_s=timeout_s)
        if done.returncode != 0:
            ended = f"killed by signal {-done.returncode}" if done.returncode < 0 else f"status {done.returncode}"
            raise ExportError(f"it failed ({last_line(done.stderr) or ended})")
        simplified = OnnxGraph.load(after)
        attach_weights(simplified.model, weights)
        return simplified


def _change(before: Mapping[str, Array], after: Mapping[str, Array]) -> float:
    """Return the largest difference of any output in its standard deviations; infinity if names or shapes differ."""
    if before.keys() != after.keys() or any(before[name].shape != after[name].shape for name in before):
        return float("inf")
    return max(
        float(differences(after[name], before[name]).max()) / (finite_std(before[name]) or 1.0) for name in before
    )
