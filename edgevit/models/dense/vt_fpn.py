"""VT-FPN and its baseline: semantic segmentation in "Visual Transformers" (Wu et al., ICCV 2021, section 5.2).

The baseline is Detectron2's semantic FPN on a ResNet whose strides are in the 1x1 convolutions: with it, the totals of
159 and 231 G MACs that the paper prints at 800 x 1216 are met. VT-FPN replaces the 3x3 convolutions of the pyramid: on
each level a tokenizer pools 8 tokens, one transformer relates the tokens of all levels, and a projector on each level
adds its tokens to its pixels. Shared parts have Detectron2's names.

No code and no weights were published, so three points are choices:

* The pyramid's additions from coarse to fine are left out, as in figure 4; they cost no convolution, so the paper's
  figures do not tell.
* The pixels of a level read that level's own 8 tokens. Reading all 32 would cost 9.2 G MACs instead of 8.5.
* Of the two grouped 1x1 convolutions a pixel in the arXiv appendix, the tokenizer's value and the projector's query,
  only one fits into the printed 8.5 G. Here it is the query; `value_conv=True` has both.
"""

from __future__ import annotations

import logging

import torch
from torch import Tensor, nn

from edgevit.models.dense.fpn import top_down
from edgevit.models.dense.resnet import ResNet
from edgevit.models.dense.segmenter import Segmenter, SegmenterOutputs
from edgevit.models.dense.semantic_fpn import Norm, SemanticBranch
from edgevit.models.features import Backbone
from edgevit.models.spec import StateDict
from edgevit.models.visual_transformers import (
    GROUPS,
    Mode,
    PaperFilterTokenizer,
    PaperProjector,
    PaperTransformer,
    PositionEncoder,
    Projector,
    Transformer,
    gather,
)

_LOG = logging.getLogger(__name__)

LEVELS = (2, 3, 4, 5)
PYRAMID_WIDTH = 256
BRANCH_WIDTH = 128
TOKENS = 8  # of a level
TOKEN_WIDTH = 1024
KQV_GROUPS = 8  # of the transformer's projections
PIXEL_STATISTICS = ("pixel_mean", "pixel_std")  # in a checkpoint of Detectron2, of pixels from 0 to 255


