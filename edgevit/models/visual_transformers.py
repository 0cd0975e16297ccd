"""Visual Transformers, ResNets with transformers in the last stage.

"Visual Transformers: Token-based Image Representation and Processing" (Wu et al., ICCV 2021 as
"Visual Transformers: Where Do Transformers Really Belong in Vision Models?", arXiv 2006.03677).

A ResNet whose last stage is replaced by transformers over 16 tokens: a tokenizer pools pixels into tokens, a
transformer processes the tokens, a projector adds them to the pixels, and the head classifies the mean of the last
tokens. The authors published neither code nor weights, and the paper's two descriptions differ, so both are
implemented:

* `mode="appendix"`, the default, follows the pseudo-code of the arXiv appendix: grouped convolutions, 16 heads, scaled
  attention, a position encoding from the attention maps, and recurrent tokenizers that replace half of the tokens. In
  this mode the networks on ResNet-18 and -34 match the MACs that the paper reports within 1.1 %, and the parameters
  within 11 %.
* `mode="paper"` follows equations 1 to 5: one head, no scale, no position encoding, no bias.

No interpretation that we know of matches the paper's figures for ResNet-50 and -101: here they have 3 to 7 % more MACs
and 8 to 20 % more parameters.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edgevit.errors import CheckpointError, UsageError, unknown_name
from edgevit.images import Preprocessing
from edgevit.models import checkpoints
from edgevit.models.layers import attend, merge_heads, split_heads
from edgevit.models.spec import ModelSpec, PaperFigures, StateDict

Mode: TypeAlias = Literal["appendix", "paper"]
MODES = ("appendix", "paper")

HEADS = 16
GROUPS = 16  # of the 1x1 convolutions on pixels
POSITION_MAP = 14  # attention maps are resized to this side for the position encoding


# The trunk: ResNet (He et al., arXiv 1512.03385) without its last stage, with torchvision's structure and names.


class BasicBlock(nn.Module):
    """Residual block with two 3x3 convolutions."""

    expansion = 1

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.downsample = shortcut(in_channels, channels, stride)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(y)) + self.downsample(x))


class Bottleneck(nn.Module):
    """Residual block with a 1x1, a 3x3 and a 1x1 convolution."""

    expansion = 4

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, stride, 1, bias=False)  # the stride is here: "ResNet v1.5"
        self.bn2 = nn.BatchNorm2d(channels)
        self.conv3 = nn.Conv2d(channels, self.expansion * channels, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(self.expansion * channels)
        self.downsample = shortcut(in_channels, self.expansion * channels, stride)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)))
        y = F.relu(self.bn2(self.conv2(y)))
        return F.relu(self.bn3(self.conv3(y)) + self.downsample(x))


def shortcut(in_channels: int, out_channels: int, stride: int) -> nn.Module:
    """Return the identity, or a 1x1 convolution with BatchNorm if the shape changes."""
    if stride == 1 and in_channels == out_channels:
        return nn.Identity()
    return nn.Sequential(nn.Conv2d(in_channels, out_channels, 1, stride, bias=False), nn.BatchNorm2d(out_channels))


BLOCKS: Mapping[str, type[BasicBlock | Bottleneck]] = {"basic": BasicBlock, "bottleneck": Bottleneck}


def stage(
    block: type[BasicBlock | Bottleneck], in_channels: int, channels: int, depth: int, stride: int
) -> nn.Sequential:
    """Return `depth` residual blocks, the first with the stride."""
    first = block(in_channels, channels, stride)
    rest = (block(block.expansion * channels, channels, 1) for _ in range(depth - 1))
    return nn.Sequential(first, *rest)


class ResNetTrunk(nn.Module):
    """ResNet without its last stage: images (N, 3, H, W) -> pixels (N, 256 or 1024, H / 16, W / 16)."""

    def __init__(self, block: str, depths: tuple[int, int, int]) -> None:
        super().__init__()
        if block not in BLOCKS:
            raise unknown_name("residual block", block, BLOCKS)
        kind = BLOCKS[block]
        self.channels = 256 * kind.expansion
        self.conv1 = nn.Conv2d(3, 64, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.layer1 = stage(kind, 64, 64, depths[0], 1)
        self.layer2 = stage(kind, 64 * kind.expansion, 128, depths[1], 2)
        self.layer3 = stage(kind, 128 * kind.expansion, 256, depths[2], 2)
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")

    def trunk(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))  # (N, 64, H/2, W/2)
        x = F.max_pool2d(x, 3, 2, 1)  # (N, 64, H/4, W/4)
        return self.layer3(self.layer2(self.layer1(x)))


# Shared by both modes: attention between a few tokens and many pixels. Pixels have the shape (N, …, C, H * W).


def gather(weights: Tensor, pixels: Tensor) -> Tensor:
    """Return each token's weighted sum of pixels: weights (N, …, L, HW), pixels (N, …, C, HW) -> (N, …, L, C)."""
    return weights @ pixels.transpose(-2, -1)


