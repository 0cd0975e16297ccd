"""Mark the tensors of which a pass has left one row, and find them: PyTorch's tensors in their place have all rows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import onnx_ir as ir

from edgevit.export.graph import OnnxGraph

_KEY = "edgevit.kept_row"  # of the metadata that ONNX files have for each tensor


@dataclass(frozen=True, slots=True)
class KeptRow:
    """The place of a row in the tensor that has all of them."""

    axis: int
    index: int


def mark_kept_row(value: ir.Value, row: KeptRow) -> None:
    """Note that a tensor has one row of those that the PyTorch module computes."""
    value.metadata_props[_KEY] = f"{row.axis},{row.index}"


def kept_rows(graph: OnnxGraph) -> Mapping[str, KeptRow]:
    """Return the rows of the marked tensors by their names."""
    values = (value for node in graph.model.graph for value in node.outputs)
    return {str(value.name): _parse(value.metadata_props[_KEY]) for value in values if _KEY in value.metadata_props}


def _parse(text: str) -> KeptRow:
    axis, index = text.split(",")
    return KeptRow(int(axis), int(index))
