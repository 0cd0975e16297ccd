"""Forms of supported operators that OpenVINO refuses or computes wrongly.

Found by `tests/export/lint/test_openvino_forms.py`, which converts each form and compares it with ONNX's reference
evaluator and with ONNX Runtime; it fails if a newer OpenVINO treats a form differently.
"""

from __future__ import annotations

from collections.abc import Callable

import onnx_ir as ir

from edgevit.export.ir_helpers import static_size
from edgevit.export.lint.context import LintContext, has_computed_input, stored_array
from edgevit.export.lint.forms import OperatorForm
from edgevit.export.pooling import counts_partial_windows, pool_axes, uses_ceil_mode


def _has(name: str, *values: str) -> Callable[[ir.Node, LintContext], bool]:
    """Return a match for nodes whose string attribute `name` has one of `values`."""
    return lambda node, _: node.attributes.get_string(name, "") in values


def _is_set(node: ir.Node, name: str) -> bool:
    return bool(node.attributes.get_int(name, 0))


def _skips_a_window(node: ir.Node, _: LintContext) -> bool:
    return uses_ceil_mode(node) and any(axis.skips_last_window for axis in pool_axes(node))


def _reduces_with_antialias(node: ir.Node, _: LintContext) -> bool:
    """Whether a Resize with antialiasing makes an axis smaller; True if that is unknown."""
    if not _is_set(node, "antialias"):
        return False
    scales = stored_array(node.inputs[2]) if len(node.inputs) > 2 else None
    if scales is not None and scales.size:
        return bool((scales < 1).any())
    data, out = node.inputs[0], node.outputs[0]
    rank = len(out.shape) if out.shape is not None else 0
    pairs = [(static_size(data, axis), static_size(out, axis)) for axis in range(rank)]
    return not pairs or any(before is not None and (after is None or after < before) for before, after in pairs)


def _is_float_remainder(node: ir.Node, _: LintContext) -> bool:
    dtype = node.outputs[0].dtype
    return not _is_set(node, "fmod") and dtype is not None and dtype.is_floating_point()


def _ignores_the_axis(node: ir.Node, context: LintContext) -> bool:
    """Whether a whole DFT has a negative axis, or, in opset 20, any other than 1."""
    if _is_set(node, "onesided"):
        return False
    if context.opset < 20:
        return node.attributes.get_int("axis", 1) < 0
    axis, rank = stored_array(node.inputs[2]) if len(node.inputs) > 2 else None, _rank_of_input(node)
    return rank is None or (-2 if axis is None else int(axis.item())) % rank != 1


def _rank_of_input(node: ir.Node) -> int | None:
    value = node.inputs[0]
    return len(value.shape) if value is not None and value.shape is not None else None


_RESIZE_ELSEWHERE = "resize with {}, or resize constants (such as position embeddings) before the export"
OPENVINO_FORMS: tuple[OperatorForm, ...] = (
    OperatorForm(
        "Pad",
        _has("mode", "wrap"),
        "Pad with mode=wrap",
        "write the circular padding as a Concat of slices, as edgevit export does",
        effect="refused",
    ),
    OperatorForm(
        "Resize",
        _has("coordinate_transformation_mode", "half_pixel_symmetric", "tf_crop_and_resize"),
        "Resize with coordinate_transformation_mode half_pixel_symmetric or tf_crop_and_resize",
        "resize with half_pixel or align_corners coordinates",
        effect="refused",
    ),
    OperatorForm(
        "Resize",
        _has("keep_aspect_ratio_policy", "not_larger", "not_smaller"),
        "Resize that keeps the aspect ratio",
        "give the sizes of the result themselves",
        effect="wrong",
    ),
    OperatorForm(
        "Resize",
        _reduces_with_antialias,
        "Resize with antialiasing to a smaller size",
        _RESIZE_ELSEWHERE.format("antialias=False"),
        effect="wrong",
    ),
    OperatorForm(
        "Resize",
        lambda node, _: node.attributes.get_string("mode", "") == "cubic" and _is_set(node, "exclude_outside"),
        "cubic Resize with exclude_outside=1",
        _RESIZE_ELSEWHERE.format("exclude_outside=0 (as PyTorch does)"),
        effect="wrong",
    ),
    OperatorForm(
        "AveragePool",
        lambda node, _: counts_partial_windows(node),
        "AveragePool with ceil_mode=1 and count_include_pad=1 whose last window ends after the padding",
        "pad with zeros before it (torch.nn.functional.pad) and pool with count_include_pad=False",
        effect="wrong",
    ),
    OperatorForm(
        "MaxPool",
        _skips_a_window,
        "MaxPool with ceil_mode=1 whose last window starts after the input",
        "pool with ceil_mode=False, which leaves that window out",
        effect="wrong",
    ),
    OperatorForm(
        "DFT",
        lambda node, _: _is_set(node, "onesided"),
        "one-sided DFT",
        "use the whole transform and a slice of it (torch.fft.fft instead of rfft)",
        effect="wrong",
    ),
    OperatorForm(
        "DFT",
        _ignores_the_axis,
        "DFT along a negative axis, or in opset 20 along another than 1",
        "export with --opset 19 and count the axis from the front",
        effect="wrong",
    ),
    OperatorForm(
        "GridSample",
        lambda node, _: _rank_of_input(node) == 5,
        "GridSample of volumes",
        "sample each slice as an image",
        effect="refused",
    ),
    *(
        OperatorForm(
            cell,
            lambda node, _: _is_set(node, "layout"),
            f"{cell} with layout=1",
            "use layout=0, with transposes around it",
            effect="wrong",
        )
        for cell in ("GRU", "LSTM", "RNN")
    ),
    OperatorForm(
        "Mod", _is_float_remainder, "Mod of floats with fmod=0", "compute x - y * torch.floor(x / y)", effect="refused"
    ),
    OperatorForm(
        "Dropout",
        lambda node, _: has_computed_input(node, 2),
        "Dropout whose training mode is an input",
        "export the model in eval mode",
        effect="refused",
    ),
    OperatorForm(
        "Unsqueeze",
        lambda node, _: has_computed_input(node, 1),
        "Unsqueeze along axes that are not constant",
        "use constant axes",
        effect="refused",
    ),
)
