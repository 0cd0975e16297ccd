"""ShiftViT matches its authors' implementation and its definition."""

from __future__ import annotations

import pytest
import torch

from edgevit import create_model
from edgevit.errors import UsageError
from edgevit.models.shiftvit import shift
from tests import oracles

# Parameter counts of the authors' code.
PARAMS = {
    "shiftvit_t": 28_566_664,
    "shiftvit_s": 50_304_136,
    "shiftvit_b": 89_026_408,
    "shiftvit_t_light": 19_608_328,
}


def shift_in_place(x: torch.Tensor, group: int) -> torch.Tensor:
    """Shift as the authors do: zeros, then five sliced assignments."""
    out = torch.zeros_like(x)
    out[:, :group, :, :-1] = x[:, :group, :, 1:]
    out[:, group : 2 * group, :, 1:] = x[:, group : 2 * group, :, :-1]
    out[:, 2 * group : 3 * group, :-1, :] = x[:, 2 * group : 3 * group, 1:, :]
    out[:, 3 * group : 4 * group, 1:, :] = x[:, 3 * group : 4 * group, :-1, :]
    out[:, 4 * group :] = x[:, 4 * group :]
    return out


@pytest.mark.parametrize("shape", [(2, 13, 5, 7), (1, 12, 1, 1), (3, 96, 8, 4)])
def test_shift_is_bit_exact_with_the_in_place_definition(shape: tuple[int, ...]) -> None:
    x = torch.randn(shape)
    assert torch.equal(shift(x, shape[1] // 12), shift_in_place(x, shape[1] // 12))


@pytest.mark.parametrize(
    ("name", "oracle"),
    [("shiftvit_t", "shiftvit__shiftvit_r2_tiny"), ("shiftvit_t_light", "shiftvit__shiftvit_light_tiny")],
)
def test_matches_the_authors_implementation(name: str, oracle: str) -> None:
    expected = oracles.load(oracle)
    model = create_model(name, expected.weights)
    with torch.no_grad():
        logits = model(expected.images).double().numpy()
    assert sum(parameter.numel() for parameter in model.parameters()) == expected.params
    assert abs(logits - expected.logits).max() <= 1e-4 * expected.logits.std()


@pytest.mark.parametrize("size", [(32, 32), (33, 65), (256, 320)])
def test_accepts_any_size_from_32_pixels(size: tuple[int, int]) -> None:
    model = create_model("shiftvit_t", embed_dim=24, depths=(1, 1, 1, 1))
    assert model(torch.randn(1, 3, *size)).shape == (1, 1000)


def test_rejects_an_image_smaller_than_32_pixels() -> None:
    with pytest.raises(UsageError, match="32 pixels"):
        create_model("shiftvit_t", embed_dim=24, depths=(1, 1, 1, 1))(torch.randn(1, 3, 31, 64))
