"""Emulate fp16 rounding in ONNX Runtime."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from edgevit.export.graph import OnnxGraph
from edgevit.export.ir_helpers import constant
from edgevit.export.quantization.dtypes import DATA_MOVEMENT, FP16, FP32, replace_output, set_type


def emulate_fp16(graph: OnnxGraph) -> OnnxGraph:
    """Return a graph in fp32 that rounds every fp16 tensor of a mixed-precision graph to fp16.

    ONNX Runtime has hardly any fp16 kernels for CPUs. It runs such a graph in fp32 and removes the rounding between
    operators, so that a graph that overflows on a GPU looks right. Here Casts of the graph do the rounding, and ONNX
    Runtime keeps those. Sums inside an operator are in fp32, as they are on a GPU.
    """
    return graph.apply("emulate_fp16", _emulate_fp16)


def _emulate_fp16(model: ir.Model) -> None:
    for value in model.graph.initializers.values():
        array = constant(value) if value.dtype == FP16 else None
        if array is not None:
            value.const_value = ir.tensor(array.astype(np.float32), name=value.name)
            set_type(value, FP32)
    for value in model.graph.inputs:
        if value.dtype == FP16:
            set_type(value, FP32)
    for node in list(model.graph.all_nodes()):
        for value in node.outputs:
            if value.dtype == FP16:
                _round_to_fp16(node, value)


def _round_to_fp16(node: ir.Node, value: ir.Value) -> None:
    """Replace a value, for all its readers, by an fp32 value rounded to fp16."""
    graph = node.graph
    if graph is None or node.op_type in DATA_MOVEMENT:  # its inputs are already rounded
        set_type(value, FP32)
        return
    readers = list(value.uses())
    to_fp16 = node  # if it is a Cast to fp16; other nodes get one
    if node.op_type != "Cast":
        set_type(value, FP32)
        to_fp16 = ir.node("Cast", [value], {"to": int(FP16)}, name=f"{node.name}_round")
        graph.insert_after(node, to_fp16)
    rounded = to_fp16.outputs[0]
    to_fp32 = ir.node("Cast", [rounded], {"to": int(FP32)}, name=f"{node.name}_widen")
    graph.insert_after(to_fp16, to_fp32)
    result = to_fp32.outputs[0]
    rounded.shape = result.shape = value.shape
    set_type(rounded, FP16)
    set_type(result, FP32)
    for use in readers:
        use.node.replace_input_with(use.idx, result)
    if value.is_graph_output():
        replace_output(graph, value, result, suffix="unrounded")
