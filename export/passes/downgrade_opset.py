"""The same operators under an older opset's number, where the older opset has them with the same meaning.

A graph is captured at opset 21; engines differ in what they read. Between 17 and 21 most operators only gained
element types. What changed its form is put into the older form here; what has none is refused by name.
"""

from __future__ import annotations

import onnx_ir as ir

from edgevit.errors import ExportError
from edgevit.export.ir_helpers import constant, remove_unused

OLDEST = 17
# Operators that first appeared (or changed their meaning) in the opset.
INTRODUCED = {
    "GroupNormalization": 18,
    "Gelu": 20,
    "AffineGrid": 20,
    "DFT": 20,
    "GridSample": 20,
    "RMSNormalization": 23,
    "RotaryEmbedding": 23,
    "Attention": 23,
}
# Reductions whose axes became an input in opset 18.
REDUCTIONS = frozenset({"ReduceMean", "ReduceMax", "ReduceMin", "ReduceProd", "ReduceL1", "ReduceL2", "ReduceLogSum",
                        "ReduceLogSumExp", "ReduceSumSquare"})  # fmt: skip


def downgrade_opset(model: ir.Model, opset: int) -> None:
    current = model.opset_imports[""]
    if not OLDEST <= opset <= current:
        raise ExportError(f"graphs are captured at opset {current} and can be had from {OLDEST} on, not at {opset}")
    for node in model.graph.all_nodes():
        if node.domain:
            continue
        since = INTRODUCED.get(node.op_type, 0)
        if since > opset:
            raise ExportError(f"{node.name} needs opset {since}; ask for --opset {since} or a newer runtime")
        if opset < 18:
            _to_opset_17(node)
        node.version = None
    model.opset_imports[""] = opset
    model.ir_version = 10 if opset >= 21 else 9 if opset >= 20 else 8
    remove_unused(model)


def _to_opset_17(node: ir.Node) -> None:
    if node.op_type == "Split":
        node.attributes.pop("num_outputs", None)
    if node.op_type in REDUCTIONS and len(node.inputs) > 1:
        axes = constant(node.inputs[1])
        if axes is None:
            raise ExportError(f"{node.name} has axes that are computed, which opset 17 cannot say; use opset 18")
        node.attributes.pop("noop_with_empty_axes", None)
        node.attributes["axes"] = ir.AttrInt64s("axes", [int(axis) for axis in axes])
        node.resize_inputs(1)
