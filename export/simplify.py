"""Run onnxsim in a subprocess; keep the result only if it helps.

A simplifier that crashes, hangs, runs out of memory, or changes the graph's interface or outputs must not stop the
export: its result is discarded, and the graph's history records why.

It runs on request only: docs/concepts.md has the figures.
"""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from edgevit.arrays import differences, finite_std
from edgevit.export.child_rewrite import rewrite_in_child
from edgevit.export.graph import OnnxGraph
from edgevit.files import first_line
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
        simplified = rewrite_in_child(graph, child, folder=folder, timeout_s=timeout_s)
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


def _change(before: Mapping[str, Array], after: Mapping[str, Array]) -> float:
    """Return the largest difference of any output in its standard deviations; infinity if names or shapes differ."""
    if before.keys() != after.keys() or any(before[name].shape != after[name].shape for name in before):
        return float("inf")
    return max(
        float(differences(after[name], before[name]).max()) / (finite_std(before[name]) or 1.0) for name in before
    )
