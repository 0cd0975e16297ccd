"""What of an ONNX Runtime session multiplies, in which precision, and how much: by its own profile of an inference."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from edgevit.macs import attention_macs, convolution_macs, matmul_macs
from edgevit.runtimes.precision import ExecutedPrecision, sum_by_precision
from edgevit.types import Shape

# Where an operator has its weights among its inputs, (M, C/groups, kH, kW) whatever the layout of the data.
_CONVOLUTIONS = {"Conv": 1, "FusedConv": 1, "NhwcConv": 1, "NhwcFusedConv": 1, "ConvInteger": 1, "QLinearConv": 3}
_PRODUCTS = frozenset({"MatMul", "FusedMatMul", "Gemm", "FusedGemm", "QGemm", "QLinearMatMul", "MatMulInteger",
                       "MatMulIntegerToFloat", "DynamicQuantizeMatMul"})  # fmt: skip
_ATTENTIONS = frozenset({"Attention", "MultiHeadAttention"})


def read_back(profile: Iterable[Mapping[str, Any]]) -> ExecutedPrecision:
    """What a session runs; `profile` has the events that it noted."""
    operators = [
        event["args"] for event in profile if event.get("cat") == "Node" and "op_name" in event.get("args", {})
    ]
    return sum_by_precision(
        (_precision(told), _multiply_adds(told)) for told in operators if _multiplies(told["op_name"])
    )


def _multiplies(op_name: str) -> bool:
    return any(part in op_name for part in ("Conv", "MatMul", "Gemm", "Attention", "Einsum"))


def _precision(told: Mapping[str, Any]) -> str:
    """By the type that the operator reads: a float operator on what was dequantised is a float operator."""
    name = str(told["op_name"])
    types = [next(iter(entry)) for entry in told.get("input_type_shape", [])]
    if name.startswith(("QLinear", "DynamicQuantize")) or "Integer" in name or types[:1] in (["uint8"], ["int8"]):
        return "int8"
    return {"float16": "fp16", "double": "fp64", "bfloat16": "bf16"}.get(types[0] if types else "float", "fp32")


def _multiply_adds(told: Mapping[str, Any]) -> int | None:
    """Of one operator, by the shapes that it ran on; None where they do not tell."""
    name = str(told["op_name"])
    inputs, outputs = _shapes(told.get("input_type_shape", ())), _shapes(told.get("output_type_shape", ()))
    if not inputs or not outputs:
        return None
    if name in _CONVOLUTIONS and len(inputs) > _CONVOLUTIONS[name]:
        weights = inputs[_CONVOLUTIONS[name]]
        return convolution_macs(outputs[0], weights, weights[0]) if weights else None
    if name in _PRODUCTS:
        return matmul_macs(inputs[0], outputs[0])
    if name in _ATTENTIONS and len(inputs) >= 3 and min(len(shape) for shape in inputs[:3]) >= 3:
        return attention_macs(inputs[0], inputs[1], outputs[0])
    return None


def _shapes(entries: Sequence[Mapping[str, Sequence[int]]]) -> list[Shape]:
    """Of the tensors of an operator in order; each entry has one shape, by its type."""
    return [tuple(next(iter(entry.values()))) for entry in entries]
