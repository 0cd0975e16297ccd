"""Insert the products that replace a layer with constant weights and the product of activations that reads it."""

from __future__ import annotations

import functools

import onnx_ir as ir

from edgevit.export.ir_helpers import initializer, insert, insert_row, int64_initializer, module_of, swap_last_axes
from edgevit.types import Array

# Products with the layer's weights, which keep the name of its module.
_OF_LAYER = frozenset({"offsets", "queries", "row", "values"})


class ProductInserter:
    """Inserts nodes before one, named after its module or, if they have the weights of a layer, after the layer's."""

    def __init__(self, before: ir.Node, layer: ir.Node, name: str, graph: ir.Graph) -> None:
        self._before, self._layer, self._name, self._graph = before, layer, name, graph
        self._insert = functools.partial(insert, before=before, graph=graph, like=before.outputs[0])

    def constant(self, step: str, array: Array) -> ir.Value:
        return initializer(self._graph, f"{module_of(self._layer)}/{self._name}.{step}".lstrip("/"), array)

    def product(self, step: str, left: ir.Value, right: ir.Value) -> ir.Value:
        assert left.shape is not None and right.shape is not None
        shape = ir.Shape([*left.shape[:-1], right.shape[-1]])
        return self._insert(self._node("MatMul", step, left, right), shape=shape)

    def add(self, left: ir.Value, right: ir.Value) -> ir.Value:
        return self._insert(self._node("Add", "Add", left, right), shape=left.shape)

    def gather(self, step: str, value: ir.Value, index: int) -> ir.Value:
        """Select one row of the axis behind the batch, and keep the axis."""
        return insert_row(value, 1, index, before=self._before, graph=self._graph, name=self._node_name(step))

    def reshape(self, step: str, value: ir.Value, *sizes: int) -> ir.Value:
        """Reshape each image to these sizes."""
        shape = int64_initializer(self._graph, f"{self._name}.{step}", [0, *sizes])  # 0: the batch as it is
        assert value.shape is not None
        return self._insert(self._node("Reshape", step, value, shape), shape=ir.Shape([value.shape[0], *sizes]))

    def transpose(self, step: str, value: ir.Value) -> ir.Value:
        """Swap the last two axes."""
        return swap_last_axes(value, before=self._before, graph=self._graph, name=self._node_name(step))

    def permute(self, step: str, value: ir.Value, order: list[int]) -> ir.Value:
        assert value.shape is not None
        shape = ir.Shape([value.shape[axis] for axis in order])
        return self._insert(self._node("Transpose", step, value, perm=order), shape=shape)

    def _node(self, op_type: str, step: str, *inputs: ir.Value, **attributes: list[int]) -> ir.Node:
        return ir.node(op_type, inputs, attributes, name=self._node_name(step))

    def _node_name(self, step: str) -> str:
        module = module_of(self._layer if step in _OF_LAYER else self._before)
        return f"{module}/{self._name}_{step}".lstrip("/")
