"""Random weights that keep a network alive: an untrained model whose output ignores its input proves nothing.

The usual initialisations are made for training: with their tiny weights and zero biases many activations are all
but constant. These draw every weight so that activations keep their variance, and every bias, norm and statistic so
that forgetting one changes the output.
"""

from __future__ import annotations

import torch
from torch import nn

_NORMS = (nn.GroupNorm, nn.LayerNorm, nn.BatchNorm1d, nn.BatchNorm2d)


def randomise(module: nn.Module, *, seed: int) -> None:
    """Fills every parameter and running statistic of `module` from `seed`, in place; the same on every machine."""
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
        # Below 1: in inference it normalises nothing, and 33 residual blocks in a row would multiply what they are
        # given until attention behind them turns on rounding (vt_resnet101).
        return 0.9 + 0.2 * normal
    if isinstance(layer, _NORMS) and name == "weight":
        return 1 + 0.2 * normal
    if name == "bias":
        return 0.1 * normal
    if isinstance(layer, nn.Linear | nn.Conv1d) and name == "weight":
        # PyTorch's own gain: with 1, attention without norms before it saturates, and the performer's exponentials die.
        return normal / (3 * normal[0].numel()) ** 0.5
    if name == "weight" and normal.ndim > 1 and not isinstance(layer, nn.Embedding):
        return normal / normal[0].numel() ** 0.5  # fan-in
    return 0.5 * normal  # tokens, position tables, random features
