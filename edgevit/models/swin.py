"""Swin, plain and with channel shuffle.

"Swin Transformer: Hierarchical Vision Transformer using Shifted Windows" (Liu et al., ICCV 2021, arXiv 2103.14030).
Channel shuffle: arXiv 2310.05642.

Four stages of attention within windows of maps (N, H, W, C); every second layer shifts the windows by half their side.
With channel shuffle, patch merging also processes the two halves of the channels separately.
"""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edgevit.errors import UsageError
from edgevit.models.channel_shuffle import Rescaling, TransformerLayer, chain, total_width
from edgevit.models.downloads import PublishedWeights
from edgevit.models.features import Backbone, add_norms, norms, padded_size
from edgevit.models.layers import (
    Attention,
    attend,
    check_bound_size,
    check_heads,
    drop_path_rates,
    init_truncated_normal,
    merge_heads,
    merge_windows,
    partition_windows,
    split_heads,
)
from edgevit.models.spec import ModelSpec, PaperFigures, StateDict


def relative_positions(window: int) -> Tensor:
    """Return the row of the bias table for each pair of the L pixels of a window, (L, L).

    The table has (2 * window - 1)^2 rows, one for each relative position.
    """
    pixel = torch.arange(window)
    distance = pixel[:, None] - pixel + window - 1  # (w, w), from 0
    rows, columns = distance[:, None, :, None], distance[None, :, None, :]
    return (rows * (2 * window - 1) + columns).reshape(window**2, window**2)  # (w, w, w, w) -> (L, L)


def shift_mask(height: int, width: int, window: int, shift: int) -> Tensor:
    """Return the mask (windows, 1, L, L) to add to the attention scores of shifted windows.

    It is -100 between pixels that share a window only because the shift wraps around the border, and 0 elsewhere.
    """
    wrapped_rows, wrapped_columns = (torch.arange(side) >= side - shift for side in (height, width))
    regions = 2 * wrapped_rows[:, None] + wrapped_columns.int()  # (H, W)
    regions = partition_windows(regions[None, :, :, None], window)  # (windows, L, 1)
    return torch.where(regions == regions.transpose(1, 2), 0.0, -100.0)[:, None]


class WindowAttention(Attention):
    """Attention within windows of a map (N, H, W, C), with a learned bias for each relative position. (Section 3.2)

    If `shift` is not 0, the map is rolled before the attention and rolled back after it. A map of `size` that does not
    divide into windows is padded with zeros at the bottom and at the right; the windows attend to these zeros too.
    """

    def __init__(self, dim: int, heads: int, *, size: tuple[int, int], window: int, shift: int) -> None:
        super().__init__(dim, heads)
        self.window = window
        self.shift = shift
        table = torch.empty((2 * window - 1) ** 2, heads)
        self.relative_position_bias_table = nn.Parameter(nn.init.trunc_normal_(table, std=0.02))
        self.relative_position_index: Tensor
        self.register_buffer("relative_position_index", relative_positions(window), persistent=False)
        self.attn_mask: Tensor | None
        self.pad = (-size[0] % window, -size[1] % window)  # rows, columns
        padded = (size[0] + self.pad[0], size[1] + self.pad[1])
        self.register_buffer("attn_mask", shift_mask(*padded, window, shift) if shift else None, persistent=False)

    def bias(self) -> Tensor:
        """Return the bias (heads, L, L), or (windows * heads, L, L) if the windows are shifted: each has its own mask.

        It is computed from parameters and constants only, so an export folds it.
        """
        bias = self.relative_position_bias_table.t()[:, self.relative_position_index]  # (heads, L, L)
        return bias if self.attn_mask is None else (self.attn_mask + bias).flatten(0, 1)

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]  # a map instead of a sequence
        _, height, width, _ = x.shape
        rows, columns = self.pad
        if rows or columns:
            x = F.pad(x, (0, 0, 0, columns, 0, rows))
        if self.shift:
            x = x.roll((-self.shift, -self.shift), (1, 2))
        x = self.attend_in_windows(partition_windows(x, self.window))
        x = merge_windows(x, self.window, height + rows, width + columns)  # (N, H, W, C)
        if self.shift:
            x = x.roll((self.shift, self.shift), (1, 2))
        return x[:, :height, :width] if rows or columns else x

    def attend_in_windows(self, x: Tensor) -> Tensor:
        """Apply attention to each window, (N * windows, L, C) -> (N * windows, L, C)."""
        bias = self.bias()
        q, k, v = (split_heads(part, self.heads) for part in self.qkv(x).chunk(3, dim=-1))
        if self.attn_mask is not None:  # (N, windows * heads, L, C / heads), to match the bias
            q, k, v = (part.reshape(-1, *bias.shape[:2], part.shape[3]) for part in (q, k, v))
        y = attend(q, k, v, scale=self.scale, bias=bias)
        return self.proj(merge_heads(y.reshape(-1, self.heads, *y.shape[2:])))


