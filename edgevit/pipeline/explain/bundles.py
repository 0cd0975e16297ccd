"""Explain why the engine of a bundle differs from PyTorch."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from edgevit.bundles.bundle import Bundle
from edgevit.bundles.source_model import require_match
from edgevit.export.check import check
from edgevit.export.graph import OnnxGraph
from edgevit.files import MODEL_FILE
from edgevit.models.loading import LoadedModel, from_module
from edgevit.pipeline.explain import reproducer
from edgevit.pipeline.explain.explanation import Explanation, explain_if_possible
from edgevit.pipeline.explain.search import LIMIT_S, Failure, explain_failure
from edgevit.pipeline.explain.stages import GRAPH, Stage
from edgevit.runtimes.output_parity import OutputParity
from edgevit.runtimes.parity import ParityReport, compare
from edgevit.types import Reference


def explain_bundle(
    bundle: Bundle,
    report: ParityReport,
    *,
    model: LoadedModel,
    references: Sequence[Reference],
    limit_s: float = LIMIT_S,
) -> Explanation:
    """Explain the failed report of a bundle, by the PyTorch model that it was exported from.

    `references` are those that the report is about. The graph is asked before the engine: if it differs too, the
    runtime is not to blame. The part that fails is saved in the folder `explain` beside the bundle. A problem of the
    search stands in the explanation.
    """
    failed = next(result for result in report.results if not result.passed)
    folder = bundle.path.resolve().parent / reproducer.FOLDER

    def explain() -> Explanation:
        return explain_failure(model, _failure(bundle, failed, references), folder=folder, limit_s=limit_s)

    return explain_if_possible(failed, explain)


def match_module(bundle: Bundle, module: nn.Module) -> LoadedModel:
    """Return the model of a module in memory. Raises UsageError if its outputs are not those in the bundle."""
    first = bundle.references()[0].batch(bundle.options.smallest_batch)
    example = [torch.from_numpy(array) for array in first.values()]
    model = from_module(module, example_input=example, preprocessing=bundle.manifest.model.preprocessing)
    require_match(bundle, model)
    return model


def _failure(bundle: Bundle, failed: OutputParity, references: Sequence[Reference]) -> Failure:
    """Return the failure of the bundle's graph, if it fails too, or else that of its engine."""
    reference = next(each for each in references if each.kind == failed.kind)
    graph = check(OnnxGraph.load(bundle.path / MODEL_FILE))
    stage = Stage(name="ONNX", fmt=GRAPH, precision=failed.precision, graph=graph, options=bundle.options)
    run = stage.run_graph(graph)
    found = compare(stage.name, run, [reference], precision=failed.precision, batches=(failed.batch,))
    wrong = next((result for result in found.results if not result.passed), None)
    if wrong is not None:
        return Failure(stage=stage, result=wrong, reference=reference)
    engine = Stage(name=failed.stage, fmt=bundle.fmt, precision=failed.precision, graph=graph, options=bundle.options)
    return Failure(stage=engine, result=failed, reference=reference)
