"""Skip the decomposition of a program that it would not change.

torch.onnx.export traces every program a second time to decompose its operators, which takes as long as the first
trace. A program is left as it is if all its operators are known to stay whole.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import torch

_ATEN = torch.ops.aten

# Operators without side effects, which PyTorch translates to ONNX as they are. A reshape is not one of them, for
# example: PyTorch replaces it by a view or a copy.
WHOLE = frozenset({
    _ATEN.add.Tensor, _ATEN.cat.default, _ATEN.conv2d.default, _ATEN.gelu.default, _ATEN.group_norm.default,
    _ATEN.layer_norm.default, _ATEN.linear.default, _ATEN.mean.dim, _ATEN.mul.Tensor, _ATEN.pad.default,
    _ATEN.permute.default, _ATEN.relu.default, _ATEN.sigmoid.default, _ATEN.slice.Tensor, _ATEN.sub.Tensor,
    _ATEN.transpose.int,
})  # fmt: skip


def skip_needless_decomposition(program: torch.export.ExportedProgram) -> None:
    """Let `program.run_decompositions` return the program itself if it would change nothing.

    An exporter that does not call it decomposes as ever, and so does one that has no translation of an operator here.
    """
    targets = {node.target for node in program.graph.nodes if node.op not in ("placeholder", "output")}
    if not targets <= WHOLE:
        return
    decompose = program.run_decompositions

    def run_decompositions(table: Mapping[Any, object] | None = None, **options: Any) -> torch.export.ExportedProgram:
        if table is not None and targets.isdisjoint(table):
            return program
        return cast(torch.export.ExportedProgram, decompose(table, **options))

    program.run_decompositions = run_decompositions
