"""Make random weights well-conditioned: BatchNorms get the statistics of their inputs, as training gives them."""

from __future__ import annotations

import torch
from torch import nn

from edgevit.models.float64 import run_in_float64

MAX_FLOAT32_ERROR = 1e-4  # of the outputs' standard deviation, on one row
_LIMIT_S = 120.0


def settle_statistics(module: nn.Module, inputs: torch.Tensor) -> bool:
    """Set the running statistics in place if PyTorch's own float32 is off by more than `MAX_FLOAT32_ERROR`.

    `inputs` are one batch of all kinds that the module is compared on; other kinds can leave the statistics' range.

    The statistics that `randomize` draws do not fit the activations: in a deep network without other norms these can
    grow by a constant factor in each block, until the outputs of some inputs depend on rounding. Return whether the
    statistics were set; a module without BatchNorm, or that does not run in float64, is left.
    """
    norms = [each for each in module.modules() if isinstance(each, nn.BatchNorm1d | nn.BatchNorm2d)]
    if not norms or float32_error(module, inputs) <= MAX_FLOAT32_ERROR:
        return False
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the average of all batches, and there is one
        norm.train()
    with torch.no_grad():
        module(inputs)
    module.eval()
    return True


def float32_error(module: nn.Module, inputs: torch.Tensor) -> float:
    """Return the largest error of any row, in standard deviations of the outputs; 0 if it is no single tensor."""
    with torch.no_grad():
        outputs = module(inputs)
    if not isinstance(outputs, torch.Tensor):
        return 0.0
    try:
        exact = run_in_float64(module, [inputs], limit_s=_LIMIT_S)
    except (RuntimeError, TypeError, TimeoutError):
        return 0.0
    return float((outputs - exact).abs().max() / exact.std())
