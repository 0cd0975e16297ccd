"""Feature maps for dense prediction: the outputs c2..c5 of a hierarchical network's stages."""

from __future__ import annotations

from collections.abc import Mapping

import torch.nn.functional as F
from torch import Tensor, nn

from edgevit.errors import CheckpointError

MAP_NAMES = ("c2", "c3", "c4", "c5")  # of strides 4, 8, 16 and 32
STRIDE = 32
PREFIX = "backbone."  # of a backbone's parameters in the checkpoints of mmdet and mmseg


class Backbone(nn.Module):
    """A network that maps images (N, 3, H, W) to feature maps c2..c5 (N, C, H/s, W/s) of strides s = 4, 8, 16 and 32.

    Sides that are no multiples of 32 are padded with zeros at the bottom and at the right, as mmdet and mmseg do: the
    images are normalized before, so the padding has the mean color. `channels` are the widths of the maps.
    """

    channels: tuple[int, ...]

    def feature_maps(self, x: Tensor) -> tuple[Tensor, ...]:
        """Return c2..c5 of images whose sides are multiples of 32."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return dict(zip(MAP_NAMES, self.feature_maps(pad_to_stride(x)), strict=True))


def padded_size(size: tuple[int, int]) -> tuple[int, int]:
    """Return height and width, rounded up to multiples of 32."""
    return size[0] + -size[0] % STRIDE, size[1] + -size[1] % STRIDE


def pad_to_stride(x: Tensor) -> Tensor:
    """Pad images (N, C, H, W) at the bottom and right with zeros, to sides that are multiples of 32."""
    rows, columns = -x.shape[2] % STRIDE, -x.shape[3] % STRIDE
    return F.pad(x, (0, columns, 0, rows)) if rows or columns else x


def add_norms(backbone: nn.Module, norms: list[nn.Module]) -> None:
    """Register the norms of the four maps as norm0..norm3, their names in the checkpoints of mmdet and mmseg."""
    for stage, norm in enumerate(norms):
        backbone.add_module(f"norm{stage}", norm)


def norms(backbone: nn.Module) -> list[nn.Module]:
    """Return the norms of the four maps."""
    return [backbone.get_submodule(f"norm{stage}") for stage in range(len(MAP_NAMES))]


def backbone_tensors(
    tensors: Mapping[str, Tensor], *, backbone: nn.Module, network: nn.Module, source: str
) -> dict[str, Tensor]:
    """Return the tensors of a checkpoint that belong to the backbone of a network, by the backbone's names.

    From the checkpoint of a detector or segmenter they are those below "backbone.", or below the backbone's name in
    `network`; from that of the classifier, all but its head and last norm. A classifier has no norms for the maps: they
    keep their initial values, the identity up to the normalization itself. Raises CheckpointError if only some of those
    norms are there.
    """
    name = next((name for name, module in network.named_modules() if module is backbone), "")
    prefix = f"{name}." if name else PREFIX
    below = {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
    own = backbone.state_dict()
    of_classifier = network.state_dict().keys() - own.keys()
    found = {key: value for key, value in (below or tensors).items() if key not in of_classifier}
    initial = {key: value for key, value in own.items() if key.startswith("norm")}
    if missing := initial.keys() - found.keys():
        if missing != initial.keys():
            raise CheckpointError(f"{source} has norms of some feature maps only; {', '.join(sorted(missing))} lack")
        found |= initial
    return found
