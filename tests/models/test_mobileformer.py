"""Mobile-Former matches its authors' implementation, their figures and its definition."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F

from edgevit import create_model
from edgevit.errors import UsageError
from edgevit.models.initialization import randomize
from edgevit.models.mobileformer import ChannelShuffle, DynamicReLU, token_shares
from edgevit.models.registry import list_models
from tests import oracles
from tests.helpers.macs import macs

# Millions of parameters and billions of MACs at 224x224, of the authors' code.
FIGURES = {
    "mobileformer_26m": (3.2328, 0.0236),
    "mobileformer_52m": (3.4691, 0.0493),
    "mobileformer_96m": (4.5853, 0.0920),
    "mobileformer_151m": (7.5958, 0.1462),
    "mobileformer_214m": (9.4259, 0.2084),
    "mobileformer_294m": (11.4226, 0.2867),
    "mobileformer_508m": (13.9770, 0.4985),
}
SMALL: dict[str, Any] = {"blocks": (("down", 2, 16), ("keep", 2, 16)), "fc_dim": 32}


def small_model(**options: Any) -> torch.nn.Module:
    model = create_model("mobileformer_96m", num_classes=10, **{**SMALL, **options})
    randomize(model, seed=5)
    return model


@pytest.mark.parametrize("variant", ["26m", "96m", "294m"])
def test_matches_the_authors_implementation(variant: str) -> None:
    expected = oracles.load(f"mobileformer__mobile_former_{variant}")
    model = create_model(f"mobileformer_{variant}", expected.weights)
    with torch.no_grad():
        logits = model(expected.images).double().numpy()
    assert sum(parameter.numel() for parameter in model.parameters()) == expected.params
    assert abs(logits - expected.logits).max() <= 1e-4 * expected.logits.std()


@pytest.mark.parametrize(
    ("name", "figures"),
    [
        pytest.param(name, figures, marks=() if name == "mobileformer_26m" else pytest.mark.large)
        for name, figures in FIGURES.items()
    ],
)
def test_has_the_parameters_and_macs_of_the_authors_code(name: str, figures: tuple[float, float]) -> None:
    model = create_model(name)
    params = sum(parameter.numel() for parameter in model.parameters())
    assert (round(params / 1e6, 4), round(macs(model, (1, 3, 224, 224)) / 1e9, 4)) == figures


def test_every_variant_has_figures() -> None:
    assert list_models("mobileformer") == list(FIGURES)


@pytest.mark.parametrize("spatial_relu", [False, True])
@pytest.mark.parametrize("size", [(32, 32), (33, 65), (256, 320)])
def test_accepts_any_size(size: tuple[int, int], spatial_relu: bool) -> None:
    assert create_model("mobileformer_26m", spatial_relu=spatial_relu)(torch.randn(1, 3, *size)).shape == (1, 1000)


@pytest.mark.parametrize("spatial_relu", [False, True])
def test_logits_do_not_depend_on_the_batch(spatial_relu: bool) -> None:
    model = small_model(spatial_relu=spatial_relu)
    images = torch.randn(3, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(model(images), torch.cat([model(image[None]) for image in images]))


def test_shuffle_interleaves_the_groups() -> None:
    x = torch.arange(6.0).reshape(1, 6, 1, 1)
    assert ChannelShuffle(2)(x).flatten().tolist() == [0, 3, 1, 4, 2, 5]
    assert ChannelShuffle(3)(x).flatten().tolist() == [0, 2, 4, 1, 3, 5]


def test_dynamic_relu_is_the_maximum_of_two_lines_even_if_the_first_slope_is_smaller() -> None:
    relu = DynamicReLU(8, 2)
    last = relu.hyper[2]
    assert isinstance(last, torch.nn.Linear)
    with torch.no_grad():
        last.weight.zero_()
        last.bias.copy_(torch.tensor([-3.0, 3.0, 3.0, 0.0]))  # slopes 0 and 2; 1 and 0
    x = torch.tensor([2.0, -2.0]).reshape(1, 1, 1, 2).expand(1, 2, 1, 2)
    y = relu(x, torch.randn(1, 3, 8))
    assert y[0, 0].flatten().tolist() == [2.0, 0.0]  # max(0 x, 1 x): the second slope is larger
    assert y[0, 1].flatten().tolist() == [4.0, 0.0]  # max(2 x, 0 x)


@pytest.mark.parametrize("token", [0, 1, 2])
def test_spatial_relu_with_one_hot_shares_equals_the_relu_of_that_token(token: int) -> None:
    relu = DynamicReLU(8, 4)
    randomize(relu, seed=1)
    x, z = torch.randn(2, 4, 5, 7), 3 * torch.randn(2, 3, 8)
    share = F.one_hot(torch.full((2, 5, 7), token), 3).permute(0, 3, 1, 2).float()
    torch.testing.assert_close(relu(x, z, share), relu(x, z[:, token : token + 1]))


def test_spatial_relu_mixes_the_slopes_at_each_pixel() -> None:
    relu = DynamicReLU(8, 4)
    randomize(relu, seed=1)
    x, z = torch.randn(2, 4, 5, 7), 3 * torch.randn(2, 3, 8)
    share = torch.randn(2, 3, 5, 7).softmax(1)
    slopes = torch.einsum("nmhw,nmc->nchw", share, F.relu6(relu.hyper(z) + 3) / 6)
    a1, a2 = (slopes[:, :4] - 0.5) * 2 + 1, (slopes[:, 4:] - 0.5) * 2
    torch.testing.assert_close(relu(x, z, share), torch.maximum(a1 * x, a2 * x))


@pytest.mark.parametrize("size", [(4, 6), (5, 7), (4, 7)])
def test_shares_at_half_resolution_equal_the_softmax_of_pooled_logits(size: tuple[int, int]) -> None:
    height, width = size
    logits = torch.randn(2, 2, 3, height * width)
    shares = token_shares(logits, height, width, stride=2)
    half = ((height + 1) // 2, (width + 1) // 2)  # the output size of a 3x3 convolution with stride 2
    pooled = F.adaptive_avg_pool2d(logits.mean(1).reshape(2, 3, height, width), half)
    assert shares.shape == (2, 3, *half)
    torch.testing.assert_close(shares, pooled.softmax(1))
    torch.testing.assert_close(shares.sum(1), torch.ones_like(shares[:, 0]))


def test_shares_at_full_resolution_are_a_softmax_over_the_tokens() -> None:
    logits = torch.randn(2, 2, 3, 20)
    shares = token_shares(logits, 4, 5, stride=1)
    torch.testing.assert_close(shares, logits.mean(1).softmax(1).reshape(2, 3, 4, 5))


def test_spatial_relu_with_one_token_equals_the_channel_wise_relu() -> None:
    models = [small_model(token_count=1, spatial_relu=spatial) for spatial in (False, True)]
    image = torch.randn(2, 3, 64, 96)
    with torch.no_grad():
        torch.testing.assert_close(*(model(image) for model in models))


def test_spatial_relu_with_several_tokens_has_the_same_parameters_but_other_logits() -> None:
    channel_wise, spatial = (small_model(spatial_relu=choice) for choice in (False, True))
    image = torch.randn(2, 3, 64, 96)
    assert channel_wise.state_dict().keys() == spatial.state_dict().keys()
    with torch.no_grad():
        difference = (channel_wise(image) - spatial(image)).abs().max()
    assert difference > 1e-2


def test_initializes_convolutions_by_their_fan_out() -> None:
    model = create_model("mobileformer_26m")
    weight = model.get_parameter("classifier.conv.1.weight")  # 1x1, 576 outputs
    assert weight.std().item() == pytest.approx((2 / 576) ** 0.5, rel=0.05)
    assert model.get_parameter("classifier.fc.0.weight").std().item() == pytest.approx(0.01, rel=0.05)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"blocks": (("up", 2, 16),)}, "unknown kind of block 'up'; choose from down, keep"),
        ({"blocks": (("down", 2, 15),)}, "multiple of 2"),
        ({"groups": 4, "blocks": (("down", 2, 18),)}, r"of groups \(4\), got 18"),
        ({"token_dim": 126}, "multiple of 4"),
    ],
)
def test_rejects_inconsistent_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        create_model("mobileformer_96m", **options)
