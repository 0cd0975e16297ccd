"""Exact forms of a graph: other operators that compute the same numbers, up to rounding.

Runtimes run one form faster than another, depending on the model and the processor. A bundle has the STANDARD form,
which is that of its format; `edgevit tune` also measures the others.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import onnx_ir as ir

from edgevit.errors import unknown_name
from edgevit.export import passes
from edgevit.export.graph import GROUP_NORM_OPSET, OnnxGraph
from edgevit.export.passes.group_norm_from_moments import group_norm_from_moments
from edgevit.export.passes.pointwise_conv_to_matmul import pointwise_conv_to_matmul
from edgevit.export.passes.shift_to_depthwise import shift_to_depthwise
from edgevit.export.passes.winograd_rows import winograd_rows
from edgevit.formats import Format, get_format
from edgevit.types import Precision

STANDARD = "standard"


def _same(entry: Format) -> Format:
    return entry


def _native_group_norm(entry: Format) -> Format:
    return replace(entry, group_norm="native", opset=max(entry.opset, GROUP_NORM_OPSET))


def _instance_group_norm(entry: Format) -> Format:
    return replace(entry, group_norm="instance")


def _channel_moments(model: ir.Model) -> None:
    group_norm_from_moments(model, channels_last=False)


def _channels_last(model: ir.Model) -> None:
    group_norm_from_moments(model, channels_last=True)
    pointwise_conv_to_matmul(model)


@dataclass(frozen=True, slots=True)
class Form:
    """An exact form: the format's entry with another preference, and a rewrite of the graph before specialization."""

    entry: Callable[[Format], Format] = _same
    rewrite: Callable[[ir.Model], None] | None = None
    precision: Precision | None = None  # the only one that it is for


FORMS: Mapping[str, Form] = {
    STANDARD: Form(),
    "native-norm": Form(entry=_native_group_norm),
    "instance-norm": Form(entry=_instance_group_norm),
    "moments-norm": Form(rewrite=_channel_moments),
    "channels-last": Form(rewrite=_channels_last),
    "depthwise-shift": Form(rewrite=shift_to_depthwise),
    "winograd_rows": Form(rewrite=winograd_rows, precision="fp32"),  # in int8 the sums of rows would be rounded
}


def specialize(
    graph: OnnxGraph, fmt: str, form: str = STANDARD, *, precision: Precision = "fp32", opset: int | None = None
) -> OnnxGraph:
    """Rewrite an optimized graph into a form, and into the opset and operators of a format.

    Raises as `passes.specialize`, and UsageError for an unknown form.
    """
    if form not in FORMS:
        raise unknown_name("form of the graph", form, FORMS)
    chosen = FORMS[form]
    if chosen.rewrite is not None:
        graph = graph.apply(f"form {form}", chosen.rewrite)
    return passes.specialize(graph, chosen.entry(get_format(fmt)), precision=precision, opset=opset)


def other_forms(graph: OnnxGraph, fmt: str, *, precision: Precision = "fp32") -> tuple[str, ...]:
    """Return the forms of a precision besides STANDARD that give another graph, by the operators that they have."""
    found = {_operators(graph, fmt, STANDARD, precision): STANDARD}
    for name, form in FORMS.items():
        if form.precision in (None, precision):
            found.setdefault(_operators(graph, fmt, name, precision), name)
    return tuple(form for form in found.values() if form != STANDARD)


def _operators(graph: OnnxGraph, fmt: str, form: str, precision: Precision) -> frozenset[tuple[str, int]]:
    return frozenset(specialize(graph, fmt, form, precision=precision).operators.items())
