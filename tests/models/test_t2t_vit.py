"""T2T-ViT matches its authors' implementation and its definition."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from edgevit import create_model
from edgevit.errors import UsageError
from edgevit.export.capture import capture
from edgevit.export.passes import optimize
from edgevit.models.initialization import randomize
from edgevit.models.layers import PerformerAttention
from edgevit.models.t2t_vit import T2TViT, sinusoids, soft_split
from tests import oracles


def test_matches_the_authors_implementation() -> None:
    expected = oracles.load("t2t__t2t_vit_7")
    model = create_model("t2t_vit_7", expected.weights)
    assert isinstance(model, T2TViT)
    with torch.no_grad():
        logits = model(expected.images).double().numpy()
    # In the authors' implementation the constant position table is a parameter.
    assert sum(parameter.numel() for parameter in model.parameters()) + model.pos_embed.numel() == expected.params
    assert abs(logits - expected.logits).max() <= 1e-4 * expected.logits.std()


@pytest.mark.parametrize(
    ("shape", "kernel", "stride", "padding"),
    [
        ((1, 3, 224, 224), 7, 4, 2),
        ((2, 64, 56, 56), 3, 2, 1),
        ((2, 5, 16, 24), 7, 4, 2),
        ((3, 4, 6, 2), 3, 2, 1),
    ],
)
def test_soft_split_is_bit_exact_with_unfold(shape: tuple[int, ...], kernel: int, stride: int, padding: int) -> None:
    x = torch.randn(shape)
    tokens = soft_split(x.permute(0, 2, 3, 1), kernel=kernel, stride=stride, padding=padding)
    assert torch.equal(tokens, F.unfold(x, kernel, stride=stride, padding=padding).transpose(1, 2))


def test_position_table_holds_sines_and_cosines() -> None:
    table = sinusoids(197, 512)
    assert table.shape == (1, 197, 512)
    for position, channel in [(0, 0), (0, 1), (1, 0), (7, 3), (196, 510), (196, 511)]:
        angle = position / 10000 ** (2 * (channel // 2) / 512)
        wave = math.cos if channel % 2 else math.sin
        assert table[0, position, channel].item() == pytest.approx(wave(angle), abs=1e-7)


def performer(in_dim: int, dim: int, *, scale: float) -> PerformerAttention:
    """Return a random attention, its weights times `scale`, so that the features are neither all equal nor all 0."""
    attention = PerformerAttention(in_dim, dim).eval()
    randomize(attention, seed=3)
    attention.kqv.weight.data.mul_(scale)
    return attention


def by_the_formula(attention: PerformerAttention, x: torch.Tensor) -> torch.Tensor:
    """Return v + proj(y), computed by the paper's formula for y."""
    w = attention.w
    features, dim = w.shape

    def phi(u: torch.Tensor) -> torch.Tensor:
        products = torch.einsum("nld,md->nlm", u, w)
        squares = (u * u).sum(-1, keepdim=True).repeat(1, 1, features)
        return torch.exp(products - squares / 2) / math.sqrt(features)

    k, q, v = attention.kqv(x).split(dim, dim=-1)
    numerator = torch.einsum("nlm,nsm,nsd->nld", phi(q), phi(k), v)
    denominator = torch.einsum("nlm,nsm->nl", phi(q), phi(k))[..., None].repeat(1, 1, dim) + 1e-8
    return torch.add(v, attention.proj(numerator / denominator))


@pytest.mark.parametrize("scale", [0.2, 0.6])  # 0.6: the denominators are about 1e-8 or less
def test_linear_attention_matches_its_formula(scale: float) -> None:
    attention = performer(24, 64, scale=scale)
    x = torch.randn(2, 10, 24)
    expected = by_the_formula(attention, x)
    torch.testing.assert_close(attention(x), expected, rtol=1e-4, atol=1e-5)
    assert (expected - attention.kqv(x)[..., -64:]).std() > 0.1  # the attention contributes to the output


def test_export_keeps_the_epsilon_of_linear_attention() -> None:
    attention = performer(24, 64, scale=0.6)
    x = torch.randn(2, 10, 24)
    exported = torch.onnx.export(attention, (x,), dynamo=True, verbose=False)
    assert exported is not None
    torch.testing.assert_close(exported(x)[0], attention(x).detach(), rtol=1e-4, atol=1e-5)


def test_export_has_the_order_of_windows_in_the_weights() -> None:
    model = create_model("t2t_vit_7", depth=1, img_size=(48, 80))
    graph = optimize(capture(model.eval(), (torch.randn(1, 3, 48, 80),)).graph)
    tokens = [node.op_type for node in graph.model.graph if (node.name or "").startswith("tokens_to_token/")]
    assert tokens.count("Concat") == 3  # of the windows
    assert "Gather" not in tokens


@pytest.mark.parametrize("name", ["t2t_vit_7", "shuffle_t2t_7"])
def test_accepts_sizes_that_are_not_square(name: str) -> None:
    model = create_model(name, depth=1, img_size=(48, 80))
    assert model(torch.randn(2, 3, 48, 80)).shape == (2, 1000)
    with pytest.raises(UsageError, match=r"create it with img_size=\(80, 48\)"):
        model(torch.randn(2, 3, 80, 48))


def test_rejects_sizes_that_are_not_multiples_of_16() -> None:
    with pytest.raises(UsageError, match="multiples of 16, got 224x232; the next valid size is 224x240"):
        create_model("t2t_vit_7", img_size=(224, 232))


def test_loads_its_own_state_dict() -> None:
    model = create_model("shuffle_t2t_7", depth=1)
    randomize(model, seed=1)
    again = create_model("shuffle_t2t_7", model.state_dict(), depth=1)
    image = torch.randn(1, 3, 224, 224)
    with torch.no_grad():
        assert torch.equal(model(image), again(image))
