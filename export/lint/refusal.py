"""Refuse a graph in which lint finds an error, before anything is built or written from it."""

from __future__ import annotations

from edgevit.errors import ExportError
from edgevit.export.graph import OnnxGraph
from edgevit.export.lint.rules import lint
from edgevit.export.lint.targets import LINTABLE, LintTarget, parse_version


def require_supported(graph: OnnxGraph, fmt: str, trt_version: str) -> None:
    """Raise ExportError with the first lint error: the runtime would refuse the graph or compute it wrongly."""
    if fmt not in LINTABLE:
        return
    target = LintTarget(fmt, parse_version(trt_version))
    for finding in lint(graph, target):
        if finding.level == "error":
            module = f" (module {finding.module})" if finding.module else ""
            raise ExportError(
                f"the graph cannot run on {target}: {finding.node}{module}: {finding.why}; {finding.remedy}"
            )
