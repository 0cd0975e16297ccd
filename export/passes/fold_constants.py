"""Constant folding: what can be computed now is, and shape arithmetic of static shapes with it.

onnxscript's folder does the work, and only the folder: its optimiser's rewrite rules also drop `x + c` for a c below
1e-8, which is the epsilon of linear attention. Results above 16 MB stay computed at run time, so that a file does not
grow by an expanded table.
"""

from __future__ import annotations

import onnx_ir as ir
import onnx_ir.passes.common as common_passes
from onnxscript import optimizer

LARGEST_RESULT_BYTES = 16 * 1024 * 1024


def fold_constants(model: ir.Model) -> None:
    optimizer.fold_constants_ir(
        model,
        onnx_shape_inference=True,
        input_size_limit=LARGEST_RESULT_BYTES,
        output_size_limit=LARGEST_RESULT_BYTES,
    )
    for rewrite in (
        common_passes.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
        common_passes.IdentityEliminationPass(),
        common_passes.DeduplicateInitializersPass(size_limit=1024),
        common_passes.CommonSubexpressionEliminationPass(),
        common_passes.RemoveUnusedNodesPass(),
    ):
        rewrite(model)
