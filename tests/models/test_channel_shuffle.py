"""Channel shuffle and DeiT match their authors' implementations and their definitions."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from edgevit import create_model
from edgevit.errors import CheckpointError, UsageError
from edgevit.models.channel_shuffle import ChannelShuffle, Rescaling, TransformerLayer, shuffle
from edgevit.models.initialization import randomize
from edgevit.models.layers import add_class_token
from edgevit.models.registry import list_models
from tests import oracles
from tests.helpers.macs import macs

# Millions of trainable parameters and billions of MACs of the authors' code; the shuffled models are without learned
# rescaling.
FIGURES = {
    "deit_t": (5.7174, 1.2537),
    "shuffle_deit_t": (6.0955, 1.2828),
    "t2t_vit_7": (4.2557, 1.147),
    "t2t_vit_10": (5.8347, 1.516),
    "t2t_vit_12": (6.8874, 1.763),
    "shuffle_t2t_7": (4.660, 1.176),
    "shuffle_t2t_10": (6.239, 1.546),
    "shuffle_t2t_12": (7.292, 1.792),
    "swin_xt": (6.8527, 1.071),
    "swin_t": (28.2884, 4.491),
    "shuffle_swin_xt": (7.1828, 1.032),
    "shuffle_swin_t": (28.8400, 4.325),
}


@pytest.mark.parametrize(
    ("name", "rescale", "oracle"),
    [
        ("shuffle_deit_t", "none", "shuffle_deit__deit_tiny_shuffle_patch16_224"),
        ("shuffle_swin_xt", "half", "shuffle_swin__swin_xt_shuffle"),
    ],
)
def test_matches_the_authors_implementation(name: str, rescale: Rescaling, oracle: str) -> None:
    expected = oracles.load(oracle)
    model = create_model(name, expected.weights, rescale=rescale)
    with torch.no_grad():
        logits = model(expected.images).double().numpy()
    assert sum(parameter.numel() for parameter in model.parameters()) == expected.params
    assert abs(logits - expected.logits).max() <= 1e-4 * expected.logits.std()


def test_every_model_has_figures() -> None:
    assert set(FIGURES) == set(list_models("channel_shuffle"))


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=pytest.mark.large if params_m > 7 else ()) for name, (params_m, _) in FIGURES.items()],
)
def test_has_the_parameters_and_macs_of_the_authors_code(name: str) -> None:
    options: dict[str, Any] = {"rescale": "none"} if name.startswith("shuffle") else {}
    model = create_model(name, **options)
    params_m, macs_g = FIGURES[name]
    trainable = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    assert trainable / 1e6 == pytest.approx(params_m, abs=5e-4)
    assert macs(model, (1, 3, 224, 224)) / 1e9 == pytest.approx(macs_g, abs=1e-3)


@pytest.mark.parametrize(("name", "layers"), [("shuffle_deit_t", 12), ("shuffle_t2t_7", 7), ("shuffle_swin_xt", 10)])
def test_learns_one_scalar_per_shortcut(name: str, layers: int) -> None:
    rescalings = [value for key, value in create_model(name).state_dict().items() if "rescale" in key]
    assert [tuple(value.shape) for value in rescalings] == [(1,)] * (2 * layers)


@pytest.mark.parametrize(
    ("name", "layers", "last"),
    [
        ("deit_t", 1e-6, 1e-6),
        ("shuffle_deit_t", 1e-6, 1e-5),
        ("shuffle_t2t_7", 1e-5, 1e-5),
        ("shuffle_swin_xt", 1e-5, 1e-5),
    ],
)
def test_norms_have_the_epsilons_of_the_authors_code(name: str, layers: float, last: float) -> None:
    norms = {key: norm.eps for key, norm in create_model(name).named_modules() if isinstance(norm, nn.LayerNorm)}
    assert norms.pop("norm") == last
    assert set(norms.values()) == {layers}


@pytest.mark.parametrize("shape", [(2, 5, 6), (3, 2, 4, 8)])
def test_shuffle_interleaves_the_channels(shape: tuple[int, ...]) -> None:
    attended, idle = torch.randn(shape), torch.randn(shape)
    shuffled = shuffle(attended, idle)
    assert torch.equal(shuffled[..., 0::2], attended)
    assert torch.equal(shuffled[..., 1::2], idle)


class Negate(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return -x


def test_layers_process_only_the_first_half_and_the_halves_interleave_after_each_layer() -> None:
    x = torch.arange(8.0).reshape(1, 1, 8)
    once = [-0.0, 4, -1, 5, -2, 6, -3, 7]  # layer: -0 -1 -2 -3, idle: 4 5 6 7
    twice = [0.0, -2, -4, 6, 1, -3, -5, 7]  # layer: 0 -4 1 -5, idle: -2 6 -3 7
    assert ChannelShuffle(Negate())(x).flatten().tolist() == once
    assert ChannelShuffle(Negate(), Negate())(x).flatten().tolist() == twice


@pytest.mark.parametrize(("rescale", "scale"), [(None, 1), ("none", 1), ("half", 0.5), ("learned", 0.5)])
def test_rescales_both_shortcuts(rescale: Rescaling | None, scale: float) -> None:
    layer = TransformerLayer(8, nn.Linear(8, 8), mlp_ratio=2, drop_path=0, rescale=rescale)
    x = torch.randn(2, 3, 8)
    attended = scale * x + layer.attn(layer.norm1(x))
    assert torch.equal(layer(x), scale * attended + layer.mlp(layer.norm2(attended)))


def test_the_two_learned_scalars_are_independent() -> None:
    layer = TransformerLayer(8, nn.Linear(8, 8), mlp_ratio=2, drop_path=0, rescale="learned")
    weights = layer.state_dict()
    weights["rescale_attn.scale"], weights["rescale_mlp.scale"] = torch.tensor([3.0]), torch.tensor([-2.0])
    layer.load_state_dict(weights)
    x = torch.randn(2, 3, 8)
    attended = 3 * x + layer.attn(layer.norm1(x))
    assert torch.equal(layer(x), -2 * attended + layer.mlp(layer.norm2(attended)))


def test_add_class_token_prepends_it_and_adds_the_positions() -> None:
    tokens, cls_token, pos_embed = torch.randn(2, 4, 3), torch.randn(1, 1, 3), torch.randn(1, 5, 3)
    expected = torch.cat((cls_token.expand(2, -1, -1), tokens), dim=1) + pos_embed
    assert torch.equal(add_class_token(tokens, cls_token, pos_embed), expected)


def test_learned_rescaling_rejects_weights_without_rescaling() -> None:
    weights = create_model("shuffle_deit_t", depth=2, rescale="none").state_dict()
    with pytest.raises(CheckpointError, match=r"4 missing in the checkpoint: blocks\.0\.rescale_attn"):
        create_model("shuffle_deit_t", weights, depth=2)


@pytest.mark.parametrize("name", ["deit_t", "t2t_vit_7", "swin_xt"])
def test_plain_networks_have_no_option_rescale(name: str) -> None:
    with pytest.raises(UsageError, match=f"unknown option of {name} 'rescale'"):
        create_model(name, rescale="half")


def test_rejects_an_unknown_rescaling() -> None:
    with pytest.raises(UsageError, match=r"unknown rescaling 'halve'; .* Did you mean 'half'"):
        create_model("shuffle_deit_t", rescale="halve")


@pytest.mark.parametrize("name", ["deit_t", "shuffle_deit_t"])
@pytest.mark.parametrize("size", [(64, 96), (32, 16)])
def test_accepts_sizes_that_are_not_square(name: str, size: tuple[int, int]) -> None:
    model = create_model(name, depth=1, img_size=size)
    assert model(torch.randn(2, 3, *size)).shape == (2, 1000)
    with pytest.raises(UsageError, match=r"create it with img_size=\(48, 48\)"):
        model(torch.randn(2, 3, 48, 48))


def test_rejects_sizes_that_are_not_multiples_of_the_patch_size() -> None:
    with pytest.raises(UsageError, match="the next valid size is 224x240"):
        create_model("deit_t", img_size=(224, 230))


@pytest.mark.parametrize("options", [{"heads": 5}, {"heads": 0}, {"embed_dim": 100}])
def test_rejects_heads_that_do_not_divide_the_width(options: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=r"channels are not divisible by \d+ heads"):
        create_model("deit_t", **options)


def test_loads_its_own_state_dict() -> None:
    model = create_model("shuffle_deit_t", depth=2)
    randomize(model, seed=1)
    again = create_model("shuffle_deit_t", model.state_dict(), depth=2)
    image = torch.randn(1, 3, 224, 224)
    with torch.no_grad():
        assert torch.equal(model(image), again(image))