class LevelTokenizer(nn.Module):
    """Filter tokenizer of the appendix, (N, C, H, W) -> (N, 8, C_T); the value convolution and position are options."""

    def __init__(self, *, value_conv: bool, position: bool) -> None:
        super().__init__()
        self.scale = PYRAMID_WIDTH**-0.5
        self.coefficients = nn.Conv2d(PYRAMID_WIDTH, TOKENS, 1)
        self.value = nn.Conv2d(PYRAMID_WIDTH, PYRAMID_WIDTH, 1, groups=GROUPS) if value_conv else nn.Identity()
        self.position = PositionEncoder(1) if position else None
        self.token = nn.Linear(PYRAMID_WIDTH + (PositionEncoder.channels if position else 0), TOKEN_WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        weights = (self.coefficients(x) * self.scale).flatten(2).softmax(-1)  # (N, L, HW)
        seen = gather(weights, self.value(x).flatten(2))  # (N, L, C)
        if self.position is not None:
            seen = torch.cat((seen, self.position(weights[:, None], *x.shape[2:])), dim=2)
        return self.token(seen)


class Pyramid(nn.Module):
    """Detectron2's FPN on a ResNet: c2..c5 -> p2..p5, all with 256 channels."""

    def __init__(self, bottom_up: Backbone) -> None:
        super().__init__()
        self.bottom_up = bottom_up
        for level, channels in zip(LEVELS, bottom_up.channels, strict=True):
            self.add_module(f"fpn_lateral{level}", nn.Conv2d(channels, PYRAMID_WIDTH, 1))
            self.add_output(level)

    def add_output(self, level: int) -> None:
        """Add the modules that compute the output of a level."""
        self.add_module(f"fpn_output{level}", nn.Conv2d(PYRAMID_WIDTH, PYRAMID_WIDTH, 3, padding=1))

    def laterals(self, maps: tuple[Tensor, ...]) -> list[Tensor]:
        """Return c2..c5 with 256 channels."""
        return [self.get_submodule(f"fpn_lateral{level}")(each) for level, each in zip(LEVELS, maps, strict=True)]

    def forward(self, maps: tuple[Tensor, ...]) -> list[Tensor]:
        sums = top_down(self.laterals(maps))
        return [self.get_submodule(f"fpn_output{level}")(each) for level, each in zip(LEVELS, sums, strict=True)]


class TokenPyramid(Pyramid):
    """The pyramid of VT-FPN: c2..c5 -> p2..p5."""

    def __init__(self, bottom_up: Backbone, *, mode: Mode, value_conv: bool, position: bool) -> None:
        self.options = {"value_conv": value_conv, "position": position}
        self.mode = mode
        super().__init__(bottom_up)
        self.transformer = (
            PaperTransformer(TOKEN_WIDTH)
            if mode == "paper"
            else Transformer(TOKENS * len(LEVELS), TOKEN_WIDTH, KQV_GROUPS)
        )

    def add_output(self, level: int) -> None:
        if self.mode == "paper":
            self.add_module(f"tokenizer{level}", PaperFilterTokenizer(PYRAMID_WIDTH, TOKENS, TOKEN_WIDTH))
            self.add_module(f"projector{level}", PaperProjector(PYRAMID_WIDTH, TOKEN_WIDTH))
        else:
            self.add_module(f"tokenizer{level}", LevelTokenizer(**self.options))
            self.add_module(f"projector{level}", Projector(PYRAMID_WIDTH, TOKEN_WIDTH))

    def forward(self, maps: tuple[Tensor, ...]) -> list[Tensor]:
        return self.relate(self.laterals(maps))

    def relate(self, laterals: list[Tensor]) -> list[Tensor]:
        """Return the levels after their pixels were pooled into tokens, and related tokens added to the pixels."""
        pairs = list(zip(LEVELS, laterals, strict=True))
        tokens = [self.get_submodule(f"tokenizer{level}")(each) for level, each in pairs]
        related = self.transformer(torch.cat(tokens, dim=1)).split(TOKENS, dim=1)  # (N, 32, C_T), then by level
        return [
            self.get_submodule(f"projector{level}")(each, token)
            for (level, each), token in zip(pairs, related, strict=True)
        ]


class FPNSegmenter(Segmenter):
    """A pyramid on a ResNet and Detectron2's semantic branch, by Detectron2's names."""

    def __init__(self, pyramid: Pyramid, *, img_size: tuple[int, int], num_classes: int, norm: Norm,
                 outputs: SegmenterOutputs) -> None:  # fmt: skip
        super().__init__(img_size=img_size, num_classes=num_classes, outputs=outputs)
        self.backbone = pyramid
        self.sem_seg_head = SemanticBranch(PYRAMID_WIDTH, BRANCH_WIDTH, num_classes, norm=norm)

    def feature_maps(self, x: Tensor) -> tuple[Tensor, ...]:
        bottom_up = self.backbone.bottom_up
        assert isinstance(bottom_up, Backbone)
        return bottom_up.feature_maps(x)

    def logits(self, maps: tuple[Tensor, ...]) -> Tensor:
        return self.sem_seg_head(self.backbone(maps))


def fpn(
    depth: int,
    *,
    img_size: tuple[int, int],
    num_classes: int = 54,
    norm: Norm = "GN",
    stride_in_1x1: bool = True,
    outputs: SegmenterOutputs = "logits",
) -> FPNSegmenter:
    """Return the baseline on a ResNet of 50 or 101 layers. `norm` is that of the semantic branch."""
    pyramid = Pyramid(ResNet(depth, stride_in_1x1=stride_in_1x1))
    return FPNSegmenter(pyramid, img_size=img_size, num_classes=num_classes, norm=norm, outputs=outputs)


def vt_fpn(
    depth: int,
    *,
    img_size: tuple[int, int],
    num_classes: int = 54,
    mode: Mode = "appendix",
    value_conv: bool = False,
    position: bool = False,
    norm: Norm = "GN",
    stride_in_1x1: bool = True,
    outputs: SegmenterOutputs = "logits",
) -> FPNSegmenter:
    """Return VT-FPN on a ResNet of 50 or 101 layers.

    `mode` is the form of tokenizer, transformer and projector (see visual_transformers.py). `value_conv` and `position`
    add the appendix's value convolution and its position encoding, which resizes attention maps to 14 x 14 and so
    distorts those of images that are not square.
    """
    pyramid = TokenPyramid(
        ResNet(depth, stride_in_1x1=stride_in_1x1), mode=mode, value_conv=value_conv, position=position
    )
    return FPNSegmenter(pyramid, img_size=img_size, num_classes=num_classes, norm=norm, outputs=outputs)


def resnet_of(segmenter: nn.Module) -> Backbone:
    """Return the ResNet of a segmenter, for images of any size."""
    backbone = segmenter.get_submodule("backbone.bottom_up")
    assert isinstance(backbone, Backbone)
    return backbone


def from_detectron2(tensors: StateDict) -> StateDict:
    """Return the tensors of a Detectron2 checkpoint by the names here.

    The pixel statistics, which belong to the preprocessing, are left out and named, and the counters that a frozen
    BatchNorm lacks are added.
    """
    statistics = {key: tensors[key].flatten().tolist() for key in PIXEL_STATISTICS if key in tensors}
    if statistics:
        shown = ", ".join(f"{key} ({', '.join(f'{each:g}' for each in values)})" for key, values in statistics.items())
        _LOG.warning(
            "edgevit: tensors of the checkpoint that the exported network does not use: %s; the input is RGB, set "
            "--mean and --std with --input-range 0:255 if the model was trained with these",
            shown,
        )
    kept = {key: value for key, value in tensors.items() if key not in PIXEL_STATISTICS}
    for key in tensors:
        if key.endswith(".running_mean"):
            kept.setdefault(key.replace(".running_mean", ".num_batches_tracked"), torch.zeros((), dtype=torch.long))
    return kept
