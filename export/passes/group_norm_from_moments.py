"""A normalisation over all channels and pixels, by the mean and the variance of each channel.

A compiler splits so long a sum in two. Here the halves are written out (Chan, Golub and LeVeque 1979, equal counts),
mean = E[m_c], var = E[v_c + (m_c - mean)^2], y = (x - mean) / sqrt(var + epsilon), and the second is put where it needs
no kernel of its own. Who reads the result decides where that is:

* A convolution: the channels are turned last, and each pixel sums up the moments of the channels anew. The means are
  written as x - (x - m_c), a number a pixel, so that these sums and the normalisation become one kernel, as a
  LayerNormalization does. Then the channels are turned back; `pointwise_conv_to_matmul` takes it from there.
* The mean over the pixels: it is (m_c - mean) / sqrt(var + epsilon), and no pixel is normalised.
* Anything else: the second sums stay a kernel. Behind a convolution, which writes pixel by pixel, the first sums are
  those over the channels of each pixel.

TensorRT-RTX 1.7 makes 168 kernels of shiftvit_t, which move 112 MB in fp16 and 237 MB in fp32; with
InstanceNormalization it makes 210, which move 259 MB and 356 MB.
"""

from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir

from edgevit.export.ir_helpers import (
    NCHW_TO_NHWC,
    NHWC_TO_NCHW,
    initializer,
    int64_initializer,
    is_global_mean,
    only_consumer,
    remove_unused,
    replace_value,
)
from edgevit.export.passes.decompose_group_norm import scale_and_shift, static_shape

_ONE_KERNEL = 12288  # numbers; so many TensorRT-RTX 1.7 normalises in one kernel as they are
_PIXELS, _CHANNELS = [2, 3], [1]


def group_norm_from_moments(model: ir.Model, *, turned: bool) -> None:
    """`turned`: whether the channels are turned last in front of a convolution."""
    for node in list(model.graph):
        if _is_large(node):
            _lower(node, model.graph, turned=turned)
    remove_unused(model)


def _is_large(node: ir.Node) -> bool:
    if node.op_type != "GroupNormalization" or node.domain or node.attributes.get_int("num_groups") != 1:
        return False
    shape = static_shape(node)
    return len(shape) == 4 and math.prod(shape[1:]) > _ONE_KERNEL


def _lower(node: ir.Node, graph: ir.Graph, *, turned: bool) -> None:
    reader, steps = only_consumer(node.outputs[0]), _Steps(node, graph)
    if reader is not None and is_global_mean(reader):
        average = scale_and_shift(node, _average(steps), graph)
        if len(reader.outputs[0].shape or ()) == 2:
            average = steps.shaped("flatten", average, [0, -1])
        replace_value(reader.outputs[0], average)
        return
    normalised = _at_each_pixel(steps) if turned and reader is not None and reader.op_type == "Conv" else _plain(steps)
    replace_value(node.outputs[0], scale_and_shift(node, normalised, graph))


class _Steps:
    """Puts nodes in front of a norm, each named `<norm>_<step>`. A typed fp16 graph keeps them in fp32."""

    def __init__(self, node: ir.Node, graph: ir.Graph) -> None:
        assert node.inputs[0] is not None
        self.x = node.inputs[0]  # (N, C, H, W)
        dtype = self.x.dtype.numpy() if self.x.dtype is not None else np.dtype(np.float32)
        epsilon = np.asarray(node.attributes.get_float("epsilon", 1e-5), dtype)
        self.epsilon = initializer(graph, f"{node.name}.epsilon", epsilon)
        self._node, self._graph = node, graph

    def __call__(self, op_type: str, name: str, *inputs: ir.Value, **attributes: int | list[int]) -> ir.Value:
        step = ir.node(op_type, inputs, attributes, name=f"{self._node.name}_{name}")
        self._graph.insert_before(self._node, step)
        return step.outputs[0]

    def mean(self, name: str, value: ir.Value, axes: list[int]) -> ir.Value:
        return self(
            "ReduceMean", name, value, int64_initializer(self._graph, f"{self._node.name}.axes", axes), keepdims=1
        )

    def shaped(self, name: str, value: ir.Value, shape: list[int]) -> ir.Value:
        return self("Reshape", name, value, int64_initializer(self._graph, f"{self._node.name}.shape", shape))


def _average(steps: _Steps) -> ir.Value:
    means, variances = _first_moments(steps, _PIXELS)
    return steps.shaped("average", _normalise(steps, means, means, variances), [0, -1, 1, 1])  # (N, C, 1, 1)


def _at_each_pixel(steps: _Steps) -> ir.Value:
    means, variances = _first_moments(steps, _PIXELS)
    x = steps("Transpose", "turn", steps.x, perm=NCHW_TO_NHWC)  # (N, H, W, C), and the moments are (N, 1, 1, C)
    means = steps("Sub", "means_at_pixels", x, steps("Sub", "from_means", x, means))  # (N, H, W, C)
    return steps("Transpose", "turn_back", _normalise(steps, x, means, variances), perm=NHWC_TO_NCHW)


def _plain(steps: _Steps) -> ir.Value:
    maker = steps.x.producer()
    first = _CHANNELS if maker is not None and maker.op_type == "Conv" else _PIXELS
    return _normalise(steps, steps.x, *_first_moments(steps, first))


def _first_moments(steps: _Steps, axes: list[int]) -> tuple[ir.Value, ir.Value]:
    """The means and the variances over `axes`, each as a row: (N, 1, 1, C), or (N, 1, 1, H * W)."""
    mean = steps.mean("first_mean", steps.x, axes)
    apart = steps("Sub", "from_first_mean", steps.x, mean)
    variance = steps.mean("first_variance", steps("Mul", "square", apart, apart), axes)
    return steps.shaped("means", mean, [0, 1, 1, -1]), steps.shaped("variances", variance, [0, 1, 1, -1])


def _normalise(steps: _Steps, x: ir.Value, means: ir.Value, variances: ir.Value) -> ir.Value:
    """`x` normalised by the moments of the last axis of `means` and `variances`."""
    mean = steps.mean("mean", means, [-1])
    apart = steps("Sub", "apart", means, mean)
    spread = steps("Add", "spread", variances, steps("Mul", "apart_square", apart, apart))
    variance = steps("Add", "variance", steps.mean("mean_spread", spread, [-1]), steps.epsilon)
    return steps("Div", "normalise", steps("Sub", "centre", x, mean), steps("Sqrt", "deviation", variance))
