"""Apply linear layers to the mean over tokens or pixels instead of to each of them.

With rows x_i of a layer's input and y_i of a shortcut,

    mean_i(x_i W + b + y_i) = mean_i(x_i) W + b + mean_i(y_i)

If nothing but a mean is read, as by the heads of ViTAE, Visual Transformers, ConvNeXt and transformers without a class
token, the last layer has one row. The mean moves up through additions, linear layers, 1x1 convolutions, slices of
tokens and transpositions.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TypeAlias

import numpy as np
import onnx_ir as ir

from edgevit.export.ir_helpers import (
    constant,
    insert,
    insert_slice,
    int64_initializer,
    is_pointwise,
    only_consumer,
    remove_unused,
    replace_value,
    sizes_of_image,
)
from edgevit.export.linear import Linear, insert_linear, linear_producing
from edgevit.export.tensor_parts import MeanRow, mark_mean_row

_Rows: TypeAlias = Mapping[int, tuple[int, int]]  # start and end of those that are averaged, by their axis

MIN_SAVED_MACS = 1_000_000  # per image


def mean_before_linear(model: ir.Model, *, min_saved_macs: int = MIN_SAVED_MACS) -> None:
    """Move each mean up to the inputs of the layers before it, if that saves multiply-adds."""
    for node in list(model.graph):
        rows, source = _averaged(node), node.inputs[0] if node.inputs else None
        if rows and source is not None and node.outputs[0].shape is not None:
            mover = _Mover(node, model.graph)
            plan = mover.plan(source, rows)
            if plan.saved_macs >= min_saved_macs:
                replace_value(node.outputs[0], mover.like_output(plan.build()))
    remove_unused(model)


def _averaged(node: ir.Node) -> _Rows:
    """Return the rows that a node averages; none if it averages images, or does anything else."""
    sizes = sizes_of_image(node.inputs[0]) if node.inputs else ()
    if node.domain or not sizes:
        return {}
    axes = constant(node.inputs[1]) if node.op_type == "ReduceMean" and len(node.inputs) > 1 else None
    found = [] if axes is None else sorted((axes % (len(sizes) + 1)).tolist())
    if node.op_type == "GlobalAveragePool":
        found = list(range(2, len(sizes) + 1))
    return {axis: (0, sizes[axis - 1]) for axis in found} if 0 not in found else {}


@dataclass(frozen=True, slots=True)
class _Plan:
    """The mean of a value, with all axes kept, and the multiply-adds per image that are saved before it."""

    saved_macs: int
    build: Callable[[], ir.Value]


class _Mover:
    """Moves the mean of one node up."""

    def __init__(self, mean: ir.Node, graph: ir.Graph) -> None:
        self._mean, self._graph = mean, graph
        self._insert = partial(insert, before=mean, graph=graph, like=mean.outputs[0])
        self._count = 0

    def plan(self, value: ir.Value, rows: _Rows) -> _Plan:
        """Plan the mean of rows of a value."""
        node, found = value.producer(), None
        if only_consumer(value) is not None and node is not None and not node.domain:
            layer = linear_producing(value)
            if layer is not None:
                found = self._of_linear(layer, rows)
            elif is_pointwise(node):
                found = self._of_convolution(node, rows)
            elif node.op_type == "Add":
                found = self._of_sum(node, rows)
            elif node.op_type == "Transpose":
                found = self._of_transpose(node, rows)
            elif node.op_type == "Slice":
                found = self._of_slice(node, rows)
        return _Plan(0, partial(self._of_value, value, rows)) if found is None else found

    def like_output(self, value: ir.Value) -> ir.Value:
        """Return a mean in the shape of the node's output."""
        shape = _sizes(self._mean.outputs[0])
        if len(shape) == len(_sizes(value)):
            return value
        sizes = int64_initializer(self._graph, self._name("shape"), [0, *sizes_of_image(self._mean.outputs[0])])
        return self._insert(ir.node("Reshape", [value, sizes], name=self._name("Reshape")), shape=shape)

    def _of_linear(self, layer: Linear, rows: _Rows) -> _Plan | None:
        sizes = sizes_of_image(layer.source)
        if not sizes or len(sizes) in rows:  # of channels
            return None
        inner = self.plan(layer.source, rows)

        def build() -> ir.Value:
            add = partial(insert_linear, inner.build(), layer.weight, layer.bias, op_type="MatMul")
            output = add(name=f"{layer.product.name}_of_mean", before=self._mean, graph=self._graph)
            return _marked(output, rows, of=layer.output)

        averaged = math.prod(sizes[axis - 1] for axis in rows)
        remaining = math.prod(sizes[:-1]) // averaged
        return _Plan(inner.saved_macs + (averaged - 1) * remaining * layer.weight.size, build)

    def _of_convolution(self, conv: ir.Node, rows: _Rows) -> _Plan | None:
        source, sizes = conv.inputs[0], sizes_of_image(conv.inputs[0])
        if source is None or len(sizes) != 3 or set(rows) != {2, 3}:
            return None
        inner, outputs = self.plan(source, rows), sizes_of_image(conv.outputs[0])[0]

        def build() -> ir.Value:
            mean = inner.build()
            node = ir.node("Conv", [mean, *conv.inputs[1:]], conv.attributes, name=f"{conv.name}_of_mean")
            return _marked(
                self._insert(node, shape=ir.Shape([_sizes(mean)[0], outputs, 1, 1])), rows, of=conv.outputs[0]
            )

        inputs, height, width = sizes
        return _Plan(inner.saved_macs + (height * width - 1) * inputs * outputs, build)

    def _of_sum(self, addition: ir.Node, rows: _Rows) -> _Plan | None:
        left, right = addition.inputs
        if left is None or right is None or not left.shape == right.shape == addition.outputs[0].shape:
            return None
        plans = self.plan(left, rows), self.plan(right, rows)

        def build() -> ir.Value:
            terms = [plan.build() for plan in plans]
            node = ir.node("Add", terms, name=f"{addition.name}_of_mean")
            return _marked(self._insert(node, shape=terms[0].shape), rows, of=addition.outputs[0])

        return _Plan(sum(plan.saved_macs for plan in plans), build)

    def _of_transpose(self, transpose: ir.Node, rows: _Rows) -> _Plan | None:
        source, order = transpose.inputs[0], list(transpose.attributes.get_ints("perm", []))
        if source is None or order[:1] != [0]:  # the batch moves
            return None
        inner = self.plan(source, {order[axis]: ends for axis, ends in rows.items()})

        def build() -> ir.Value:
            mean = inner.build()
            node = ir.node("Transpose", [mean], {"perm": order}, name=f"{transpose.name}_of_mean")
            return _marked(
                self._insert(node, shape=ir.Shape([_sizes(mean)[axis] for axis in order])),
                rows,
                of=transpose.outputs[0],
            )

        return _Plan(inner.saved_macs, build)

    def _of_slice(self, node: ir.Node, rows: _Rows) -> _Plan | None:
        source, *parameters = node.inputs
        sizes, arrays = sizes_of_image(source), [constant(value) for value in parameters]
        if source is None or not sizes or len(arrays) < 3 or any(array is None for array in arrays):
            return None
        starts, ends, axes, *steps = (np.asarray(array) for array in arrays)
        axes = axes % (len(sizes) + 1)
        if not set(axes.tolist()) <= set(rows) or any((step != 1).any() for step in steps):
            return None
        found = dict(rows)
        for axis, start, end in zip(axes.tolist(), starts.tolist(), ends.tolist(), strict=True):
            first, _, _ = slice(start, end).indices(sizes[axis - 1])
            found[axis] = rows[axis][0] + first, rows[axis][1] + first
        return self.plan(source, found)

    def _of_value(self, value: ir.Value, rows: _Rows) -> ir.Value:
        """Insert the mean of a value that no layer computes."""
        parts = {axis: ends for axis, ends in rows.items() if ends != (0, _sizes(value)[axis])}
        if parts:
            value = insert_slice(value, parts, before=self._mean, graph=self._graph, name=self._name("Slice"))
        over = int64_initializer(self._graph, self._name("axes"), list(rows))
        node = ir.node("ReduceMean", [value, over], {"keepdims": 1}, name=self._name("ReduceMean"))
        kept = [1 if axis in rows else size for axis, size in enumerate(_sizes(value))]
        return self._insert(node, shape=ir.Shape(kept))

    def _name(self, step: str) -> str:
        self._count += 1
        return f"{self._mean.name}_{step}_{self._count}"


def _marked(value: ir.Value, rows: _Rows, *, of: ir.Value) -> ir.Value:
    """Note that a value is the mean of rows of another one, and what is noted of that one."""
    value.metadata_props.update(of.metadata_props)
    mark_mean_row(value, MeanRow(tuple((axis, *ends) for axis, ends in sorted(rows.items()))))
    return value


def _sizes(value: ir.Value) -> ir.Shape:
    assert value.shape is not None
    return value.shape
