"""Swin matches its definition. test_channel_shuffle.py tests Swin with channel shuffle against the authors' code."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch

from edgevit import create_model
from edgevit.errors import UsageError
from edgevit.models.initialization import randomize
from edgevit.models.swin import WindowAttention, merge_patches

SMALL: dict[str, Any] = {"embed_dim": 12, "depths": (2, 2), "heads": (3, 6)}


def attend_window_by_window(attention: WindowAttention, x: torch.Tensor) -> torch.Tensor:
    """Attend as in the definition: the window grid is moved down and right by the shift and cut off at the border.

    The bias is looked up for each pair of pixels.
    """
    _, height, width, dim = x.shape
    window, heads = attention.window, attention.heads
    table = attention.relative_position_bias_table

    def borders(side: int) -> list[int]:
        return sorted({0, side, *range(attention.shift, side, window)})

    out = torch.empty_like(x)
    for top, bottom in pairwise(borders(height)):
        for left, right in pairwise(borders(width)):
            pixels = [(row, column) for row in range(top, bottom) for column in range(left, right)]
            tokens = torch.stack([x[:, row, column] for row, column in pixels], dim=1)  # (N, L, C)
            q, k, v = attention.qkv(tokens).reshape(-1, len(pixels), 3, heads, dim // heads).permute(2, 0, 3, 1, 4)
            bias = torch.stack(
                [
                    table[(a - c + window - 1) * (2 * window - 1) + b - d + window - 1]
                    for a, b in pixels
                    for c, d in pixels
                ]
            ).reshape(len(pixels), len(pixels), heads)
            scores = q @ k.transpose(-2, -1) * (dim // heads) ** -0.5 + bias.permute(2, 0, 1)
            y = attention.proj((scores.softmax(-1) @ v).transpose(1, 2).reshape(tokens.shape))
            for index, (row, column) in enumerate(pixels):
                out[:, row, column] = y[:, index]
    return out


@pytest.mark.parametrize("shift", [0, 1, 2])
@pytest.mark.parametrize("size", [(8, 12), (12, 8), (4, 8)])
def test_shifted_windows_equal_windows_on_a_moved_grid(size: tuple[int, int], shift: int) -> None:
    attention = WindowAttention(6, 3, size=size, window=4, shift=shift)
    randomize(attention, seed=2)
    x = torch.randn(2, *size, 6)
    with torch.no_grad():
        torch.testing.assert_close(attention(x), attend_window_by_window(attention, x))


def test_merge_patches_concatenates_four_slices_along_the_channels() -> None:
    x = torch.randn(2, 4, 6, 5)
    slices = (x[:, 0::2, 0::2], x[:, 1::2, 0::2], x[:, 0::2, 1::2], x[:, 1::2, 1::2])
    assert torch.equal(merge_patches(x), torch.cat(slices, dim=-1))


@pytest.mark.parametrize("name", ["swin_xt", "shuffle_swin_xt"])
def test_images_of_a_batch_do_not_affect_each_other(name: str) -> None:
    model = create_model(name, img_size=(56, 112), **SMALL)
    randomize(model, seed=4)
    images = torch.randn(3, 3, 56, 112)
    with torch.no_grad():
        together, alone = model(images), torch.cat([model(image[None]) for image in images])
    assert together.shape == (3, 1000)
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)


def test_constants_in_the_authors_checkpoints_are_ignored() -> None:
    model = create_model("swin_xt", img_size=56, **SMALL)
    weights = dict(model.state_dict())
    weights["layers.0.blocks.1.attn_mask"] = torch.full((4, 49, 49), torch.nan)
    weights["layers.0.blocks.0.attn.relative_position_index"] = torch.zeros(49, 49, dtype=torch.int64)
    image = torch.randn(1, 3, 56, 56)
    with torch.no_grad():
        assert torch.equal(create_model("swin_xt", weights, img_size=56, **SMALL)(image), model(image))


def test_windows_fit_into_the_map_and_do_not_shift_if_they_fill_it() -> None:
    model = create_model("swin_xt", img_size=(56, 112), window_size=14, **SMALL)  # maps of 14x28 and 7x14
    attentions = [module for module in model.modules() if isinstance(module, WindowAttention)]
    assert [(attention.window, attention.shift) for attention in attentions] == [(14, 0), (14, 0), (7, 0), (7, 0)]


@pytest.mark.parametrize(
    ("size", "stage"),
    [((224, 230), 1), ((256, 256), 1), ((112, 112), 4), ((2, 224), 1), ((280, 280), 3)],
)
def test_rejects_sizes_that_leave_windows_incomplete(size: tuple[int, int], stage: int) -> None:
    with pytest.raises(UsageError, match=f"at stage {stage}; use sides that are multiples of 224"):
        create_model("swin_t", img_size=size)


def test_rejects_an_image_of_another_size() -> None:
    with pytest.raises(UsageError, match=r"create it with img_size=\(112, 112\)"):
        create_model("swin_xt", img_size=56, **SMALL)(torch.randn(1, 3, 112, 112))


def test_rejects_heads_without_one_value_per_stage() -> None:
    with pytest.raises(UsageError, match="swin_xt cannot be built"):
        create_model("swin_xt", heads=(3, 6))
