"""Fold constants and static shape arithmetic.

Uses onnxscript's constant folder without the rewrite rules of its optimizer, because these replace `x + c` by `x` for
c < 1e-8, which is the epsilon of linear attention. Results above 16 MB are not folded, so that expanded tables do not
enlarge the file.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

import onnx_ir as ir
import onnx_ir.passes.common as common_passes
from onnxscript import optimizer

MAX_RESULT_BYTES = 16 * 1024 * 1024


def fold_constants(model: ir.Model) -> None:
    """Fold constants, then merge duplicates and remove unused nodes."""
    with _quiet_folder():
        optimizer.fold_constants_ir(
            model,
            onnx_shape_inference=True,
            input_size_limit=MAX_RESULT_BYTES,
            output_size_limit=MAX_RESULT_BYTES,
        )
    for rewrite in (
        common_passes.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
        common_passes.IdentityEliminationPass(),
        common_passes.DeduplicateInitializersPass(size_limit=1024),
        common_passes.CommonSubexpressionEliminationPass(),
        common_passes.RemoveUnusedNodesPass(),
    ):
        rewrite(model)


@contextmanager
def _quiet_folder() -> Iterator[None]:
    """Suppress the folder's warnings, which report each node that it leaves, such as a Split of a constant."""
    logger = logging.getLogger("onnxscript.optimizer")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
