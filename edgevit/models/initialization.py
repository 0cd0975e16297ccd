"""Random weights that keep activations alive, so that an untrained model still depends on its input.

Initializations for training use small weights and zero biases, which leave many activations nearly constant. These
weights preserve the variance of activations, and every bias, norm and running statistic is drawn so that leaving one
out changes the output.
"""

from __future__ import annotations

import torch
from torch import nn

_NORMS = (nn.GroupNorm, nn.LayerNorm, nn.BatchNorm1d, nn.BatchNorm2d)


def randomize(module: nn.Module, *, seed: int) -> None:
    """Fill parameters and running statistics of `module` in place; a seed gives the same values on every machine."""
    generator = torch.Generator().manual_seed(seed)

    def normal(like: torch.Tensor) -> torch.Tensor:
        return torch.randn(like.shape, generator=generator)

    with torch.no_grad():
        for layer in module.modules():
            for name, parameter in layer.named_parameters(recurse=False):
                parameter.copy_(_scaled(layer, name, normal(parameter)))
            if isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d) and layer.running_mean is not None:
                layer.running_mean.copy_(0.1 * normal(layer.running_mean))
                assert layer.running_var is not None
                layer.running_var.copy_(0.5 + torch.rand(layer.running_var.shape, generator=generator))


def _scaled(layer: nn.Module, name: str, normal: torch.Tensor) -> torch.Tensor:
    if isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d) and name == "weight":
        # Below 1: BatchNorm does not normalize in inference, and 33 residual blocks in a row (vt_resnet101) would
        # amplify activations until the attention behind them depends on rounding.
        return 0.9 + 0.2 * normal
    if isinstance(layer, _NORMS) and name == "weight":
        return 1 + 0.2 * normal
    if name == "bias":
        return 0.1 * normal
    if isinstance(layer, nn.Linear | nn.Conv1d | nn.MultiheadAttention) and name.endswith("weight"):
        # PyTorch's gain. With gain 1, attention without a preceding norm saturates and the Performer's exponentials
        # underflow.
        return normal / (3 * normal[0].numel()) ** 0.5
    if name == "weight" and normal.ndim > 1 and not isinstance(layer, nn.Embedding):
        return normal / normal[0].numel() ** 0.5  # fan-in
    return 0.5 * normal  # tokens, position tables, random features
