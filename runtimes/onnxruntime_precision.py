"""Executed precision and MACs from ONNX Runtime's profile."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from edgevit.macs import attention_macs, convolution_macs, matmul_macs
from edgevit.runtimes.precision import ExecutedPrecision, sum_by_precision
from edgevit.types import Shape

# Convolutions, with the index of their weights among the inputs: (M, C/groups, kH, kW) in every data layout.
CONVOLUTIONS = {"Conv": 1, "FusedConv": 1, "NhwcConv": 1, "NhwcFusedConv": 1, "ConvInteger": 1, "QLinearConv": 3}
_MATMULS = frozenset({"MatMul", "FusedMatMul", "Gemm", "FusedGemm", "QGemm", "QLinearMatMul", "MatMulInteger",
                      "MatMulIntegerToFloat", "DynamicQuantizeMatMul"})  # fmt: skip
_ATTENTIONS = frozenset({"Attention", "MultiHeadAttention"})


def read_precision(profile: Iterable[Mapping[str, Any]]) -> ExecutedPrecision:
    """Return the layers that multiply by precision, from the events of a session's profile of one inference."""
    operators = [event["args"] for event in profile if is_operator(event)]
    multiplying = [operator for operator in operators if _multiplies(operator["op_name"])]
    return sum_by_precision((operator_precision(each), operator_macs(each)) for each in multiplying)


def is_operator(event: Mapping[str, Any]) -> bool:
    """Whether an event of a profile is the run of an operator, with its shapes and types in `args`."""
    return event.get("cat") == "Node" and "op_name" in event.get("args", {})


def _multiplies(op_name: str) -> bool:
    return any(part in op_name for part in ("Conv", "MatMul", "Gemm", "Attention", "Einsum"))


def operator_precision(operator: Mapping[str, Any]) -> str:
    """Return the precision by the type of the first input: a float operator after DequantizeLinear counts as float."""
    name = str(operator["op_name"])
    types = [next(iter(entry)) for entry in operator.get("input_type_shape", [])]
    if name.startswith(("QLinear", "DynamicQuantize")) or "Integer" in name or types[:1] in (["uint8"], ["int8"]):
        return "int8"
    return {"float16": "fp16", "double": "fp64", "bfloat16": "bf16"}.get(types[0] if types else "float", "fp32")


def operator_macs(operator: Mapping[str, Any]) -> int | None:
    """Return the MACs of one operator from the shapes that it ran on; None if they are unknown or it has none."""
    name = str(operator["op_name"])
    inputs, outputs = _shapes(operator.get("input_type_shape", ())), _shapes(operator.get("output_type_shape", ()))
    if not inputs or not outputs:
        return None
    if name in CONVOLUTIONS and len(inputs) > CONVOLUTIONS[name]:
        weight = inputs[CONVOLUTIONS[name]]
        return convolution_macs(outputs[0], weight, weight[0]) if weight else None
    if name in _MATMULS:
        return matmul_macs(inputs[0], outputs[0])
    if name in _ATTENTIONS and len(inputs) >= 3 and min(len(shape) for shape in inputs[:3]) >= 3:
        return attention_macs(inputs[0], inputs[1], outputs[0])
    return None


def _shapes(entries: Sequence[Mapping[str, Sequence[int]]]) -> list[Shape]:
    """Return the shapes of an operator's tensors in order; each entry maps the element type to the shape."""
    return [tuple(next(iter(entry.values()))) for entry in entries]
