"""Multiply-adds as the papers count them: those of convolutions, linear layers and matrix products."""

from __future__ import annotations

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode


def macs(model: nn.Module, shape: tuple[int, ...]) -> int:
    """The multiply-adds of one forward pass over a float32 input of `shape`.

    Only shapes are computed, so that a large model takes no longer than a small one. Norms, activations, softmax and
    sums are not counted, and a padded convolution counts its padding.
    """
    counter = FlopCounterMode(display=False)
    with FakeTensorMode(allow_non_fake_inputs=True), counter:
        model(torch.empty(shape))
    return counter.get_total_flops() // 2
