"""What of a compiled OpenVINO model multiplies, in which precision, and how much: by what the plugin says of it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from edgevit.macs import attention_macs, convolution_macs, matmul_macs
from edgevit.runtimes.precision import ExecutedPrecision, sum_by_precision
from edgevit.types import Shape

_PRECISIONS = {"f32": "fp32", "f16": "fp16", "bf16": "bf16", "i8": "int8", "u8": "int8", "f64": "fp64"}
_CONVOLUTIONS = frozenset({"Convolution", "GroupConvolution"})
_PRODUCTS = frozenset({"FullyConnected", "MatMul"})
_ATTENTIONS = frozenset({"ScaledAttn", "MHA", "ScaledDotProductAttention"})
_MULTIPLYING = _CONVOLUTIONS | _PRODUCTS | _ATTENTIONS | {"Deconvolution"}
# Several operators compiled into one layer: what multiplies in it is told by their names alone.
_COMPILED = "Subgraph"


class Operator(NamedTuple):
    """An operator of a graph that multiplies."""

    products: int
    multiply_adds: int | None  # None where the shapes do not tell


def operators(model: Any) -> dict[str, Operator]:
    """The operators of a graph that multiply, by name."""
    found = {}
    for node in model.get_ops():
        kind = node.get_type_name()
        if kind in ("ConvolutionBackpropData", "GroupConvolutionBackpropData"):
            kind = "Deconvolution"
        if kind in _MULTIPLYING:
            products = 2 if kind in _ATTENTIONS else 1
            found[node.get_friendly_name()] = Operator(products, _multiply_adds(kind, node))
    return found


def read_back(compiled: Any, asked: Mapping[str, Operator]) -> ExecutedPrecision:
    """What a compiled model runs; `asked` has the graph's operators by name."""
    return sum_by_precision(_layers(compiled.get_runtime_model(), asked))


def _layers(model: Any, asked: Mapping[str, Operator]) -> Iterator[tuple[str, int | None]]:
    """The precision and the multiply-adds of each layer that multiplies."""
    for node in model.get_ops():
        kind = _told(node, "layerType")
        if kind not in _MULTIPLYING and kind != _COMPILED:
            continue
        runs = _told(node, "runtimePrecision")
        precision = _PRECISIONS.get(runs.lower(), runs)
        if kind in _MULTIPLYING - _ATTENTIONS:
            yield precision, _multiply_adds(kind, node)
            continue
        inside = [asked[name] for name in _told(node, "originalLayersNames").split(",") if name in asked]
        counts = [operator.multiply_adds for operator in inside]
        if kind == _COMPILED and precision == "int8" and not _multiplies_int8(node, inside):
            precision = "fp32"
        if inside or kind in _ATTENTIONS:
            yield precision, None if None in counts else sum(count or 0 for count in counts)


def _told(node: Any, name: str) -> str:
    return str(node.get_rt_info()[name].astype(str))


def _multiplies_int8(node: Any, inside: Sequence[Operator]) -> bool:
    """Whether all that several products in one layer multiply comes in 8 bits; one such input makes the plugin call the
    whole layer so, with the others in fp32."""
    types = [port.get_element_type().to_string() for port in node.inputs()]
    return sum(name in ("i8", "u8") for name in types) > sum(operator.products for operator in inside)


def _multiply_adds(kind: str, node: Any) -> int | None:
    """Of an operator or a layer, by its shapes: data are (N, C, ...) whatever their layout in memory."""
    inputs, out = [_shape(port) for port in node.inputs()], _shape(node.output(0))
    data, other = inputs[0], inputs[1] if len(inputs) > 1 else None
    if data is None or other is None or out is None:
        return None
    if kind in _CONVOLUTIONS:
        return convolution_macs(out, other, out[1])
    if kind == "Deconvolution":
        return convolution_macs(data, other, data[1])
    if kind in _PRODUCTS:
        return matmul_macs(data, out)
    return attention_macs(data, other, out)


def _shape(port: Any) -> Shape | None:
    partial = port.get_partial_shape()
    return tuple(int(size) for size in partial.to_shape()) if partial.is_static else None
