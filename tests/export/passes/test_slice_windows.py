"""Overlapping windows of padded maps as four slices of blocks."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from edgevit.export import passes
from edgevit.export.capture import capture
from edgevit.export.graph import OnnxGraph
from edgevit.export.passes.slice_windows import slice_windows
from edgevit.export.tensor_parts import channel_orders
from edgevit.models.t2t_vit import soft_split
from tests.helpers.graphs import BATCH, HEADER, assert_same, noise, parse, run

Split: TypeAlias = Callable[[int, int, int], Callable[[Tensor], Tensor]]

HEIGHT, WIDTH, CHANNELS = 8, 12, 2
WINDOWS = {"Slice": 4, "Concat": 1, "Gather": 0, "Pad": 1}


class Windows(nn.Module):
    """Windows that a norm and a linear layer read."""

    def __init__(self, split: Callable[[Tensor], Tensor], kernel: int) -> None:
        super().__init__()
        self.split, self.norm = split, nn.LayerNorm(kernel**2 * CHANNELS)
        self.layer = nn.Linear(kernel**2 * CHANNELS, 5)
        for parameter in self.norm.parameters():
            nn.init.normal_(parameter)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.layer(self.norm(self.split(x)))
        return found


def unfold(kernel: int, stride: int, padding: int) -> Callable[[Tensor], Tensor]:
    return lambda x: functional.unfold(x, kernel, stride=stride, padding=padding).transpose(1, 2)


def unfold_pixels(kernel: int, stride: int, padding: int) -> Callable[[Tensor], Tensor]:
    """Windows in the order of TensorFlow's patches: the channels of each pixel together."""

    def split(x: Tensor) -> Tensor:
        tokens = unfold(kernel, stride, padding)(x)
        return tokens.reshape(-1, tokens.shape[1], CHANNELS, kernel**2).transpose(2, 3).flatten(2)

    return split


def overlaps(kernel: int, stride: int, padding: int) -> Callable[[Tensor], Tensor]:
    return lambda x: soft_split(x.permute(0, 2, 3, 1), kernel=kernel, stride=stride, padding=padding)


def captured(module: nn.Module, images: int | None) -> OnnxGraph:
    """Return the graph for a number of images, or for any."""
    module.eval()
    example = torch.randn(images or 2, CHANNELS, HEIGHT, WIDTH)
    return capture(module, [example], dynamic_batch=images is None).graph


@pytest.mark.parametrize(("kernel", "stride", "padding"), [(7, 4, 2), (3, 2, 1), (4, 2, 1)])
@pytest.mark.parametrize("split", [unfold, unfold_pixels, overlaps])
def test_windows_are_four_slices(split: Split, kernel: int, stride: int, padding: int) -> None:
    assert_four_slices(captured(Windows(split(kernel, stride, padding), kernel), None))


@pytest.mark.parametrize("images", [1, BATCH])
def test_windows_of_a_fixed_number_of_images_are_four_slices(images: int) -> None:
    assert_four_slices(captured(Windows(unfold(3, 2, 1), 3), images))


def assert_four_slices(before: OnnxGraph) -> None:
    after = passes.optimize(before)
    assert {name: after.operators[name] for name in WINDOWS} == WINDOWS
    assert after.operators["Transpose"] == 2  # channels last, and pixels in blocks
    assert_same(before, after)


def test_the_order_of_pytorchs_channels_is_noted() -> None:
    module = Windows(unfold(3, 2, 1), 3)
    before = captured(module, 1)
    after = passes.optimize(before)
    orders = channel_orders(after)
    names = sorted(orders)
    assert len(names) == 2  # of the windows, and of the norm
    shown = OnnxGraph(after.model.clone())
    values = {value.name: value for node in shown.model.graph for value in node.outputs}
    shown.model.graph.outputs.extend(values[name] for name in names)
    found = run(shown)
    tokens = module.split(torch.from_numpy(np.random.default_rng(0).standard_normal((1, 2, 8, 12)).astype(np.float32)))
    for expected in (tokens, module.norm(tokens)):
        assert any(np.allclose(found[name][..., orders[name]], expected.detach(), atol=1e-5) for name in names)


class OfTokens(Windows):
    """Windows of a map that was a sequence, of tokens or of channels."""

    def __init__(self, *, channels_last: bool) -> None:
        super().__init__(unfold(3, 2, 1), 3)
        self.channels_last = channels_last

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.flatten(2)
        tokens = functional.gelu(tokens.mT).mT if self.channels_last else functional.gelu(tokens)
        return super().forward(tokens.reshape(-1, CHANNELS, HEIGHT, WIDTH))


@pytest.mark.parametrize("channels_last", [True, False])
def test_maps_that_were_tokens_are_not_transposed(*, channels_last: bool) -> None:
    before = captured(OfTokens(channels_last=channels_last), None)
    after = passes.optimize(before)
    assert (
        after.operators["Transpose"] == 2
    )  # of the pixels in blocks; of the input for Gelu, or channels last behind it
    assert (after.operators["Slice"], after.operators["Gather"]) == (4, 0)
    assert_same(before, after)


