"""Tell the layers that int8 does not speed up, by their shapes; docs/quantization.md has the measurements.

`edgevit tune` measures groups of layers on the device instead.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import onnx_ir as ir

from edgevit.cpu import has_avx2_alone, has_avx_vnni_alone
from edgevit.export.ir_helpers import constant
from edgevit.export.linear import FEW_ROWS
from edgevit.export.macs import static_shape
from edgevit.formats import Int8Scheme

GROUPED = "a grouped convolution, which int8 hardly speeds up or slows down"
CHANNEL_MULTIPLIER = "a depthwise convolution with several outputs per channel, which is slow in int8"
FEW_CHANNELS = "a convolution of few channels, which is slow in int8"
CONVERSIONS = "a convolution between float operators, whose conversions take longer than int8 saves"
TOO_SMALL = "too small to gain speed"
WITHOUT_WEIGHTS = "an operator without weights, which int8 seldom speeds up"
# Layers below both limits stay in float: quantizing them costs more than it saves. Layers with few rows are bound by
# reading weights, hence the second limit.
MIN_LAYER_FRACTION = 0.001  # fraction of the graph's MACs
MIN_WEIGHT_BYTES = 128 << 10  # size of the weights in fp32
_GROUP_STEP = 4  # channels: the products of 4 numbers are one instruction of int8
_MIN_MAP = 56 * 56  # outputs of one channel


@dataclass(frozen=True, slots=True, kw_only=True)
class SpeedRule:
    """The limits of one runtime on this processor."""

    min_group_inputs: int | None = None  # of the grouped convolutions in int8; None: they stay in float
    min_group_inputs_of_few_rows: int | None = None  # of those of at most FEW_ROWS positions, which read mostly weights
    min_position_macs: int = 0  # multiply-adds at one position of a kernel; twice as many if it is dilated
    min_conversion_macs: int = 0  # multiply-adds for each number converted between float and integers

    @classmethod
    def of(cls, scheme: Int8Scheme) -> SpeedRule:
        grouped = scheme.min_group_inputs_with_avx_vnni if has_avx_vnni_alone() else None
        of_avx2 = scheme.min_conversion_macs_with_avx2 if has_avx2_alone() else 0
        return cls(
            min_group_inputs=grouped,
            min_group_inputs_of_few_rows=scheme.min_group_inputs_of_few_rows,
            min_position_macs=scheme.min_position_macs,
            min_conversion_macs=max(scheme.min_conversion_macs, of_avx2),
        )

    def skip_reason(self, node: ir.Node, fraction: float) -> str:
        """Return why a Conv, Gemm or MatMul stays in float, or ""; `fraction` is that of the graph's MACs."""
        weight = constant(node.inputs[1])
        assert weight is not None  # of a layer
        if fraction < MIN_LAYER_FRACTION and weight.nbytes < MIN_WEIGHT_BYTES:
            return f"{TOO_SMALL}: {fraction:.2%} of all MACs"
        return self._convolution_reason(node) if node.op_type == "Conv" else ""

    def _convolution_reason(self, node: ir.Node) -> str:
        outputs, inputs, *_ = static_shape(node.inputs[1])
        groups = node.attributes.get_int("group", 1)
        if groups == 1:
            return FEW_CHANNELS if self._gathers_most(node) else ""
        if outputs == groups:
            return ""
        if inputs == 1:
            return CHANNEL_MULTIPLIER
        least = [self.min_group_inputs]
        if math.prod(static_shape(node.outputs[0])[2:]) <= FEW_ROWS:
            least.append(self.min_group_inputs_of_few_rows)
        is_wide = any(limit is not None and inputs >= limit for limit in least)
        # OpenVINO multiplies other groups by a general matrix product, group by group: 1.6 times as long for vitae_13m.
        is_vectorized = inputs % _GROUP_STEP == 0 and outputs // (groups or 1) % _GROUP_STEP == 0
        return "" if is_wide and is_vectorized else GROUPED

    def _gathers_most(self, node: ir.Node) -> bool:
        """Whether gathering the inputs takes longer than multiplying them: of kernels with several positions only.

        A row of the kernel is one run of memory, channels last; if it is dilated, each position is one. On a small
        map the difference is a few microseconds.
        """
        outputs, inputs, *kernel = static_shape(node.inputs[1])
        dilations = node.attributes.get_ints("dilations", [1])
        is_dilated = dilations is not None and dilations[-1] > 1
        if math.prod(kernel) == 1 or math.prod(static_shape(node.outputs[0])[2:]) < _MIN_MAP:
            return False
        return outputs * inputs < self.min_position_macs * (2 if is_dilated else 1)


GENERAL_RULE = SpeedRule()  # of runtimes that were not measured


def is_slow_by_rule(skip_reason: str) -> bool:
    """Whether a layer is in float for its speed, which depends on the device, and not for its accuracy."""
    reasons = (GROUPED, CHANNEL_MULTIPLIER, FEW_CHANNELS, CONVERSIONS, WITHOUT_WEIGHTS)
    return skip_reason in reasons or skip_reason.startswith(TOO_SMALL)
