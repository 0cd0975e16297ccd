"""Swin backbones of mmdet and mmseg by the names and in the order of the authors' code, which are those used here."""

from __future__ import annotations

import re

from torch import Tensor

from edgevit.models.spec import StateDict

_RENAMED = (
    (r"^backbone\.stages\.", "backbone.layers."),
    (r"\.attn\.w_msa\.", ".attn."),
    (r"\.ffn\.layers\.0\.0\.", ".mlp.fc1."),
    (r"\.ffn\.layers\.1\.", ".mlp.fc2."),
    (r"^backbone\.patch_embed\.projection\.", "backbone.patch_embed.proj."),
)
_MERGING = re.compile(r"\.downsample\.(norm|reduction)\.")


def from_openmmlab_swin(tensors: StateDict) -> StateDict:
    """Return the tensors with the authors' names; those that have them already are returned as they are."""
    if not any(key.startswith("backbone.stages.") for key in tensors):
        return tensors
    return {_renamed(key): _by_quadrant(value) if _MERGING.search(key) else value for key, value in tensors.items()}


def _renamed(key: str) -> str:
    for pattern, name in _RENAMED:
        key = re.sub(pattern, name, key)
    return key


def _by_quadrant(value: Tensor) -> Tensor:
    """Reorder the last axis (4 C) of patch merging from nn.Unfold's order to that of the authors.

    Unfold has the four pixels of each channel together, by rows; the authors have all channels of each pixel together,
    and the pixels by columns.
    """
    pixels = value.reshape(*value.shape[:-1], -1, 4).transpose(-1, -2)  # (..., 4, C)
    return pixels[..., [0, 2, 1, 3], :].flatten(-2)
