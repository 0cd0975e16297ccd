"""Write one-sided DFTs with whole ones, for OpenVINO, which returns wrong shapes for them.

The one-sided transform of n real values has the first m = n // 2 + 1 values of the whole one; the others are their
conjugates in reverse order:

    DFT(x, onesided=1)          = DFT(x)[:m]
    DFT(y, inverse=1, onesided=1) = Re DFT(Concat(y, conj(y[n-m:0:-1])), inverse=1)
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from edgevit.export.ir_helpers import (
    constant,
    initializer,
    insert,
    insert_slice,
    numpy_dtype,
    remove_unused,
    replace_value,
    static_size,
)


def decompose_onesided_dft(model: ir.Model) -> None:
    """Replace each one-sided DFT along a constant axis whose lengths are known."""
    for node in list(model.graph):
        if node.op_type != "DFT" or node.domain or not _is_set(node, "onesided"):
            continue
        transform = _transform(node)
        if transform is None:
            continue
        rewrite = _Rewrite(node, model.graph, transform)
        if not _is_set(node, "inverse"):
            rewrite.forward()
        elif static_size(node.inputs[0], transform.axis) == transform.kept:
            rewrite.inverse()
    remove_unused(model)


@dataclass(frozen=True, slots=True)
class _Transform:
    axis: int
    length: int  # of the real signal

    @property
    def kept(self) -> int:
        """The length of the one-sided spectrum."""
        return self.length // 2 + 1


def _is_set(node: ir.Node, name: str) -> bool:
    return bool(node.attributes.get_int(name, 0))


def _transform(node: ir.Node) -> _Transform | None:
    """Return the axis, counted from the front, and the length; None if one is unknown."""
    data = node.inputs[0]
    given = [constant(value) for value in node.inputs[1:]]
    if (
        data is None
        or data.shape is None
        or any(value is not None and array is None for value, array in zip(node.inputs[1:], given, strict=True))
    ):
        return None
    length, axis = [*given, None, None][:2]
    place = -2 if axis is None else int(np.asarray(axis).item())
    size = int(np.asarray(length).item()) if length is not None else _default_length(node, place)
    return None if size is None else _Transform(place % len(data.shape), size)


def _default_length(node: ir.Node, axis: int) -> int | None:
    size = static_size(node.inputs[0], axis)
    return 2 * (size - 1) if size is not None and _is_set(node, "inverse") else size


class _Rewrite:
    """Inserts the nodes that replace one DFT."""

    def __init__(self, node: ir.Node, graph: ir.Graph, transform: _Transform) -> None:
        self._node, self._graph, self._transform = node, graph, transform

    def forward(self) -> None:
        kept = self._slice("kept", self._whole(self._node.inputs[0]), 0, self._transform.kept, self._transform.axis)
        replace_value(self._node.outputs[0], kept)

    def inverse(self) -> None:
        half, transform = self._node.inputs[0], self._transform
        assert half is not None and half.shape is not None
        rest = self._slice("rest", half, transform.length - transform.kept, 0, transform.axis, step=-1)
        sign = initializer(self._graph, f"{self._node.name}.sign", np.array([1, -1], numpy_dtype(half)))
        conjugate = self._insert("conjugate", "Mul", [rest, sign])
        spectrum = self._insert("spectrum", "Concat", [half, conjugate], axis=transform.axis)
        real = self._slice("real", self._whole(spectrum), 0, 1, len(half.shape) - 1)
        replace_value(self._node.outputs[0], real)

    def _whole(self, value: ir.Value | None) -> ir.Value:
        inverse = int(_is_set(self._node, "inverse"))
        return self._insert("whole", "DFT", [value, *self._node.inputs[1:]], inverse=inverse)

    def _slice(self, name: str, value: ir.Value, start: int, end: int, axis: int, *, step: int = 1) -> ir.Value:
        name = f"{self._node.name}_{name}"
        return insert_slice(value, {axis: (start, end)}, step=step, before=self._node, graph=self._graph, name=name)

    def _insert(self, name: str, op_type: str, inputs: list[ir.Value | None], **attributes: int) -> ir.Value:
        new = ir.node(op_type, inputs, attributes, name=f"{self._node.name}_{name}")
        return insert(new, before=self._node, graph=self._graph, like=self._node.outputs[0], shape=None)
