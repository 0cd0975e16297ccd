"""Rewrite a graph with another library in a child process, without copies of its large weights."""

from __future__ import annotations

import tempfile
from pathlib import Path

from edgevit.errors import ExportError
from edgevit.export.graph import OnnxGraph
from edgevit.export.weights import attach_weights, detach_weights, save_model
from edgevit.subprocesses import last_line, run_python


def rewrite_in_child(graph: OnnxGraph, code: str, *, folder: Path | None = None, timeout_s: float) -> OnnxGraph:
    """Return the graph that `code` writes to the file `sys.argv[2]`, from that in the file `sys.argv[1]`.

    Large weights are inputs in both files. Temporary files are written to `folder`, or to the system's temporary
    folder. Raises ExportError if the child fails, subprocess.TimeoutExpired if it takes too long.
    """
    with tempfile.TemporaryDirectory(prefix="edgevit-", dir=folder) as temporary:
        before, after = Path(temporary) / "before.onnx", Path(temporary) / "after.onnx"
        light, weights = detach_weights(graph.model)
        save_model(light, before)
        done = run_python(str(before), str(after), code=code, timeout_s=timeout_s)
        if done.returncode != 0:
            ended = f"killed by signal {-done.returncode}" if done.returncode < 0 else f"status {done.returncode}"
            raise ExportError(f"the subprocess failed ({last_line(done.stderr) or ended})")
        rewritten = OnnxGraph.load(after)
        attach_weights(rewritten.model, weights)
        return rewritten
