"""Explain a parity check that failed during an export."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

from edgevit.errors import ParityError
from edgevit.models.loading import LoadedModel
from edgevit.pipeline.explain import reproducer
from edgevit.pipeline.explain.explanation import Explanation, explain_if_possible
from edgevit.pipeline.explain.search import LIMIT_S, Failure, explain_failure
from edgevit.pipeline.explain.stages import GRAPH, Stage
from edgevit.pipeline.export_run import BuiltBundle, ExportRun
from edgevit.runtimes.output_parity import OutputParity
from edgevit.runtimes.parity import ParityReport


def require_parity(export: ExportRun, bundles: Sequence[BuiltBundle], graph_parity: ParityReport) -> None:
    """Raise ParityError if a stage has failed, with the first module that differs, if the export explains failures."""
    model = export.model
    report = sum((bundle.parity for bundle in bundles), graph_parity)
    try:
        report.require()
    except ParityError as error:
        failed = next((result for result in report.results if not result.passed), None)
        if failed is None or not export.config.explain or not isinstance(model, LoadedModel):
            raise
        explanation = explain_if_possible(failed, partial(_explain, export, model, bundles, failed))
        if explanation.keep_float:
            explanation = replace(explanation, keep_float=(*export.config.keep_float, *explanation.keep_float))
        message = f"{error}; {explanation.sentence}"
        raise ParityError(message, report=report, explanation=explanation) from error


def _explain(
    export: ExportRun, model: LoadedModel, bundles: Sequence[BuiltBundle], failed: OutputParity
) -> Explanation:
    reference = next(each for each in export.references.outputs if each.kind == failed.kind)
    failure = Failure(stage=_stage(export, bundles, failed), result=failed, reference=reference)
    with export.timer.stage(f"explain the failure (at most {LIMIT_S:.0f} s and a step)"):
        return explain_failure(model, failure, folder=export.config.out / reproducer.FOLDER)


def _stage(export: ExportRun, bundles: Sequence[BuiltBundle], failed: OutputParity) -> Stage:
    """Return the graph that a result is about, and the runtime that it ran in."""
    fmt, _, part = failed.stage.partition(": ")
    bundle = next((each for each in bundles if each.fmt == fmt), None)
    if bundle is None:
        graph, fmt = export.captured, GRAPH
    else:
        graph = bundle.specialized if failed.precision == "fp32" else bundle.graph
        fmt = fmt if part == "engine" else GRAPH
    options = replace(export.config.options, precision=failed.precision)
    return Stage(name=failed.stage, fmt=fmt, precision=failed.precision, graph=graph, options=options)
