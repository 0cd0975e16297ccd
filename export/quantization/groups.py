"""Groups of layers of one kind and shape: `edgevit tune` measures whether int8 makes the engine faster for each."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import onnx_ir as ir

from edgevit.export.macs import static_shape
from edgevit.types import Interval
from edgevit.untrusted import JsonObject, boolean, list_of, nullable, number, text

MAX_LAYER_GROUPS = 12  # to measure: each costs a build
_OPERATOR_KINDS = {"MatMul": "product", "Softmax": "softmax", "Add": "sum", "Mul": "scaling"}
MAX_GROUPS = MAX_LAYER_GROUPS + len(_OPERATOR_KINDS)
_MAX_RATIO = 1e9


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupChoice:
    """Whether the layers of a group run in int8, and the measurement that decided it.

    `ratio` is the time of the engine with the group in int8 over that with the group in float; None: not measured yet.
    """

    group: str
    in_int8: bool
    moved: bool  # whether that differs from the rule
    ratio: float | None = None
    interval: Interval | None = None

    @property
    def reason(self) -> str:
        """The reason for float, in words."""
        if self.ratio is None:
            return f"group {self.group} is in float for comparison"
        found = self.interval
        within = "" if found is None else f" ({found.low:.2f} to {found.high:.2f})"
        return f"measured: the engine takes {self.ratio:.2f} times as long{within} with {self.group} in int8"

    def to_json(self) -> dict[str, Any]:
        interval = None if self.interval is None else [self.interval.low, self.interval.high]
        return {
            "group": self.group,
            "in_int8": self.in_int8,
            "moved": self.moved,
            "ratio": self.ratio,
            "interval": interval,
        }

    @classmethod
    def parse(cls, value: Any, place: str) -> GroupChoice:
        fields = JsonObject.of(value, place)
        ratio = number(0, _MAX_RATIO)
        interval = fields.read_or("interval", nullable(list_of(ratio, least=2, most=2)), None)
        return cls(
            group=fields.read("group", text(most=255)),
            in_int8=fields.read("in_int8", boolean),
            moved=fields.read("moved", boolean),
            ratio=fields.read_or("ratio", nullable(ratio), None),
            interval=None if interval is None else Interval(*interval),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerGroup:
    """Layers of one kind and shape."""

    name: str
    in_int8: bool  # by the rule
    fraction: float  # of the graph's MACs


def group_names(node: ir.Node, *, small: bool) -> tuple[str, str, str]:
    """Return the groups of a Conv, Gemm or MatMul with constant weights: by shape, by size, and by kind only.

    `small` marks layers that stay in float because they have too little work.
    """
    kind, positions, channels = _convolution(node) if node.op_type == "Conv" else _linear(node)
    kind = f"small-{kind}" if small else kind
    return f"{kind}-{channels}-on-{positions}", f"{kind}-on-{positions}", kind


def _convolution(node: ir.Node) -> tuple[str, str, str]:
    outputs, inputs, *kernel = static_shape(node.inputs[1])
    groups = node.attributes.get_int("group", 1)
    assert groups is not None
    kind = "conv" if groups == 1 else "depthwise" if inputs == 1 else "grouped"
    sides = "x".join(map(str, kernel))
    return f"{kind}{sides}", "x".join(map(str, static_shape(node.outputs[0])[2:])), f"{groups * inputs}-{outputs}"


def _linear(node: ir.Node) -> tuple[str, str, str]:
    *rows, inputs = static_shape(node.inputs[0])
    outputs = static_shape(node.outputs[0])[-1]
    return "linear", str(math.prod(rows)), f"{inputs}-{outputs}"


def operator_kind(node: ir.Node) -> str:
    """Return the group of an operator without weights: all of a kind, since they have little work each."""
    return f"{_OPERATOR_KINDS[node.op_type]}-of-activations"


def choice_of(groups: Iterable[str], choices: Sequence[GroupChoice]) -> GroupChoice | None:
    """Return the choice for a layer with these group names; None if there is none."""
    names = frozenset(groups)
    return next((choice for choice in choices if choice.group in names), None)


def largest_groups(
    layers: Iterable[tuple[tuple[str, ...], bool, float]], *, most: int = MAX_LAYER_GROUPS
) -> list[LayerGroup]:
    """Return the groups by shape; by size or by kind if there are more than `most`, and of those the largest.

    A layer is its names, from fine to coarse, whether the rule puts it into int8, and its fraction of the MACs.
    """
    layers = list(layers)
    levels = len(layers[0][0]) if layers else 0
    found: dict[str, LayerGroup] = {}
    for level in range(levels):
        found = {}
        for names, in_int8, fraction in layers:
            name = names[level]
            known = found[name].fraction if name in found else 0.0
            found[name] = LayerGroup(name=name, in_int8=in_int8, fraction=known + fraction)
        if len(found) <= most:
            break
    return sorted(found.values(), key=lambda group: -group.fraction)[:most]
