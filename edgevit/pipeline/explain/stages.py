"""The stages that parity is checked at, each with a way to run another graph as the stage runs its own."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from edgevit.export.graph import OnnxGraph
from edgevit.files import MODEL_FILE
from edgevit.pipeline.evaluators import deployed_evaluator, graph_evaluator
from edgevit.runtimes.base import BuildOptions, Runtime
from edgevit.runtimes.registry import get_runtime
from edgevit.types import Precision, Run

GRAPH = "onnx"  # the format whose engine is the graph itself, node by node


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """A graph, and the runtime that it fails in: GRAPH for the graph itself."""

    name: str  # as in the parity report
    fmt: str
    precision: Precision
    graph: OnnxGraph
    options: BuildOptions

    @contextmanager
    def open(self, graph: OnnxGraph) -> Iterator[Run]:
        """Run a graph as this stage does; an engine is built in a temporary folder."""
        if self.fmt == GRAPH:
            yield self.run_graph(graph)
            return
        with tempfile.TemporaryDirectory(prefix="edgevit-") as folder:
            yield from _built(get_runtime(self.fmt), graph, Path(folder), replace(self.options, dynamic_batch=None))

    def run_graph(self, graph: OnnxGraph) -> Run:
        """Run a graph node by node, without a runtime's own rewrites."""
        evaluator = graph_evaluator if self.precision == "fp32" else deployed_evaluator
        return evaluator(graph, threads=self.options.threads)


def _built(runtime: Runtime, graph: OnnxGraph, folder: Path, options: BuildOptions) -> Iterator[Run]:
    graph.save(folder / MODEL_FILE)
    artifact = runtime.build(folder / MODEL_FILE, folder, options)
    with runtime.session(), runtime.open(artifact.path, options) as engine:
        dtypes = {spec.name: spec.dtype for spec in engine.inputs}  # a runtime may remove inputs
        yield lambda feeds: engine.run({name: feeds[name].astype(dtype) for name, dtype in dtypes.items()})