def scatter(q: Tensor, k: Tensor, v: Tensor, *, scale: float) -> Tensor:
    """Attend from pixels q (N, …, d, HW) to tokens k (N, …, L, d), v (N, …, L, C) -> (N, …, C, HW).

    The attention is computed transposed: the pixels keep their layout, and only the few tokens are transposed.
    """
    weights = ((k * scale) @ q).softmax(-2)  # (N, …, L, HW), sums to 1 over the tokens
    return v.transpose(-2, -1) @ weights


def pixel_heads(x: Tensor) -> Tensor:
    """Split the channels of pixels into heads, (N, C, H, W) -> (N, heads, C / heads, H * W)."""
    _, channels, height, width = x.shape
    return x.reshape(-1, HEADS, channels // HEADS, height * width)


# Modules of the appendix.


class PositionEncoder(nn.Module):
    """Position encoding of a token, computed from its attention maps.

    The maps are resized to 14 x 14, convolved to 7 x 7, flattened, and passed through a linear layer.
    """

    channels = (POSITION_MAP // 2) ** 2

    def __init__(self, maps: int) -> None:
        super().__init__()
        self.downsample = nn.Conv2d(maps, maps, 3, 2, 1)
        self.merge = nn.Conv2d(maps, 1, 1)
        self.mix = nn.Linear(self.channels, self.channels)

    def forward(self, weights: Tensor, height: int, width: int) -> Tensor:
        """Convert attention maps (N, heads, L, H * W) to position encodings (N, L, 49)."""
        _, heads, tokens, _ = weights.shape
        maps = weights.transpose(1, 2).reshape(-1, heads, height, width)  # (N * L, heads, H, W)
        if (height, width) != (POSITION_MAP, POSITION_MAP):  # equal for images of 224 x 224
            maps = F.interpolate(maps, (POSITION_MAP, POSITION_MAP))  # nearest: the pseudo-code gives no mode
        maps = self.merge(self.downsample(maps))  # (N * L, 1, 7, 7)
        return self.mix(maps.reshape(-1, tokens, self.channels))


class FilterTokenizer(nn.Module):
    """Compute tokens as weighted sums of pixels; a convolution gives the weights. (N, C, H, W) -> (N, L, C_T)"""

    def __init__(self, channels: int, tokens: int, token_dim: int) -> None:
        super().__init__()
        self.scale = channels**-0.5
        self.coefficients = nn.Conv2d(channels, tokens, 1)
        self.value = nn.Conv2d(channels, channels, 1, groups=GROUPS)
        self.position = PositionEncoder(1)
        self.token = nn.Linear(channels + PositionEncoder.channels, token_dim)

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[2:]
        weights = (self.coefficients(x) * self.scale).flatten(2).softmax(-1)  # (N, L, HW)
        seen = gather(weights, self.value(x).flatten(2))  # (N, L, C)
        position = self.position(weights[:, None], height, width)
        return self.token(torch.cat((seen, position), dim=2))


class RecurrentTokenizer(nn.Module):
    """Replace half of the tokens, (N, C, H, W) and (N, L, C_T) -> (N, L, C_T).

    The first half of the tokens gives the queries for the new ones; the second half is kept and moves to the front.
    """

    def __init__(self, channels: int, token_dim: int) -> None:
        super().__init__()
        self.scale = (channels // HEADS) ** -0.5
        self.query = nn.Linear(token_dim, channels)
        self.key = nn.Conv2d(channels, channels, 1, groups=GROUPS)
        self.value = nn.Conv2d(channels, channels, 1, groups=GROUPS)
        self.position = PositionEncoder(HEADS)
        self.token = nn.Linear(channels + PositionEncoder.channels, token_dim)

    def forward(self, x: Tensor, tokens: Tensor) -> Tensor:
        height, width = x.shape[2:]
        querying, kept = tokens.chunk(2, dim=1)  # each (N, L/2, C_T)
        query = split_heads(self.query(querying), HEADS) * self.scale  # (N, h, L/2, C/h)
        weights = (query @ pixel_heads(self.key(x))).softmax(-1)  # (N, h, L/2, HW)
        seen = merge_heads(gather(weights, pixel_heads(self.value(x))))  # (N, L/2, C)
        new = self.token(torch.cat((seen, self.position(weights, height, width)), dim=2))  # (N, L/2, C_T)
        return torch.cat((kept, new), dim=1)


class Transformer(nn.Module):
    """Attention between the tokens (N, L, C_T), then one linear layer, each with a shortcut and without a norm.

    As in the pseudo-code, the logits are divided by the square root of the number of tokens, not of the head's width.
    """

    def __init__(self, tokens: int, token_dim: int, groups: int) -> None:
        super().__init__()
        self.scale = tokens**-0.5
        self.key = nn.Conv1d(token_dim, token_dim // 2, 1, groups=groups)
        self.query = nn.Conv1d(token_dim, token_dim // 2, 1, groups=groups)
        self.value = nn.Conv1d(token_dim, token_dim, 1, groups=groups)
        self.feed_forward = nn.Linear(token_dim, token_dim)

    def forward(self, tokens: Tensor) -> Tensor:
        columns = tokens.transpose(1, 2)  # (N, C_T, L), for the grouped convolutions
        q, k, v = (self._heads(part(columns)) for part in (self.query, self.key, self.value))
        tokens = tokens + merge_heads(attend(q, k, v, scale=self.scale))
        return tokens + self.feed_forward(tokens)

    @staticmethod
    def _heads(columns: Tensor) -> Tensor:
        """Split the channels into heads, (N, C, L) -> (N, heads, L, C / heads)."""
        return columns.reshape(-1, HEADS, columns.shape[1] // HEADS, columns.shape[2]).transpose(2, 3)


class Projector(nn.Module):
    """Add to each pixel its attention over the tokens: (N, C, H, W) and (N, L, C_T) -> (N, C, H, W)."""

    def __init__(self, channels: int, token_dim: int) -> None:
        super().__init__()
        self.scale = (channels // HEADS) ** -0.5
        self.query = nn.Conv2d(channels, channels, 1, groups=GROUPS)
        self.key = nn.Linear(token_dim, channels)
        self.value = nn.Linear(token_dim, channels)

    def forward(self, x: Tensor, tokens: Tensor) -> Tensor:
        _, channels, height, width = x.shape
        k, v = (split_heads(part(tokens), HEADS) for part in (self.key, self.value))
        read = scatter(pixel_heads(self.query(x)), k, v, scale=self.scale)  # (N, h, C/h, HW)
        return x + read.reshape(-1, channels, height, width)


# Modules of the paper's equations 1 to 5.


def widened(in_dim: int, out_dim: int) -> nn.Module:
    """Return W_V: a linear layer if the widths differ, otherwise the identity.

    The equations assume C = C_T and have no W_V. For other widths this is the W_V of the paper's first version.
    """
    return nn.Identity() if in_dim == out_dim else nn.Linear(in_dim, out_dim, bias=False)


class PaperFilterTokenizer(nn.Module):
    """Compute tokens T = softmax_HW(X W_A)^T X W_V. (Equation 1)"""

    def __init__(self, channels: int, tokens: int, token_dim: int) -> None:
        super().__init__()
        self.coefficients = nn.Conv2d(channels, tokens, 1, bias=False)  # W_A
        self.value = widened(channels, token_dim)

    def forward(self, x: Tensor) -> Tensor:
        weights = self.coefficients(x).flatten(2).softmax(-1)  # (N, L, HW)
        return self.value(gather(weights, x.flatten(2)))  # gather first: W_V then acts on L tokens, not on HW pixels


class PaperRecurrentTokenizer(nn.Module):
    """Replace all tokens: T = softmax_HW(X W_R)^T X W_V with W_R = (T_in W_{T->R})^T. (Equation 2)"""

    def __init__(self, channels: int, token_dim: int) -> None:
        super().__init__()
        self.query = nn.Linear(token_dim, channels, bias=False)  # W_{T->R}
        self.value = widened(channels, token_dim)

    def forward(self, x: Tensor, tokens: Tensor) -> Tensor:
        pixels = x.flatten(2)  # (N, C, HW)
        weights = (self.query(tokens) @ pixels).softmax(-1)  # (N, L, HW)
        return self.value(gather(weights, pixels))


class PaperTransformer(nn.Module):
    """Transformer T' = T + softmax_L((T K)(T Q)^T) T; T'' = T' + relu(T' F_1) F_2. (Equations 3 and 4)

    In this product K projects to the queries and Q to the keys.
    """

    def __init__(self, token_dim: int) -> None:
        super().__init__()
        self.key, self.query, self.first, self.second = (nn.Linear(token_dim, token_dim, bias=False) for _ in range(4))

    def forward(self, tokens: Tensor) -> Tensor:
        tokens = tokens + attend(self.key(tokens), self.query(tokens), tokens, scale=1)
        return tokens + self.second(F.relu(self.first(tokens)))


class PaperProjector(nn.Module):
    """Add tokens to pixels: X + softmax_L((X W_Q)(T W_K)^T) T W_V. (Equation 5)"""

    def __init__(self, channels: int, token_dim: int) -> None:
        super().__init__()
        self.query = nn.Conv2d(channels, channels, 1, bias=False)  # W_Q
        self.key = nn.Linear(token_dim, channels, bias=False)  # W_K
        self.value = widened(token_dim, channels)

    def forward(self, x: Tensor, tokens: Tensor) -> Tensor:
        _, channels, height, width = x.shape
        read = scatter(self.query(x).flatten(2), self.key(tokens), self.value(tokens), scale=1)  # (N, C, HW)
        return x + read.reshape(-1, channels, height, width)


# The network.


class VisualTransformer(nn.Module):
    """Tokenizer, transformer and projector.

    The first module of a network computes its tokens from pixels only, the others from pixels and tokens.
    """

    def __init__(self, tokenizer: nn.Module, transformer: nn.Module, projector: nn.Module | None) -> None:
        super().__init__()
        self.tokenizer = tokenizer
        self.transformer = transformer
        self.projector = projector

    def forward(self, x: Tensor, tokens: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return new pixels and tokens from pixels (N, C, H, W) and the tokens (N, L, C_T) of the previous module."""
        tokens = self.tokenizer(x) if tokens is None else self.tokenizer(x, tokens)
        tokens = self.transformer(tokens)
        return x if self.projector is None else self.projector(x, tokens), tokens


def appendix_module(
    channels: int, tokens: int, token_dim: int, kqv_groups: int, *, first: bool, projects: bool
) -> VisualTransformer:
    """Return a module of the appendix, with a projector if `projects`."""
    return VisualTransformer(
        FilterTokenizer(channels, tokens, token_dim) if first else RecurrentTokenizer(channels, token_dim),
        Transformer(tokens, token_dim, kqv_groups),
        Projector(channels, token_dim) if projects else None,
    )


def paper_module(channels: int, tokens: int, token_dim: int, *, first: bool, projects: bool) -> VisualTransformer:
    """Return a module of the paper's equations, with a projector if `projects`."""
    return VisualTransformer(
        PaperFilterTokenizer(channels, tokens, token_dim) if first else PaperRecurrentTokenizer(channels, token_dim),
        PaperTransformer(token_dim),
        PaperProjector(channels, token_dim) if projects else None,
    )


class VTResNet(ResNetTrunk):
    """ResNet trunk and visual transformers, for images of any size.

    `block` and `depths` describe the trunk, `modules` is the number of visual transformers. `width` is C, the number of
    channels of their pixels. By default it is that of the trunk, but at least 512 in appendix mode; if it differs from
    that of the trunk, a 1x1 convolution converts the pixels. `tokens` and `token_dim` are L and C_T. `kqv_groups`
    (default 8) is the number of groups in the appendix's transformer.

    The logits are computed from the last tokens, so the last module's projector only affects the feature map of
    `forward_features`. The paper's figures include it. An export removes it as dead code, and `last_projector=False`
    creates the network without it, so that training has no parameter without a gradient.

    Raises UsageError if options contradict each other, or a width is not divisible by the heads or groups.
    """

    def __init__(
        self,
        *,
        block: str,
        depths: tuple[int, int, int],
        modules: int,
        mode: Mode = "appendix",
        width: int | None = None,
        tokens: int = 16,
        token_dim: int = 1024,
        kqv_groups: int | None = None,
        last_projector: bool = True,
        drop_rate: float = 0.2,
        num_classes: int = 1000,
    ) -> None:
        super().__init__(block, depths)
        _check_options(mode, modules, kqv_groups)
        width = width or (self.channels if mode == "paper" else max(512, self.channels))
        kqv_groups = kqv_groups or 8
        if mode == "appendix":
            _check_divisibility(width, tokens, token_dim, kqv_groups)
        self.feature = nn.Identity() if width == self.channels else nn.Conv2d(self.channels, width, 1)
        self.vt = nn.ModuleList()
        for i in range(modules):
            first, projects = i == 0, last_projector or i < modules - 1
            self.vt.append(
                paper_module(width, tokens, token_dim, first=first, projects=projects)
                if mode == "paper"
                else appendix_module(width, tokens, token_dim, kqv_groups, first=first, projects=projects)
            )
        self.dropout = nn.Dropout(drop_rate)
        self.fc = nn.Linear(token_dim, num_classes)

    def forward_features(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the last feature map (N, C, H / 16, W / 16) and tokens (N, L, C_T) of images (N, 3, H, W)."""
        x, tokens = self.feature(self.trunk(x)), None
        for module in self.vt:
            x, tokens = module(x, tokens)
        assert tokens is not None  # there is at least one module
        return x, tokens

    def forward(self, x: Tensor) -> Tensor:
        _, tokens = self.forward_features(x)
        return self.fc(self.dropout(tokens.mean(1)))


def _check_options(mode: str, modules: int, kqv_groups: int | None) -> None:
    if mode not in MODES:
        raise unknown_name("mode", mode, MODES)
    if modules < 1:
        raise UsageError(f"modules must be at least 1, got {modules}")
    if mode == "paper" and kqv_groups is not None:
        raise UsageError("kqv_groups is not supported with mode='paper'; remove it or use mode='appendix'")


def _check_divisibility(width: int, tokens: int, token_dim: int, kqv_groups: int) -> None:
    if width % HEADS:
        raise UsageError(f"width must be a multiple of {HEADS} (the heads), got {width}")
    if tokens % 2:
        raise UsageError(
            f"tokens must be even: recurrent tokenizers (mode='appendix') replace half of them; got {tokens}"
        )
    if token_dim % (2 * HEADS) or token_dim % (2 * kqv_groups):
        raise UsageError(
            f"half of token_dim must be a multiple of {HEADS} (the heads) and of kqv_groups ({kqv_groups}), "
            f"got token_dim {token_dim}"
        )


TRUNK = ("conv1", "bn1", "layer1", "layer2", "layer3")
REPLACED = ("layer4.", "fc.")  # parts of a torchvision ResNet after the trunk


def load_trunk(model: nn.Module, state_dict: Mapping[str, Tensor]) -> None:
    """Load the trunk of a `vt_resnet` model, in place, from the state dict of a torchvision ResNet.

    Keys that start with `layer4.` or `fc.` are ignored; all others must match the trunk exactly. The batch counters
    (num_batches_tracked) may be missing, as in checkpoints from before PyTorch 0.4.1.

    Raises CheckpointError, without changing the model, if keys are missing, unexpected or of another shape, and
    UsageError if `model` has no such trunk.
    """
    if not isinstance(model, ResNetTrunk):
        raise UsageError(f"load_trunk needs a vt_resnet model, not {type(model).__name__}")
    trunk = nn.ModuleDict({name: model.get_submodule(name) for name in TRUNK})
    counters = {key: value for key, value in trunk.state_dict().items() if key.endswith(".num_batches_tracked")}
    given = {key: value for key, value in state_dict.items() if not key.startswith(REPLACED)}
    try:
        checkpoints.load_into(trunk, {**counters, **given}, source="the ResNet checkpoint")
    except CheckpointError as error:
        raise CheckpointError(f"{error}. Use the state dict of a torchvision ResNet of the same depth") from None


def _convert_state_dict(state_dict: StateDict) -> StateDict:
    """Return the state dict unchanged. Raise CheckpointError, which names `load_trunk`, if it is of a plain ResNet."""
    if "layer4.0.conv1.weight" in state_dict:
        raise CheckpointError(
            "this is the checkpoint of a plain ResNet without visual transformers; create the model without weights "
            "and pass the state dict to edgevit.models.visual_transformers.load_trunk"
        )
    return state_dict


def _paper(top1: float, params_m: float, macs_g: float) -> PaperFigures:
    return PaperFigures(top1=top1, params_m=params_m, macs_g=macs_g, source="arXiv 2006.03677, table 8")


# name: ((block, depths of the trunk's stages, modules), the paper's figures with its advanced training recipe).
_VARIANTS: dict[str, tuple[tuple[str, tuple[int, int, int], int], PaperFigures]] = {
    "vt_resnet18": (("basic", (2, 2, 2), 2), _paper(76.8, 11.7, 1.569)),
    "vt_resnet34": (("basic", (3, 4, 6), 3), _paper(79.9, 19.2, 3.236)),
    "vt_resnet50": (("bottleneck", (3, 4, 6), 3), _paper(80.6, 21.4, 3.412)),
    "vt_resnet101": (("bottleneck", (3, 4, 23), 3), _paper(82.3, 41.5, 7.129)),
}

SPECS = tuple(
    ModelSpec(
        name=name,
        family="visual_transformers",
        factory=VTResNet,
        options={"block": block, "depths": depths, "modules": modules},
        preprocessing=Preprocessing(interpolation="bilinear"),  # as in torchvision's evaluation of ResNets
        paper=paper,
        convert_state_dict=_convert_state_dict,
    )
    for name, ((block, depths, modules), paper) in _VARIANTS.items()
)
