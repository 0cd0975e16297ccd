"""Read the precisions OpenVINO supports here, and the executed precision and MACs of a compiled model."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from edgevit.macs import attention_macs, convolution_macs, matmul_macs
from edgevit.runtimes.precision import ExecutedPrecision, sum_by_precision
from edgevit.types import Shape

DEVICE = "CPU"
CAPABILITIES = {"f32": "FP32", "bf16": "BF16", "f16": "FP16"}  # OpenVINO's names of them, by inference precision
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
    has_weights: bool = False  # whether it multiplies by a constant


class LayerProducts(NamedTuple):
    """The multiply-adds of a layer of the compiled model."""

    layer: str
    precision: str
    macs: int | None  # None if its shapes are unknown


def capabilities(ov: Any) -> Collection[str]:
    """Return the kinds of arithmetic that OpenVINO finds in this processor, such as BF16."""
    found: Collection[str] = ov.Core().get_property(DEVICE, "OPTIMIZATION_CAPABILITIES")
    return found


def multiplying_operators(model: Any) -> dict[str, Operator]:
    """Return the operators of an OpenVINO model that multiply, by name."""
    operators = {}
    for node in model.get_ops():
        kind = node.get_type_name()
        if kind in ("ConvolutionBackpropData", "GroupConvolutionBackpropData"):
            kind = "Deconvolution"
        if kind in _MULTIPLYING:
            operators[node.get_friendly_name()] = Operator(
                matmuls=2 if kind in _ATTENTIONS else 1,
                macs=_macs(kind, node),
                has_weights=kind not in _ATTENTIONS and _is_constant(node.input_value(1)),
            )
    return operators


def read_precision(compiled: Any, operators: Mapping[str, Operator]) -> ExecutedPrecision:
    """Return the layers of a compiled model that multiply, by precision; `operators` are those of its source model."""
    products = layer_products(compiled.get_runtime_model(), operators)
    return sum_by_precision((each.precision, each.macs) for each in products)


def layer_products(model: Any, operators: Mapping[str, Operator]) -> Iterator[LayerProducts]:
    """Yield the multiply-adds of each layer of a runtime model that multiplies."""
    for node in model.get_ops():
        kind = _runtime_info(node, "layerType")
        if kind not in _MULTIPLYING and kind != _COMPILED:
            continue
        reported = _runtime_info(node, "runtimePrecision")
        precision = _PRECISIONS.get(reported.lower(), reported)
        if kind in _MULTIPLYING - _ATTENTIONS:
            yield LayerProducts(node.get_friendly_name(), precision, _macs(kind, node))
            continue
        names = _runtime_info(node, "originalLayersNames").split(",")
        fused = [operators[name] for name in names if name in operators]
        counts = [operator.macs for operator in fused]
        if kind == _COMPILED and precision == "int8" and not _multiplies_int8(node, fused):
            precision = "fp32"
        if fused or kind in _ATTENTIONS:
            macs = None if None in counts else sum(count or 0 for count in counts)
            yield LayerProducts(node.get_friendly_name(), precision, macs)


def _runtime_info(node: Any, name: str) -> str:
    return str(node.get_rt_info()[name].astype(str))


def _multiplies_int8(node: Any, fused: Sequence[Operator]) -> bool:
    """Return whether all matmuls in one layer multiply 8-bit inputs.

    The plugin reports int8 for the whole layer if a single input has 8 bits, even if the others are fp32. Each matmul
    by weights has an 8-bit input for them; its other factor may be quantized within the layer. A chain of n matmuls
    without weights, as in attention, has n + 1 inputs.
    """
    types = [port.get_element_type().to_string() for port in node.inputs()]
    with_weights = sum(operator.matmuls for operator in fused if operator.has_weights)
    others = sum(operator.matmuls for operator in fused if not operator.has_weights)
    return sum(name in ("i8", "u8") for name in types) >= with_weights + others + (others > 0)


def _is_constant(value: Any, depth: int = 6) -> bool:
    """Return whether an input is a constant or computed from constants, as dequantized weights are."""
    node = value.get_node()
    if node.get_type_name() == "Constant":
        return True
    inputs = node.input_values()
    return depth > 0 and bool(inputs) and all(_is_constant(each, depth - 1) for each in inputs)


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
