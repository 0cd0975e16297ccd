"""A tiny backbone, for tests of what stands on it."""

from __future__ import annotations

from torch import Tensor, nn

from edgevit.models.features import Backbone


class TinyBackbone(Backbone):
    """Four convolutions; each halves the map of the one before (the first divides the image by 4)."""

    channels = (4, 8, 12, 16)

    def __init__(self) -> None:
        super().__init__()
        self.convs = nn.ModuleList(
            nn.Conv2d(before, after, stride, stride)
            for before, after, stride in zip((3, *self.channels), self.channels, (4, 2, 2, 2), strict=False)
        )

    def feature_maps(self, x: Tensor) -> tuple[Tensor, ...]:
        maps = []
        for conv in self.convs:
            x = conv(x).relu()
            maps.append(x)
        return tuple(maps)
