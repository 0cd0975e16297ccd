"""UPerNet's head matches transformers', and its pooling PyTorch's at any size."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from edgevit.models.dense.upernet import AdaptivePool, UPerHead
from edgevit.models.registry import get_spec
from tests import oracles


def test_matches_the_head_of_transformers() -> None:
    weights, maps, expected = oracles.load_head("upernet__transformers_head")
    head = UPerHead([each.shape[1] for each in maps], 24, 5, size=(maps[3].shape[2], maps[3].shape[3])).eval()
    head.load_state_dict(weights)
    with torch.no_grad():
        logits = head(maps)[:, :, ::4, ::4].double().numpy()
    assert abs(logits - expected).max() <= 1e-4 * expected.std()


@pytest.mark.parametrize("size", [(16, 16), (25, 42), (7, 7), (9, 13), (2, 3)])
@pytest.mark.parametrize("side", [1, 2, 3, 6])
def test_pooling_by_matmuls_is_adaptive_pooling(size: tuple[int, int], side: int) -> None:
    x = torch.randn(2, 3, *size, dtype=torch.float64)
    pool = AdaptivePool(size, side)
    torch.testing.assert_close(pool(x.float()), F.adaptive_avg_pool2d(x, side).float(), rtol=1e-5, atol=1e-6)


def test_pooling_in_windows_of_equal_size_is_another_function() -> None:
    """A common replacement in exporters: windows of 16 // 6 = 2 pixels give 8 x 8 values instead of 6 x 6."""
    x = torch.randn(1, 1, 16, 16)
    assert F.avg_pool2d(x, 16 // 6).shape != AdaptivePool((16, 16), 6)(x).shape


# Millions of parameters for 150 classes, without the auxiliary head.
PARAMS = {
    "vitaev2_s": 48.52,
    "shiftvit_t": 59.30,
    "shiftvit_t_light": 50.34,
    "shuffle_swin_xt": 37.91,
    "mobileformer_151m": 31.87,
    "mobileformer_294m": 34.00,
    "mobileformer_508m": 36.22,
}


@pytest.mark.parametrize("backbone", PARAMS)
def test_has_the_parameters_of_its_parts(backbone: str) -> None:
    with torch.device("meta"):
        model = get_spec(f"{backbone}_upernet").factory(num_classes=150, img_size=(64, 64))
    assert sum(parameter.numel() for parameter in model.parameters()) / 1e6 == pytest.approx(PARAMS[backbone], abs=6e-3)
