"""Inline functions, merge duplicate nodes and initializers, and remove unused nodes.

The exporter writes each axis and pad as a separate Constant with its own Cast and Reshape. They are merged first, so
that later passes see a small graph.
"""

from __future__ import annotations

import onnx_ir as ir
import onnx_ir.passes.common as common_passes

from edgevit.export.ir_helpers import eliminate_identities


def cleanup(model: ir.Model) -> None:
    """Apply onnx_ir's clean-up passes."""
    for rewrite in (
        common_passes.InlinePass(),
        common_passes.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
        eliminate_identities,
        common_passes.DeduplicateInitializersPass(size_limit=1024),
        common_passes.CommonSubexpressionEliminationPass(),
        common_passes.RemoveUnusedNodesPass(),
        common_passes.RemoveUnusedOpsetsPass(),
    ):
        rewrite(model)
