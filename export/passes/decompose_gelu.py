"""Write Gelu with basic operators, for opsets before 20.

Exact form: x / 2 (1 + erf(x / sqrt 2)). Tanh approximation: x / 2 (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3))).
"""

from __future__ import annotations

import math

import onnx_ir as ir

from edgevit.export.ir_helpers import NodeInserter, remove_unused, replace_value


def decompose_gelu(model: ir.Model) -> None:
    """Replace each Gelu."""
    for node in list(model.graph):
        if node.op_type == "Gelu" and not node.domain:
            _decompose(node, model.graph)
    remove_unused(model)


def _decompose(node: ir.Node, graph: ir.Graph) -> None:
    x, insert = node.inputs[0], NodeInserter(node, graph)
    if node.attributes.get_string("approximate", "none") == "tanh":
        cube = insert("Mul", x, insert("Mul", x, x))
        inner = insert("Add", x, insert("Mul", cube, insert.number("cubic", 0.044715)))
        curve = insert("Tanh", insert("Mul", inner, insert.number("sqrt2_pi", math.sqrt(2 / math.pi))))
    else:
        curve = insert("Erf", insert("Div", x, insert.number("sqrt2", math.sqrt(2))))
    doubled = insert("Mul", x, insert("Add", curve, insert.number("one", 1)))
    replace_value(node.outputs[0], insert("Mul", doubled, insert.number("half", 0.5)))