def twice(x: Tensor) -> Tensor:
    """Windows in which one pixel is repeated and another is missing."""
    return unfold(3, 2, 1)(x).index_select(2, torch.tensor([0, *range(17)]))


def swapped(x: Tensor) -> Tensor:
    """Windows of which the last two have changed places."""
    return unfold(3, 2, 1)(x).index_select(1, torch.tensor([*range(22), 23, 22]))


def dilated(x: Tensor) -> Tensor:
    """Windows of every other pixel."""
    return functional.unfold(x, 3, stride=2, padding=1, dilation=2).transpose(1, 2)


def reflected(x: Tensor) -> Tensor:
    return unfold(3, 2, 0)(functional.pad(x, (1, 1, 1, 1), "reflect"))


def padded_channels(x: Tensor) -> Tensor:
    return unfold(3, 2, 0)(functional.pad(x[:, :1], (1, 1, 1, 1, 1, 0)))


@pytest.mark.parametrize(
    ("split", "kernel"),
    [
        (unfold(5, 2, 1), 5),  # more than two blocks in each direction
        (unfold(2, 2, 1), 2),  # no overlap
        (unfold(5, 3, 2), 5),  # a column of pixels more than blocks have
        (unfold(6, 3, 3), 6),  # rows of pixels more than blocks have
        (twice, 3),
        (swapped, 3),
        (dilated, 3),
        (reflected, 3),
        (padded_channels, 3),
    ],
)
def test_other_windows_stay(split: Callable[[Tensor], Tensor], kernel: int) -> None:
    assert_stays(captured(Windows(split, kernel), None))


@pytest.mark.parametrize("order", [[2, 1, 0], [0, 2, 1]])
def test_images_in_another_order_stay(order: list[int]) -> None:
    module = Windows(lambda x: unfold(3, 2, 1)(x).index_select(0, torch.tensor(order)), 3)
    assert_stays(captured(module, BATCH))


def test_slices_stay() -> None:
    once = passes.optimize(captured(Windows(unfold(3, 2, 1), 3), 1))
    again = once.apply("slice_windows", slice_windows)
    assert [node.name for node in again.model.graph] == [node.name for node in once.model.graph]


class ReadTwice(Windows):
    """The first layer on windows and their Gelu."""

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.split(x)
        found: Tensor = self.layer(tokens) + functional.gelu(tokens)[..., :5]
        return found


class WithoutLayer(Windows):
    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.norm(self.split(x))
        return found


@pytest.mark.parametrize("module", [ReadTwice(unfold(3, 2, 1), 3), WithoutLayer(unfold(3, 2, 1), 3)])
def test_windows_that_others_read_stay(module: nn.Module) -> None:
    assert_stays(captured(module, 1))


def whole(x: Tensor) -> Tensor:
    """The padded map as one token."""
    return functional.pad(x, (2, 2, 4, 4)).flatten(1).unsqueeze(1)


def test_a_single_token_stays() -> None:
    assert_stays(captured(Windows(whole, 16), None))


def test_pads_of_some_axes_stay() -> None:
    """As no exporter writes them."""
    graph = """g (float[1, 2, 8, 12] x) => (y) {
        p = Pad (x, pads, , axes) a = Gather <axis = 2> (p, rows) b = Gather <axis = 4> (a, columns)
        c = Transpose <perm = [0, 1, 2, 4, 3, 5]> (b) d = Reshape (c, shape) e = Transpose <perm = [0, 2, 1]> (d)
        y = MatMul (e, w)}"""
    columns = 2 * np.arange(6) + np.arange(3)[:, np.newaxis]
    weights = {"pads": np.asarray([1, 1, 1, 1]), "axes": np.asarray([2, 3]), "rows": columns[:, :4], "columns": columns}
    assert_stays(parse(f"{HEADER} {graph}", **weights, shape=np.asarray([1, 18, 24]), w=noise(18, 5)))


class OfOneMap(Windows):
    """Two layers on windows of one padded map, which is read as it is, too."""

    def __init__(self) -> None:
        super().__init__(unfold(3, 2, 0), 3)
        self.other = nn.Linear(18, 5)

    def forward(self, x: Tensor) -> Tensor:
        padded = functional.pad(x, (1, 1, 1, 1))
        mean = functional.gelu(padded).mean((1, 2), keepdim=True).mean(3)
        found: Tensor = mean + self.layer(self.split(padded)) + self.other(unfold_pixels(3, 2, 0)(padded))
        return found


def test_all_windows_of_a_map_are_slices() -> None:
    before = captured(OfOneMap(), None)
    after = passes.optimize(before)
    assert (after.operators["Slice"], after.operators["Concat"], after.operators["Gather"]) == (8, 2, 0)
    assert_same(before, after)


def assert_stays(before: OnnxGraph) -> None:
    after = passes.optimize(before)
    assert not any("windows" in str(node.name) for node in after.model.graph)
    assert_same(before, after)
