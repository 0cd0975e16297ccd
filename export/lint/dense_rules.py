"""The lint rules for detection and segmentation: large attention, norms over padding, adaptive pooling, resizing."""

from __future__ import annotations

import math
from collections.abc import Iterator

import onnx_ir as ir

from edgevit.export.lint.context import LintContext, consumers, producer, stored_array
from edgevit.export.lint.findings import Diagnostic
from edgevit.export.lint.patterns import attention_products, downstream, head_channels
from edgevit.export.macs import static_shape

MAX_ATTENTION_BYTES = 64e6
MIN_PIXELS = 1024  # of a map whose norm is reported: 32 x 32, stride 16 of an image of 512 x 512
_NORMS = frozenset({"GroupNormalization", "InstanceNormalization", "LayerNormalization"})
_MOVES = frozenset({"Cast", "Identity", "Reshape", "Squeeze", "Transpose", "Unsqueeze"})
_MASKED = _MOVES | {"Mul", "Where"}
_WINDOW_RANK = 5  # indices of adaptive pooling: (rows, rows of a window, columns, columns of a window, 2)
_MAX_VISITED = 12


def attention_memory(context: LintContext) -> Iterator[Diagnostic]:
    """Attention whose matrix of weights exceeds 64 MB for one image and is held in memory."""
    for product in attention_products(context):
        shape, dtype = static_shape(product.outputs[0]), product.outputs[0].dtype
        if not shape or dtype is None or _is_fused(product, context):
            continue
        size = math.prod(shape) * dtype.itemsize
        if size > MAX_ATTENTION_BYTES:
            yield Diagnostic(
                "warning",
                product,
                f"attention weights of {' x '.join(map(str, shape))} take {size / 1e6:.0f} MB for one image, and grow "
                "with the fourth power of its side",
                "export with a smaller --img-size, or attend within windows or to pooled keys and values; the model "
                "must be trained again",
            )


def _is_fused(product: ir.Node, context: LintContext) -> bool:
    """Whether the target computes this attention in one kernel, which holds no matrix."""
    channels = head_channels(product)
    half = product.inputs[0] is not None and product.inputs[0].dtype == ir.DataType.FLOAT16
    return context.target.support.tensorrt_parser and half and (channels is None or channels > 8)


def image_norm(context: LintContext) -> Iterator[Diagnostic]:
    """Norms of a dense model whose statistics cover the whole map, the padding of the photo included."""
    if not any(len(static_shape(value)) > 2 for value in context.model.graph.outputs):
        return  # classifiers take crops, which have no padding
    norms = [node for node in context.find(*_NORMS, "ReduceMean") if _pixels_normalized(node) >= MIN_PIXELS]
    if norms:
        yield Diagnostic(
            "note",
            norms[0],
            f"{len(norms)} norm(s) take their statistics over the whole map: padding a photo changes the outputs "
            "everywhere, not only at its border",
            "resize photos as in training (the bundle's preprocessing says how), and compare engines on the same "
            "padded input; BatchNorm and norms over the channels have no such effect",
        )


def _pixels_normalized(node: ir.Node) -> int:
    """Return how many pixels share the statistics of a norm, times the channels if they are folded into the pixels."""
    shape = static_shape(node.inputs[0])
    if len(shape) < 3:
        return 0
    if node.op_type == "LayerNormalization":
        axis = node.attributes.get_int("axis", -1) % len(shape)
        return math.prod(shape[-2:]) if axis <= len(shape) - 3 else 0
    if node.op_type == "ReduceMean":
        centers = any(user.op_type == "Sub" and user.inputs[0] is node.inputs[0] for user in consumers(node.outputs[0]))
        return math.prod(shape[axis] for axis in _reduced_axes(node, len(shape)) if axis > 1) if centers else 0
    return math.prod(shape[2:])


def _reduced_axes(node: ir.Node, rank: int) -> list[int]:
    stored = stored_array(node.inputs[1]) if len(node.inputs) > 1 else None
    axes = stored.tolist() if stored is not None else list(node.attributes.get_ints("axes", ()))
    return [int(axis) % rank for axis in axes]


def adaptive_pooling(context: LintContext) -> Iterator[Diagnostic]:
    """Adaptive average pooling to a size that does not divide that of the map, which exporters write as gathers."""
    for node in context.find("GatherND"):
        index = stored_array(node.inputs[1])
        windows = index is not None and index.ndim == _WINDOW_RANK and index.shape[-1] == 2
        if windows and any(
            user.op_type in ("Gather", "ReduceSum", "ReduceMean") for user in downstream(node, through=_MASKED)
        ):
            yield Diagnostic(
                "warning",
                node,
                "adaptive pooling to a size that does not divide the map's, written as gathers of all its windows: "
                "some 40 nodes that copy the map several times",
                "pool with two constant matmuls, rows @ (x @ columns), as edgevit.models.dense.upernet.AdaptivePool; "
                "avg_pool2d with kernel and stride H // s is another function",
            )


def resize_mode(context: LintContext) -> Iterator[Diagnostic]:
    """Resizing by coordinates that PyTorch does not use, and resizing of class indices."""
    for node in context.find("Resize", "Upsample"):
        if _interpolates(node) and _is_asymmetric(node, context):
            yield Diagnostic(
                "warning",
                node,
                "linear resizing with asymmetric coordinates shifts the map by up to half of its cells: exporters of "
                "opset 10 and below write PyTorch's align_corners=False this way",
                "export with a newer --opset, which writes half_pixel coordinates",
            )
        if _picks_classes(node):
            yield Diagnostic(
                "warning",
                node,
                "class indices are resized: small regions vanish, and borders follow the cells of the small map",
                "resize the logits and take ArgMax of the result, or output the logits",
            )


def _interpolates(node: ir.Node) -> bool:
    return node.attributes.get_string("mode", "nearest") in ("linear", "cubic")


def _is_asymmetric(node: ir.Node, context: LintContext) -> bool:
    if node.op_type == "Upsample" or context.opset < 11:  # they have no other coordinates
        return True
    return node.attributes.get_string("coordinate_transformation_mode", "half_pixel") == "asymmetric"


def _picks_classes(node: ir.Node) -> bool:
    source = producer(node.inputs[0])
    for _ in range(_MAX_VISITED):
        if source is None or source.op_type not in _MOVES:
            break
        source = producer(source.inputs[0])
    return source is not None and source.op_type == "ArgMax"
