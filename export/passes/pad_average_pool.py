"""Write average pooling that counts its padding with a Pad before it, for OpenVINO.

Such a pooling divides by the part of each window that lies on the input and its padding. With `ceil_mode` OpenVINO
counts what lies after the padding too. With the zeros in a Pad before it, the pooling has no padding to count:

    AveragePool(x, pads, count_include_pad=1) = AveragePool(Pad(x, pads), count_include_pad=0)
"""

from __future__ import annotations

import onnx_ir as ir

from edgevit.export.ir_helpers import insert, int64_initializer, required_input
from edgevit.export.pooling import counts_partial_windows, padding


def pad_average_pool(model: ir.Model) -> None:
    """Rewrite each average pooling that OpenVINO computes wrongly."""
    for node in list(model.graph):
        if node.op_type == "AveragePool" and not node.domain and counts_partial_windows(node):
            _pad_before(node, model.graph)


def _pad_before(node: ir.Node, graph: ir.Graph) -> None:
    value, pads = required_input(node), padding(node)
    before, after = pads[: len(pads) // 2], pads[len(pads) // 2 :]
    amounts = int64_initializer(graph, f"{node.name}.pads", [0, 0, *before, 0, 0, *after])
    shape = None
    if value.shape is not None:
        added = [0, 0, *(first + last for first, last in zip(before, after, strict=True))]
        sizes = zip(value.shape, added, strict=True)
        shape = ir.Shape([size + extra if isinstance(size, int) else size for size, extra in sizes])
    pad = ir.node("Pad", [value, amounts], name=f"{node.name}_Pad")
    node.replace_input_with(0, insert(pad, before=node, graph=graph, like=value, shape=shape))
    for name in ("pads", "count_include_pad"):
        node.attributes.pop(name, None)
