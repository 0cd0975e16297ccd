"""Count the numbers that a convolution in int8 converts between float and integers, by the operators around it.

Its input has to be quantized and its output dequantized, and both change between channels last and the layout of the
float operators, unless its neighbors are integers too. The time that int8 saves grows with the multiply-adds, so the
multiply-adds per converted number show whether a convolution gains: docs/quantization.md.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from collections.abc import Set as AbstractSet

import onnx_ir as ir

from edgevit.export.ir_helpers import only_consumer
from edgevit.export.macs import node_macs, static_shape

# Operators that a runtime runs on integers between layers in int8: of one map, and of several that are all integers.
_OF_ONE = frozenset(
    {"AveragePool", "Clip", "Flatten", "GlobalAveragePool", "MaxPool", "Relu", "Reshape", "Squeeze", "Transpose"}
)
_OF_SEVERAL = frozenset({"Add", "Concat"})


def activated(value: ir.Value) -> ir.Value:
    """Return the value after the ReLU that alone reads it, which quantization to uint8 includes; else the value."""
    reader = only_consumer(value)
    return reader.outputs[0] if reader is not None and reader.op_type == "Relu" and not reader.domain else value


def macs_per_conversion(layers: Collection[ir.Node]) -> Mapping[ir.Node, float]:
    """Return the multiply-adds for each number that is converted, of each convolution, if all `layers` are in int8.

    It is infinite between integers. It is also infinite for a convolution that reads the graph's input, which has few
    channels and is in the plain layout in float too.
    """
    neighbors = _Neighbors(layers)
    return {node: neighbors.macs_per_conversion(node) for node in layers if node.op_type == "Conv"}


class _Neighbors:
    """Tells integers from float numbers around the layers in int8."""

    def __init__(self, layers: Collection[ir.Node]) -> None:
        self._layers: AbstractSet[ir.Node] = frozenset(layers)
        inputs = {node.inputs[0] for node in layers}
        outputs = {activated(node.outputs[0]) for node in layers if node.op_type == "Conv"}
        self._quantized: AbstractSet[ir.Value | None] = inputs | outputs

    def macs_per_conversion(self, node: ir.Node) -> float:
        source, output = node.inputs[0], node.outputs[0]
        if source is None or source.is_graph_input():
            return math.inf
        count = 0.0
        if not self._is_written_as_integers(source):  # once for all its readers
            count += math.prod(static_shape(source)) / sum(use.node in self._layers for use in source.uses())
        if not self._is_read_as_integers(output):
            count += math.prod(static_shape(output))
        return node_macs(node) / count if count else math.inf

    def _is_written_as_integers(self, value: ir.Value | None) -> bool:
        """Whether a value comes from a convolution in int8, through operators that run on integers."""
        while value is not None and (producer := value.producer()) is not None and not producer.domain:
            if producer.op_type in _OF_SEVERAL:
                return all(each in self._quantized or self._is_output(each) for each in producer.inputs)
            if producer.op_type not in _OF_ONE:
                return self._is_output(value)
            value = producer.inputs[0]
        return False

    def _is_output(self, value: ir.Value | None) -> bool:
        """Whether a value is the output of a convolution in int8."""
        producer = value.producer() if value is not None else None
        return producer is not None and producer.op_type == "Conv" and producer in self._layers

    def _is_read_as_integers(self, value: ir.Value) -> bool:
        """Whether all readers of a value are layers in int8, or operators on integers whose readers are."""
        readers = [use.node for use in value.uses()]
        return bool(readers) and not value.is_graph_output() and all(map(self._reads_integers, readers))

    def _reads_integers(self, node: ir.Node) -> bool:
        if node in self._layers:
            return True
        if node.domain:
            return False
        if node.op_type in _OF_SEVERAL:
            known = all(each in self._quantized or self._is_output(each) for each in node.inputs)
            return known and activated(node.outputs[0]) in self._quantized
        return node.op_type in _OF_ONE and self._is_read_as_integers(node.outputs[0])
