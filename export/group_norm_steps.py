"""Insert the steps that replace a GroupNormalization."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from edgevit.export.ir_helpers import initializer, int64_initializer, numpy_dtype, required_input


class GroupNormSteps:
    """Inserts nodes before a norm, each named `<norm>_<step>`. A mixed-precision graph keeps them in fp32."""

    def __init__(self, node: ir.Node, graph: ir.Graph) -> None:
        self.x = required_input(node)  # (N, C, H, W)
        self._node, self._graph = node, graph
        self.epsilon = self.number("epsilon", node.attributes.get_float("epsilon", 1e-5))

    def __call__(self, op_type: str, name: str, *inputs: ir.Value, **attributes: int | list[int]) -> ir.Value:
        step = ir.node(op_type, inputs, attributes, name=f"{self._node.name}_{name}")
        self._graph.insert_before(self._node, step)
        return step.outputs[0]

    def mean(self, name: str, value: ir.Value, axes: list[int]) -> ir.Value:
        return self("ReduceMean", name, value, self.axes(axes), keepdims=1)

    def reshape(self, name: str, value: ir.Value, shape: list[int]) -> ir.Value:
        return self("Reshape", name, value, int64_initializer(self._graph, f"{self._node.name}.shape", shape))

    def axes(self, axes: list[int]) -> ir.Value:
        return int64_initializer(self._graph, f"{self._node.name}.axes", axes)

    def number(self, name: str, value: float) -> ir.Value:
        """Add a scalar initializer of the norm's type."""
        return initializer(self._graph, f"{self._node.name}.{name}", np.asarray(value, numpy_dtype(self.x)))
