"""ShiftViT: "When Shift Operation Meets Vision Transformer" (Wang et al., AAAI 2022, arXiv 2201.10801).

A hierarchical network on NCHW feature maps whose only spatial mixing is a shift of a few channels by one pixel. If the
paper and the code disagree, this implementation follows the published checkpoints: the norm is GroupNorm with one group
(LayerNorm in the paper), the base models shift 4/16 of their channels (4/12 in the paper), and the shortcut is the
shifted tensor.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edgevit.errors import UsageError
from edgevit.images import Preprocessing
from edgevit.models.downloads import PublishedWeights
from edgevit.models.features import Backbone, add_norms, norms
from edgevit.models.layers import DropPath, drop_path_rates, init_truncated_normal
from edgevit.models.spec import ModelSpec, PaperFigures


def shift(x: Tensor, group: int) -> Tensor:
    """Shift four groups of `group` channels by one pixel: left, right, up, down; fill the border with zeros.

    Uses only slices and pads. Bit-exact with the authors' in-place assignment.
    """
    left, right, up, down = (x[:, i * group : (i + 1) * group] for i in range(4))
    return torch.cat(
        (
            F.pad(left[:, :, :, 1:], (0, 1, 0, 0)),  # out[h, w] = x[h, w + 1]
            F.pad(right[:, :, :, :-1], (1, 0, 0, 0)),  # out[h, w] = x[h, w - 1]
            F.pad(up[:, :, 1:, :], (0, 0, 0, 1)),  # out[h, w] = x[h + 1, w]
            F.pad(down[:, :, :-1, :], (0, 0, 1, 0)),  # out[h, w] = x[h - 1, w]
            x[:, 4 * group :],
        ),
        dim=1,
    )


class Mlp(nn.Module):
    """Two 1x1 convolutions with a GELU between them."""

    def __init__(self, dim: int, ratio: float) -> None:
        super().__init__()
        hidden = int(dim * ratio)
        self.fc1 = nn.Conv2d(dim, hidden, 1)
        self.act = nn.GELU()
        self.fc2 = nn.Conv2d(hidden, dim, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.act(self.fc1(x)))  # (N, C, H, W) -> (N, rC, H, W) -> (N, C, H, W)


class ShiftBlock(nn.Module):
    """Shift block: x = shift(x); x = x + mlp(norm(x)). The shortcut is the shifted tensor. (Section 3.2)"""

    def __init__(self, dim: int, *, n_div: int, mlp_ratio: float, drop_path: float) -> None:
        super().__init__()
        self.group = dim // n_div
        self.norm2 = nn.GroupNorm(1, dim)
        self.mlp = Mlp(dim, mlp_ratio)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        x = shift(x, self.group)
        return x + self.drop_path(self.mlp(self.norm2(x)))


class PatchMerging(nn.Module):
    """Halve the resolution and double the number of channels."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(1, dim)
        self.reduction = nn.Conv2d(dim, 2 * dim, 2, stride=2, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.reduction(self.norm(x))  # (N, C, H, W) -> (N, 2C, H/2, W/2)


class Stage(nn.Module):
    """Shift blocks, then patch merging if `downsample`."""

    def __init__(self, dim: int, *, n_div: int, mlp_ratio: float, drop_paths: list[float], downsample: bool) -> None:
        super().__init__()
        self.blocks = nn.Sequential(
            *(ShiftBlock(dim, n_div=n_div, mlp_ratio=mlp_ratio, drop_path=rate) for rate in drop_paths)
        )
        self.downsample = PatchMerging(dim) if downsample else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.downsample(self.blocks(x))


class PatchEmbed(nn.Module):
    """Embed square patches as the pixels of a map, with a norm."""

    def __init__(self, dim: int, patch_size: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, dim, patch_size, stride=patch_size)
        self.norm = nn.GroupNorm(1, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.proj(x))  # (N, 3, H, W) -> (N, C, H/p, W/p)


class ShiftViT(nn.Module):
    """The ShiftViT network, for images of at least `8 * patch_size` pixels per side (with four stages).

    Sizes that do not divide evenly are rounded down, as in the authors' code. Raises UsageError for smaller images.
    """

    def __init__(
        self,
        *,
        embed_dim: int,
        depths: tuple[int, ...],
        mlp_ratio: float,
        n_div: int = 12,
        patch_size: int = 4,
        drop_path_rate: float = 0.0,
        num_classes: int = 1000,
    ) -> None:
        super().__init__()
        if not 4 <= n_div <= embed_dim:
            raise UsageError(f"n_div must lie between 4 and embed_dim ({embed_dim}), got {n_div}")
        self.min_size = patch_size * 2 ** (len(depths) - 1)
        self.patch_embed = PatchEmbed(embed_dim, patch_size)
        last = len(depths) - 1
        self.layers = nn.Sequential(
            *(
                Stage(
                    embed_dim * 2**i,
                    n_div=n_div,
                    mlp_ratio=mlp_ratio,
                    drop_paths=rates,
                    downsample=i < last,
                )
                for i, rates in enumerate(drop_path_rates(drop_path_rate, tuple(depths)))
            )
        )
        self.norm = nn.GroupNorm(1, embed_dim * 2**last)
        self.head = nn.Linear(embed_dim * 2**last, num_classes)
        init_truncated_normal(self)

    def forward(self, x: Tensor) -> Tensor:
        if min(x.shape[2:]) < self.min_size:
            raise UsageError(
                f"ShiftViT needs images of at least {self.min_size} pixels per side, got {x.shape[2]}x{x.shape[3]}"
            )
        x = self.patch_embed(x)  # (N, C, H/4, W/4)
        x = self.layers(x)  # (N, 8C, H/32, W/32)
        x = self.norm(x).mean((2, 3))  # (N, 8C)
        return self.head(x)


class ShiftViTBackbone(Backbone):
    """Feature maps of a ShiftViT: the output of each stage before patch merging, with a norm of its own.

    The authors published no dense code. The norms follow Swin's; `stage_norms=False` leaves them out.
    """

    def __init__(self, network: ShiftViT, *, stage_norms: bool = True) -> None:
        super().__init__()
        self.patch_embed = network.patch_embed
        self.layers = network.layers
        width = network.patch_embed.proj.out_channels
        self.channels = tuple(width * 2**stage for stage in range(len(network.layers)))
        add_norms(self, [nn.GroupNorm(1, dim) if stage_norms else nn.Identity() for dim in self.channels])

    def feature_maps(self, x: Tensor) -> tuple[Tensor, ...]:
        maps = []
        x = self.patch_embed(x)  # (N, C, H/4, W/4)
        for stage in self.layers:
            assert isinstance(stage, Stage)
            maps.append(stage.blocks(x))
            x = stage.downsample(maps[-1])
        return tuple(norm(each) for norm, each in zip(norms(self), maps, strict=True))


_PAPER = "arXiv 2201.10801"
_CODE = "microsoft/SPACH README"

# name: ((embed_dim, depths, mlp_ratio, n_div, drop_path_rate), the paper's figures). The mlp_ratio is 4 in the "light"
# and "r4" variants, 2 in the others.
_VARIANTS: dict[str, tuple[tuple[int, tuple[int, int, int, int], int, int, float], PaperFigures]] = {
    "shiftvit_t": (
        (96, (6, 8, 18, 6), 2, 12, 0.2),
        PaperFigures(top1=81.7, params_m=29, macs_g=4.5, source=_CODE),
    ),
    "shiftvit_s": (
        (96, (10, 18, 36, 10), 2, 12, 0.4),
        PaperFigures(top1=82.8, params_m=50, macs_g=8.8, source=_CODE),
    ),
    "shiftvit_b": ((128, (10, 18, 36, 10), 2, 16, 0.6), PaperFigures(top1=83.3, source=_PAPER)),
    "shiftvit_t_light": (
        (96, (2, 2, 6, 2), 4, 12, 0.2),
        PaperFigures(top1=79.4, params_m=20, macs_g=3.0, source=_CODE),
    ),
    "shiftvit_s_light": (
        (96, (2, 2, 18, 2), 4, 12, 0.4),
        PaperFigures(top1=81.6, params_m=34, macs_g=5.7, source=_CODE),
    ),
    "shiftvit_b_light": ((128, (2, 2, 18, 2), 4, 16, 0.5), PaperFigures(source=_PAPER)),
    "shiftvit_t_r4": ((96, (2, 2, 12, 3), 4, 12, 0.2), PaperFigures(source=_PAPER)),
    "shiftvit_s_r4": ((96, (2, 6, 24, 4), 4, 12, 0.4), PaperFigures(source=_PAPER)),
    "shiftvit_b_r4": ((128, (4, 6, 22, 4), 4, 16, 0.5), PaperFigures(source=_PAPER)),
}

_RELEASE = "https://github.com/microsoft/SPACH/releases/download/v1.0"
_PUBLISHED = {
    name: PublishedWeights(url=f"{_RELEASE}/{filename}", filename=filename)
    for name, filename in {
        "shiftvit_t": "shiftvit_tiny_r2.pth",
        "shiftvit_s": "shiftvit_small_r2.pth",
        "shiftvit_t_light": "shiftvit_tiny_light.pth",
        "shiftvit_s_light": "shiftvit_small_light.pth",
    }.items()
}

SPECS = (
    *(
        ModelSpec(
            name=name,
            family="shiftvit",
            factory=ShiftViT,
            options={
                "embed_dim": embed_dim,
                "depths": depths,
                "mlp_ratio": mlp_ratio,
                "n_div": n_div,
                "drop_path_rate": rate,
            },
            paper=paper,
            backbone=ShiftViTBackbone,
            published=_PUBLISHED.get(name),
        )
        for name, ((embed_dim, depths, mlp_ratio, n_div, rate), paper) in _VARIANTS.items()
    ),
    ModelSpec(
        name="shiftvit_cifar10",
        family="shiftvit",
        factory=ShiftViT,
        options={"embed_dim": 36, "depths": (1, 2, 4, 2), "mlp_ratio": 2, "patch_size": 2},
        preprocessing=Preprocessing(input_size=(3, 32, 32), crop_pct=1.0),
        num_classes=10,
        classes="cifar10",
        paper=PaperFigures(top1=76.25, source="this project: CIFAR-10, first 2,000 test images"),
        included_weights="shiftvit_cifar10.pth",
    ),
)
