"""Write Gelu with Erf, for opsets before 20: x / 2 (1 + erf(x / sqrt 2)), the exact form."""

from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir

from edgevit.errors import ExportError
from edgevit.export.ir_helpers import copy_shape_and_type, initializer, remove_unused, replace_value


def decompose_gelu(model: ir.Model) -> None:
    """Replace each Gelu. Raises ExportError for its tanh approximation."""
    for node in list(model.graph):
        if node.op_type == "Gelu" and not node.domain:
            _decompose(node, model.graph)
    remove_unused(model)


def _decompose(node: ir.Node, graph: ir.Graph) -> None:
    if node.attributes.get_string("approximate", "none") != "none":
        raise ExportError(f"{node.name}: the tanh approximation of GELU needs opset 20; use --opset 20 or nn.GELU()")
    x, dtype = node.inputs[0], node.outputs[0].dtype
    numpy_type = dtype.numpy() if dtype is not None else np.dtype(np.float32)

    def apply(op_type: str, *inputs: ir.Value | None) -> ir.Value:
        step = ir.node(op_type, inputs, name=f"{node.name}_{op_type}")
        graph.insert_before(node, step)
        copy_shape_and_type(step.outputs[0], node.outputs[0])
        return step.outputs[0]

    def number(name: str, value: float) -> ir.Value:
        return initializer(graph, f"{node.name}.{name}", np.asarray(value, numpy_type))

    error_function = apply("Erf", apply("Div", x, number("sqrt2", math.sqrt(2))))
    doubled = apply("Mul", x, apply("Add", error_function, number("one", 1)))
    replace_value(node.outputs[0], apply("Mul", doubled, number("half", 0.5)))
