"""OperatorForm, and the forms of supported operators that TensorRT's parser rejects or misreads."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import onnx_ir as ir

from edgevit.export.ir_helpers import static_size
from edgevit.export.lint.context import LintContext, has_computed_input
from edgevit.export.lint.targets import Level, Version


@dataclass(frozen=True, slots=True)
class OperatorForm:
    """A form of an operator that a runtime refuses or computes wrongly, although it supports the operator."""

    op_type: str
    matches: Callable[[ir.Node, LintContext], bool]
    description: str
    remedy: str
    since: Version | None = None  # the first version of TensorRT's parser that reads it correctly; None: no version
    level: Level = "error"
    effect: Literal["refused", "wrong"] | None = None  # in OpenVINO; None: stated in the description


def has_reduction(scatter: ir.Node) -> bool:
    """Whether a ScatterND or ScatterElements combines its updates with the values in their places."""
    return scatter.attributes.get_string("reduction", "none") != "none"


TENSORRT_FORMS: tuple[OperatorForm, ...] = (
    OperatorForm(
        "GroupNormalization",
        lambda node, _: node.attributes.get_int("num_groups", 1) == 1 and static_size(node.inputs[0], 1) != 1,
        "GroupNormalization with one group is silently computed with one group per channel "
        "(NVIDIA/TensorRT issue 4756)",
        "use Reshape to (N, 1, C H W), InstanceNormalization, Reshape back, Mul and Add, which are equivalent",
    ),
    OperatorForm(
        "GroupNormalization",
        lambda _, context: context.opset >= 21,
        "GroupNormalization of opset 21, which has one scale per channel",
        "export with --opset 20, whose GroupNormalization has one scale per group",
        since=(10, 9),
    ),
    OperatorForm(
        "GridSample",
        lambda node, context: context.opset >= 20 and node.attributes.get_string("mode", "linear") != "nearest",
        "GridSample of opset 20 is silently computed with nearest interpolation (NVIDIA/TensorRT issue 4646)",
        "export with --opset 19, whose GridSample is read correctly",
    ),
    OperatorForm(
        "Slice",
        lambda node, _: has_computed_input(node, 3),
        "Slice with axes that are not constant",
        "slice along constant axes",
        since=(10, 3),
    ),
    OperatorForm(
        "Pad",
        lambda node, _: has_computed_input(node, 3),
        "Pad with axes that are not constant",
        "give a padding for every axis",
        since=(10, 4),
    ),
    OperatorForm(
        "Pad",
        lambda node, _: len(node.inputs) > 3 and node.inputs[3] is not None and not has_computed_input(node, 3),
        "Pad with the input `axes`",
        "give a padding for every axis and omit `axes`",
        level="warning",
        since=(10, 4),
    ),
    OperatorForm(
        "Resize",
        lambda node, _: bool(node.attributes.get_int("antialias", 0)),
        "Resize with antialiasing",
        "resize without antialias=True; resize constants (such as position embeddings) before the export",
    ),
    OperatorForm(
        "ScatterND",
        lambda node, _: has_reduction(node),
        "ScatterND with a reduction",
        "compute the sum or maximum with a separate operator",
    ),
    OperatorForm(
        "ScatterElements",
        lambda node, _: has_reduction(node),
        "ScatterElements with a reduction",
        "compute the sum or maximum with a separate operator",
        since=(10, 0),
    ),
    OperatorForm(
        "ScatterElements",
        lambda node, context: has_reduction(node) and context.target.version >= (10, 0),
        "ScatterElements with a reduction, a plugin, which TensorRT-RTX refuses",
        "compute the sum or maximum with a separate operator",
        level="warning",
    ),
    OperatorForm(
        "MaxPool",
        lambda node, _: len(node.outputs) > 1 and bool(node.outputs[1].uses() or node.outputs[1].is_graph_output()),
        "MaxPool whose second output, the indices, is used",
        "use max pooling without return_indices=True",
    ),
)
