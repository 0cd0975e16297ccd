"""Tidy: what the exporter repeats is kept once, and what nothing reads is dropped.

The exporter writes every axis and every pad as a Constant of its own, cast and reshaped; equal ones fall together
here, before anything expensive looks at the graph.
"""

from __future__ import annotations

import onnx_ir as ir
import onnx_ir.passes.common as common_passes


def cleanup(model: ir.Model) -> None:
    for rewrite in (
        common_passes.InlinePass(),
        common_passes.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
        common_passes.IdentityEliminationPass(),
        common_passes.DeduplicateInitializersPass(size_limit=1024),
        common_passes.CommonSubexpressionEliminationPass(),
        common_passes.RemoveUnusedNodesPass(),
        common_passes.RemoveUnusedOpsetsPass(),
    ):
        rewrite(model)
