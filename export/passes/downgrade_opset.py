"""Convert the graph to an older opset.

Graphs are captured at opset 21; engines support different opsets. From 17 to 21 most operators only gained element
types, so that only the opset number changes. Operators whose form changed are rewritten; operators that the older opset
does not have raise an error.
"""

from __future__ import annotations

import onnx_ir as ir

from edgevit.errors import ExportError
from edgevit.export.ir_helpers import constant, remove_unused

OLDEST_OPSET = 17
# Opset in which an operator was added or changed its meaning.
_INTRODUCED = {
    "GroupNormalization": 18,
    "Gelu": 20,
    "AffineGrid": 20,
    "DFT": 20,
    "GridSample": 20,
    "RMSNormalization": 23,
    "RotaryEmbedding": 23,
    "Attention": 23,
}
# Reductions whose axes are an input from opset 18 on.
_REDUCTIONS = frozenset({"ReduceMean", "ReduceMax", "ReduceMin", "ReduceProd", "ReduceL1", "ReduceL2", "ReduceLogSum",
                        "ReduceLogSumExp", "ReduceSumSquare"})  # fmt: skip


def downgrade_opset(model: ir.Model, opset: int) -> None:
    """Convert the model to `opset`. Raises ExportError if it is out of range or cannot express an operator."""
    current = model.opset_imports[""]
    if not OLDEST_OPSET <= opset <= current:
        raise ExportError(f"opset {opset} is not supported: use one from {OLDEST_OPSET} to {current}")
    for node in model.graph.all_nodes():
        if node.domain:
            continue
        since = _INTRODUCED.get(node.op_type, 0)
        if since > opset:
            raise ExportError(f"{node.name} needs opset {since}; use --opset {since} or a newer runtime")
        if opset < 18:
            _to_opset_17(node)
        node.version = None
    model.opset_imports[""] = opset
    model.ir_version = 10 if opset >= 21 else 9 if opset >= 20 else 8
    remove_unused(model)


def _to_opset_17(node: ir.Node) -> None:
    if node.op_type == "Split":
        node.attributes.pop("num_outputs", None)
    if node.op_type in _REDUCTIONS and len(node.inputs) > 1:
        axes = constant(node.inputs[1])
        if axes is None:
            raise ExportError(f"{node.name} has axes that are not constant, which needs opset 18; use --opset 18")
        node.attributes.pop("noop_with_empty_axes", None)
        node.attributes["axes"] = ir.AttrInt64s("axes", [int(axis) for axis in axes])
        node.resize_inputs(1)
