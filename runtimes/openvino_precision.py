"""Executed precision and MACs from OpenVINO's runtime model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from edgevit.macs import attention_macs, convolution_macs, matmul_macs
from edgevit.runtimes.precision import ExecutedPrecision, sum_by_precision
from edgevit.types import Shape

_PRECISIONS = {"f32": "fp32", "f16": "fp16", "bf16": "bf16", "i8": "int8", "u8": "int8", "f64": "fp64"}
_CONVOLUTIONS = frozenset({"Convolution", "GroupConvolution"})
_MATMULS = frozenset({"FullyConnected", "MatMul"})
_ATTENTIONS = frozenset({"ScaledAttn", "MHA", "ScaledDotProductAttention"})
_MULTIPLYING = _CONVOLUTIONS | _MATMULS | _ATTENTIONS | {"Deconvolution"}
# A layer into which several operators were compiled; only their names show which of them multiply.
_COMPILED = "Subgraph"


class Operator(NamedTuple):
    """An operator that multiplies."""

    matmuls: int  # 2 for attention, 1 for every other
    macs: int | None  # None if its shapes are unknown


def multiplying_operators(model: Any) -> dict[str, Operator]:
    """Return the operators of an OpenVINO model that multiply, by name."""
    operators = {}
    for node in model.get_ops():
        kind = node.get_type_name()
        if kind in ("ConvolutionBackpropData", "GroupConvolutionBackpropData"):
            kind = "Deconvolution"
        if kind in _MULTIPLYING:
            operators[node.get_friendly_name()] = Operator(2 if kind in _ATTENTIONS else 1, _macs(kind, node))
    return operators


def read_precision(compiled: Any, operators: Mapping[str, Operator]) -> ExecutedPrecision:
    """Return the layers of a compiled model that multiply, by precision; `operators` are those of its source model."""
    return sum_by_precision(_layers(compiled.get_runtime_model(), operators))


def _layers(model: Any, operators: Mapping[str, Operator]) -> Iterator[tuple[str, int | None]]:
    """Yield the precision and the MACs of each layer that multiplies."""
    for node in model.get_ops():
        kind = _runtime_info(node, "layerType")
        if kind not in _MULTIPLYING and kind != _COMPILED:
            continue
        reported = _runtime_info(node, "runtimePrecision")
        precision = _PRECISIONS.get(reported.lower(), reported)
        if kind in _MULTIPLYING - _ATTENTIONS:
            yield precision, _macs(kind, node)
            continue
        names = _runtime_info(node, "originalLayersNames").split(",")
        fused = [operators[name] for name in names if name in operators]
        counts = [operator.macs for operator in fused]
        if kind == _COMPILED and precision == "int8" and not _multiplies_int8(node, fused):
            precision = "fp32"
        if fused or kind in _ATTENTIONS:
            yield precision, None if None in counts else sum(count or 0 for count in counts)


def _runtime_info(node: Any, name: str) -> str:
    return str(node.get_rt_info()[name].astype(str))


def _multiplies_int8(node: Any, fused: Sequence[Operator]) -> bool:
    """Return whether all matmuls in one layer multiply 8-bit inputs.

    The plugin reports int8 for the whole layer if a single input has 8 bits, even if the others are fp32.
    """
    types = [port.get_element_type().to_string() for port in node.inputs()]
    return sum(name in ("i8", "u8") for name in types) > sum(operator.matmuls for operator in fused)


def _macs(kind: str, node: Any) -> int | None:
    """Return the MACs of an operator or a layer from its shapes, which are (N, C, ...) in every memory layout."""
    inputs, out = [_shape(port) for port in node.inputs()], _shape(node.output(0))
    data, other = inputs[0], inputs[1] if len(inputs) > 1 else None
    if data is None or other is None or out is None:
        return None
    if kind in _CONVOLUTIONS:
        return convolution_macs(out, other, out[1])
    if kind == "Deconvolution":
        return convolution_macs(data, other, data[1])
    if kind in _MATMULS:
        return matmul_macs(data, out)
    return attention_macs(data, other, out)


def _shape(port: Any) -> Shape | None:
    partial = port.get_partial_shape()
    return tuple(int(size) for size in partial.to_shape()) if partial.is_static else None
