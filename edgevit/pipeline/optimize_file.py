"""Optimize an ONNX file for a runtime and compare the result with the file itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from edgevit.errors import ExportError, UsageError
from edgevit.export import passes
from edgevit.export.check import check
from edgevit.export.graph import OnnxGraph, PassRecord
from edgevit.export.import_onnx import import_graph
from edgevit.export.lint.refusal import require_supported
from edgevit.files import os_reason
from edgevit.formats import DEFAULT_TENSORRT, get_format
from edgevit.pipeline.evaluators import graph_evaluator
from edgevit.pipeline.onnx_model import undefined_weights
from edgevit.pipeline.references import require_defined
from edgevit.runtimes.parity import ParityReport, compare
from edgevit.types import Array, Reference, TensorSpec

NOISE_ROWS = 4
_SEED = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class OptimizedFile:
    """An optimized ONNX file, and how it was made and compared."""

    path: Path
    fmt: str
    opset: int
    nodes_before: int
    nodes_after: int
    history: tuple[PassRecord, ...]
    parity: ParityReport


def optimize_file(
    source: Path,
    fmt: str,
    *,
    out: Path | None = None,
    opset: int | None = None,
    shapes: Mapping[str, Sequence[int]] | None = None,
    threads: int | None = None,
) -> OptimizedFile:
    """Write `source` in the operator forms of a format, and compare it with the file in ONNX Runtime.

    `out` is `<source>.<fmt>.onnx` by default; `shapes` are those of inputs with dynamic axes besides the batch. Raises
    UsageError if the file cannot be read, ExportError if it cannot be rewritten, lint finds an error in the result or
    the file's own outputs are undefined, and ParityError if the outputs differ; nothing is written then.
    """
    entry = get_format(fmt)
    path = source.with_suffix(f".{entry.name}.onnx") if out is None else out
    if path.exists() and source.exists() and path.samefile(source):
        raise UsageError(f"--out {path} is the file itself; give another name")
    original = OnnxGraph.read(source)
    graph = import_graph(original, shapes=shapes)
    optimized = check(passes.specialize(passes.optimize(graph), entry, opset=opset))
    require_supported(optimized, entry.name, DEFAULT_TENSORRT)
    parity = _compare(original, graph, optimized, threads)
    parity.require()
    try:
        optimized.save(path)
    except OSError as error:
        raise ExportError(f"cannot write {path}: {os_reason(error)}; give another --out") from error
    return OptimizedFile(
        path=path,
        fmt=entry.name,
        opset=optimized.opset,
        nodes_before=original.node_count,
        nodes_after=optimized.node_count,
        history=optimized.history,
        parity=parity,
    )


def _compare(original: OnnxGraph, graph: OnnxGraph, optimized: OnnxGraph, threads: int | None) -> ParityReport:
    """Compare the outputs on seeded noise, with a dynamic batch at two sizes."""
    leading = {spec.shape[0] for spec in graph.inputs if spec.shape}
    batch = next((size for size in leading if isinstance(size, int)), 1)
    rows = NOISE_ROWS * batch
    feeds = _noise(graph.inputs, rows)
    run = graph_evaluator(original, threads=threads)
    parts = [
        run({name: array[start : start + batch] for name, array in feeds.items()}) for start in range(0, rows, batch)
    ]
    del run  # each evaluator holds a copy of the weights
    outputs = {spec.name: np.concatenate([part[spec.name] for part in parts]) for spec in graph.outputs}
    references = [Reference(kind="noise", inputs=feeds, outputs=outputs)]
    require_defined(references, title="the file", undefined_weights=lambda: undefined_weights(original))
    sizes = (1, 2) if "batch" in leading else (batch,)
    return compare(
        "optimized file", graph_evaluator(optimized, threads=threads), references, precision="fp32", batches=sizes
    )


def _noise(inputs: Sequence[TensorSpec], rows: int) -> dict[str, Array]:
    """Return normal noise for floating-point inputs and zeros for others: noise may be no valid index."""
    random = np.random.default_rng(_SEED)
    feeds: dict[str, Array] = {}
    for spec in inputs:
        shape = (rows, *spec.with_batch(1)[1:])
        dtype = np.dtype(spec.dtype)
        values = random.standard_normal(shape) if dtype.kind == "f" else np.zeros(shape)
        feeds[spec.name] = values.astype(dtype)
    return feeds
