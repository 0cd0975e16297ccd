"""The form of a model's operators that plain exports run fastest, where the model's own is made for edgevit's passes.

T2T-ViT's windows end in an index of the channels, which edgevit moves into the weights behind it. A plain export keeps
the index, and t2t_vit_7 would take 1.06 to 1.2 times as long as with two overlaps and two transposes.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from unittest import mock

import torch
from torch import Tensor
from torch.nn import functional

from edgevit.models import t2t_vit


@contextlib.contextmanager
def plain_form() -> Iterator[None]:
    """Let models compute as a plain export runs fastest."""
    with mock.patch.object(t2t_vit, "soft_split", split_by_transposes):
        yield


def split_by_transposes(x: Tensor, *, kernel: int, stride: int, padding: int) -> Tensor:
    """Extract the windows of `t2t_vit.soft_split`, (N, H, W, C) -> (N, H/s * W/s, C * k * k)."""
    channels = x.shape[3]
    x = functional.pad(x, (0, 0, padding, padding, padding, padding))
    rows, columns = x.shape[1] // stride, x.shape[2] // stride  # numbers of blocks: one more than windows
    x = _overlap(x.reshape(-1, rows, stride * x.shape[2] * channels), kernel, stride)  # (N, H/s, k * W * C)
    x = _overlap(x.reshape(-1, kernel, columns, stride * channels), kernel, stride)  # (N * H/s, k, W/s, k * C)
    x = x.transpose(1, 2).reshape(-1, kernel * kernel, channels).transpose(1, 2)  # (N * H/s * W/s, C, k * k)
    return x.reshape(-1, (rows - 1) * (columns - 1), channels * kernel * kernel)


def _overlap(blocks: Tensor, kernel: int, stride: int) -> Tensor:
    """Append to each block the first k - s of the next block's s units, (..., B, s * u) -> (..., B - 1, k * u)."""
    units = blocks.shape[-1] // stride
    return torch.cat((blocks[..., :-1, :], blocks[..., 1:, : (kernel - stride) * units]), dim=-1)
