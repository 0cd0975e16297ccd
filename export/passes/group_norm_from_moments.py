"""Compute GroupNorm over all channels from per-channel moments.

A compiler splits a sum over all channels and pixels in two. This pass writes the two steps explicitly (Chan, Golub and
LeVeque 1979, equal counts), with the mean m_c and variance v_c of each channel:

    mean = E[m_c], var = E[v_c + (m_c - mean)^2], y = (x - mean) / sqrt(var + epsilon)

The second step is placed where it needs no separate kernel, depending on the consumer of the result:

* Convolution: the tensor is transposed to NHWC, and each pixel sums the moments of all channels again. The means are
  written as x - (x - m_c), one value per pixel, so that the sums and the normalization fuse into one kernel, like those
  of a LayerNormalization. Then it is transposed back to NCHW, where `pointwise_conv_to_matmul` continues.
* Mean over the pixels: the result is (m_c - mean) / sqrt(var + epsilon), and no pixel is normalized.
* Other consumers: the second step stays a separate kernel. If the input comes from a convolution, which writes pixel by
  pixel, the first step sums over the channels of each pixel instead of the pixels of each channel.

For shiftvit_t, TensorRT-RTX 1.7 makes 168 kernels, which move 112 MB in fp16 and 237 MB in fp32; with
InstanceNormalization it makes 210 kernels, which move 259 MB and 356 MB.
"""

from __future__ import annotations

import onnx_ir as ir

from edgevit.export.group_norm_steps import GroupNormSteps
from edgevit.export.ir_helpers import (
    NCHW_TO_NHWC,
    NHWC_TO_NCHW,
    is_global_mean,
    only_consumer,
    remove_unused,
    replace_value,
)
from edgevit.export.passes.decompose_group_norm import is_single_group_norm, scale_and_shift

_MAX_SINGLE_KERNEL = 12288  # values that TensorRT-RTX 1.7 normalizes in one kernel
_PIXELS, _CHANNELS = [2, 3], [1]


def group_norm_from_moments(model: ir.Model, *, channels_last: bool) -> None:
    """Replace each GroupNormalization with one group and a large input.

    `channels_last` allows NHWC before a convolution.
    """
    for node in list(model.graph):
        if is_single_group_norm(node, more_than=_MAX_SINGLE_KERNEL):
            _decompose(node, model.graph, channels_last=channels_last)
    remove_unused(model)


def _decompose(node: ir.Node, graph: ir.Graph, *, channels_last: bool) -> None:
    consumer, steps = only_consumer(node.outputs[0]), GroupNormSteps(node, graph)
    if consumer is not None and is_global_mean(consumer):
        average = scale_and_shift(node, _pixel_mean(steps), graph)
        if len(consumer.outputs[0].shape or ()) == 2:
            average = steps.reshape("flatten", average, [0, -1])
        replace_value(consumer.outputs[0], average)
        return
    before_convolution = consumer is not None and consumer.op_type == "Conv"
    normalized = _in_nhwc(steps) if channels_last and before_convolution else _in_nchw(steps)
    replace_value(node.outputs[0], scale_and_shift(node, normalized, graph))


def _pixel_mean(steps: GroupNormSteps) -> ir.Value:
    """Compute the mean over the pixels of the normalized tensor, (N, C, 1, 1)."""
    means, variances = _first_moments(steps, _PIXELS)
    return steps.reshape("average", _normalize(steps, means, means, variances), [0, -1, 1, 1])


def _in_nhwc(steps: GroupNormSteps) -> ir.Value:
    """Normalize in NHWC, with the second step repeated at each pixel."""
    means, variances = _first_moments(steps, _PIXELS)
    x = steps("Transpose", "turn", steps.x, perm=NCHW_TO_NHWC)  # (N, H, W, C); the moments are (N, 1, 1, C)
    means = steps("Sub", "means_at_pixels", x, steps("Sub", "from_means", x, means))  # (N, H, W, C)
    return steps("Transpose", "turn_back", _normalize(steps, x, means, variances), perm=NHWC_TO_NCHW)


def _in_nchw(steps: GroupNormSteps) -> ir.Value:
    """Normalize in NCHW, with the second step as a separate kernel."""
    source = steps.x.producer()
    first = _CHANNELS if source is not None and source.op_type == "Conv" else _PIXELS
    return _normalize(steps, steps.x, *_first_moments(steps, first))


def _first_moments(steps: GroupNormSteps, axes: list[int]) -> tuple[ir.Value, ir.Value]:
    """Compute the means and variances over `axes`, each (N, 1, 1, C) or (N, 1, 1, H * W)."""
    mean = steps.mean("first_mean", steps.x, axes)
    centered = steps("Sub", "from_first_mean", steps.x, mean)
    variance = steps.mean("first_variance", steps("Mul", "square", centered, centered), axes)
    return steps.reshape("means", mean, [0, 1, 1, -1]), steps.reshape("variances", variance, [0, 1, 1, -1])


def _normalize(steps: GroupNormSteps, x: ir.Value, means: ir.Value, variances: ir.Value) -> ir.Value:
    """Normalize `x` by the moments that the last axis of `means` and `variances` combines to."""
    mean = steps.mean("mean", means, [-1])
    deviations = steps("Sub", "apart", means, mean)
    spread = steps("Add", "spread", variances, steps("Mul", "apart_square", deviations, deviations))
    variance = steps("Add", "variance", steps.mean("mean_spread", spread, [-1]), steps.epsilon)
    return steps("Div", "normalize", steps("Sub", "center", x, mean), steps("Sqrt", "deviation", variance))