def merge_patches(x: Tensor) -> Tensor:
    """Concatenate the channels of each 2x2 pixels, (N, H, W, C) -> (N, H/2, W/2, 4C).

    Their order is upper left, lower left, upper right, lower right.
    """
    _, height, width, channels = x.shape
    columns = x.reshape(-1, 2, width, channels).transpose(1, 2)  # (N * H/2, W, 2, C)
    return columns.reshape(-1, height // 2, width // 2, 4 * channels)


class PatchMerging(nn.Module):
    """Halve the resolution and double the number of channels."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(4 * dim)
        self.reduction = nn.Linear(4 * dim, 2 * dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.reduction(self.norm(merge_patches(x)))  # (N, H, W, C) -> (N, H/2, W/2, 2C)


class ShuffledPatchMerging(nn.Module):
    """Patch merging of each half of the channels separately, at half the cost of merging all channels together."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        half = dim // 2
        self.norm_1 = nn.LayerNorm(4 * half)
        self.norm_2 = nn.LayerNorm(4 * half)
        self.reduction_1 = nn.Linear(4 * half, 2 * half, bias=False)
        self.reduction_2 = nn.Linear(4 * half, 2 * half, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        first, second = x.chunk(2, dim=-1)  # each (N, H, W, C/2)
        first = self.reduction_1(self.norm_1(merge_patches(first)))
        second = self.reduction_2(self.norm_2(merge_patches(second)))
        return torch.cat((first, second), dim=-1)  # (N, H/2, W/2, 2C)


class Stage(nn.Module):
    """Transformer layers, then patch merging (the identity in the last stage)."""

    def __init__(self, blocks: nn.Sequential, downsample: nn.Module) -> None:
        super().__init__()
        self.blocks = blocks
        self.downsample = downsample

    def forward(self, x: Tensor) -> Tensor:
        return self.downsample(self.blocks(x))


class PatchEmbed(nn.Module):
    """Embed square patches as the pixels of a map, with a norm."""

    def __init__(self, dim: int, patch_size: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, dim, patch_size, stride=patch_size)
        self.norm = nn.LayerNorm(dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.proj(x).permute(0, 2, 3, 1))  # (N, 3, H, W) -> (N, H/p, W/p, C)


class Swin(nn.Module):
    """The Swin network. Its masks fix the image size: it raises UsageError for any other.

    `embed_dim` is the width of the layers in the first stage. `pad_windows` accepts any size, by padding: the image to
    multiples of 32, and each map to whole windows, as Swin's detection code does.
    """

    def __init__(
        self,
        rescale: Rescaling | None,
        *,
        embed_dim: int,
        depths: tuple[int, ...],
        heads: tuple[int, ...] = (3, 6, 12, 24),
        window_size: int = 7,
        mlp_ratio: float = 4,
        patch_size: int = 4,
        drop_path_rate: float = 0.1,
        img_size: tuple[int, int] = (224, 224),
        pad_windows: bool = False,
        num_classes: int = 1000,
    ) -> None:
        super().__init__()
        self.img_size = padded_size(img_size) if pad_windows else img_size
        if not pad_windows:
            check_whole_windows(img_size, patch_size=patch_size, window=window_size, stages=len(depths))
        sizes = map_sizes(self.img_size, patch_size=patch_size, stages=len(depths))
        rates = drop_path_rates(drop_path_rate, tuple(depths))
        merging = PatchMerging if rescale is None else ShuffledPatchMerging
        width = total_width(embed_dim, rescale)
        self.patch_embed = PatchEmbed(width, patch_size)
        self.layers = nn.Sequential()
        for stage, (size, stage_heads, stage_rates) in enumerate(zip(sizes, heads, rates, strict=True)):
            dim = embed_dim * 2**stage
            window = window_size if pad_windows else min(window_size, *size)
            shifts = alternating_shifts(size, window_size, len(stage_rates))
            check_heads(dim, stage_heads)
            layers = [
                TransformerLayer(
                    dim,
                    WindowAttention(dim, stage_heads, size=size, window=window, shift=shift),
                    mlp_ratio=mlp_ratio,
                    drop_path=rate,
                    rescale=rescale,
                )
                for shift, rate in zip(shifts, stage_rates, strict=True)
            ]
            downsample = merging(width * 2**stage) if stage + 1 < len(depths) else nn.Identity()
            self.layers.append(Stage(chain(layers, rescale), downsample))
        width *= 2 ** (len(depths) - 1)
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, num_classes)
        init_truncated_normal(self)

    def forward(self, x: Tensor) -> Tensor:
        check_bound_size("Swin", x, self.img_size)
        x = self.patch_embed(x)  # (N, H/4, W/4, C)
        x = self.layers(x)  # (N, H/32, W/32, 8C)
        return self.head(self.norm(x).mean((1, 2)))


class SwinBackbone(Backbone):
    """Feature maps of a Swin: the output of each stage before patch merging, with a norm of its own.

    Swin's detection code shifts windows on every map; here, a map no longer than a window is not shifted, as in its
    classification code. The two differ for images of at most 224 pixels.
    """

    def __init__(self, network: Swin) -> None:
        super().__init__()
        self.img_size = network.img_size
        self.patch_embed = network.patch_embed
        self.layers = network.layers
        width = network.patch_embed.proj.out_channels
        self.channels = tuple(width * 2**stage for stage in range(len(network.layers)))
        add_norms(self, [nn.LayerNorm(dim) for dim in self.channels])

    def feature_maps(self, x: Tensor) -> tuple[Tensor, ...]:
        check_bound_size("Swin", x, self.img_size)
        maps = []
        x = self.patch_embed(x)  # (N, H/4, W/4, C)
        for stage in self.layers:
            assert isinstance(stage, Stage)
            maps.append(stage.blocks(x))
            x = stage.downsample(maps[-1])
        return tuple(norm(each).permute(0, 3, 1, 2) for norm, each in zip(norms(self), maps, strict=True))


def map_sizes(img_size: tuple[int, int], *, patch_size: int, stages: int) -> list[tuple[int, int]]:
    """Return the height and width of each stage's map."""
    reductions = [patch_size * 2**stage for stage in range(stages)]
    return [(img_size[0] // reduction, img_size[1] // reduction) for reduction in reductions]


def check_whole_windows(img_size: tuple[int, int], *, patch_size: int, window: int, stages: int) -> None:
    """Raise UsageError if a map does not divide into whole windows, or has an odd side before it is halved.

    The authors' code for classification does not pad.
    """
    for stage, (height, width) in enumerate(map_sizes(img_size, patch_size=patch_size, stages=stages)):
        whole = min(height, width) > 0 and not any(side % (patch_size * 2**stage) for side in img_size)
        if not whole or any(side % min(window, height, width) for side in (height, width)):
            raise UsageError(
                f"Swin cannot divide a {img_size[0]}x{img_size[1]} image into whole windows of {window} at stage "
                f"{stage + 1}; use sides that are multiples of {patch_size * window * 2 ** (stages - 1)}"
            )


def alternating_shifts(size: tuple[int, int], window: int, depth: int) -> list[int]:
    """Return the shift of each layer of a stage whose map has `size`.

    Every second layer shifts by half a window, unless a side of the map is no longer than a window.
    """
    shift = window // 2 if min(size) > window else 0
    return [shift if index % 2 else 0 for index in range(depth)]


def without_constants(weights: StateDict) -> StateDict:
    """Remove the masks and indices, which the authors' checkpoints contain and the network computes."""
    constants = ("attn_mask", "relative_position_index")
    return {key: value for key, value in weights.items() if not key.endswith(constants)}


_SHUFFLE = "arXiv 2310.05642"
_CODE = "microsoft/Swin-Transformer README"

# name: (rescale, embed_dim, depths, drop_path_rate, the paper's figures). The shuffled networks have one layer less in
# the third stage. For shuffle_swin_t this depth is inferred: no other gives the paper's 28.8 M parameters and 4.3 G
# MACs.
_VARIANTS: dict[str, tuple[Rescaling | None, int, tuple[int, int, int, int], float, PaperFigures]] = {
    "swin_xt": (None, 48, (2, 2, 5, 2), 0.1, PaperFigures(macs_g=1.1, source=_SHUFFLE)),
    "swin_t": (None, 96, (2, 2, 6, 2), 0.2, PaperFigures(top1=81.2, params_m=28, macs_g=4.5, source=_CODE)),
    "shuffle_swin_xt": ("learned", 48, (2, 2, 4, 2), 0.1, PaperFigures(macs_g=1.0, source=_SHUFFLE)),
    "shuffle_swin_t": ("learned", 96, (2, 2, 5, 2), 0.2, PaperFigures(params_m=28.8, macs_g=4.3, source=_SHUFFLE)),
}

_FILENAME = "swin_tiny_patch4_window7_224.pth"
_PUBLISHED = {
    "swin_t": PublishedWeights(
        url=f"https://github.com/SwinTransformer/storage/releases/download/v1.0.0/{_FILENAME}",
        filename=_FILENAME,
    )
}

SPECS = tuple(
    ModelSpec(
        name=name,
        family="channel_shuffle",
        factory=partial(Swin, None) if rescale is None else Swin,  # the plain network has no option `rescale`
        options={"embed_dim": embed_dim, "depths": depths, "drop_path_rate": rate}
        | ({"rescale": rescale} if rescale else {}),
        paper=paper,
        backbone=SwinBackbone,
        backbone_options={"pad_windows": True},
        convert_state_dict=without_constants,
        published=_PUBLISHED.get(name),
    )
    for name, (rescale, embed_dim, depths, rate, paper) in _VARIANTS.items()
)
