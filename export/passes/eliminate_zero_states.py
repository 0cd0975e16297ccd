"""Remove initial states of recurrent layers that are zero, which is their default.

PyTorch expands a zero to (layers, batch, hidden); with a dynamic batch that takes shape arithmetic.
"""

from __future__ import annotations

import onnx_ir as ir

from edgevit.export.ir_helpers import constant, remove_unused

_FIRST_STATE = 5  # of the inputs of LSTM, GRU and RNN


def eliminate_zero_states(model: ir.Model) -> None:
    """Rewrite each recurrent layer."""
    for node in model.graph:
        if node.op_type not in ("GRU", "LSTM", "RNN"):
            continue
        for position in range(_FIRST_STATE, min(len(node.inputs), _FIRST_STATE + 2)):  # the hidden and the cell state
            if _is_zero(node.inputs[position]):
                node.replace_input_with(position, None)
    remove_unused(model)


def _is_zero(value: ir.Value | None) -> bool:
    source = value.producer() if value is not None else None
    if source is not None and source.op_type in ("Expand", "Slice"):  # a slice for each layer
        return _is_zero(source.inputs[0])
    array = constant(value)
    return array is not None and not array.any()
