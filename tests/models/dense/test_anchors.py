"""Anchors and decoded boxes are mmdet's."""

from __future__ import annotations

import pytest
import torch

from edgevit.models.dense import anchors
from edgevit.models.dense.anchors import base_anchors, decode, grid_anchors
from tests.oracles import load_parts

PARTS = load_parts()
SMALL_MAPS = ((3, 4), (2, 2), (1, 1), (1, 1), (1, 1))
STRIDES = (8, 16, 32, 64, 128)
MMDETS_ROUNDING = 1e-4  # of its anchors, which it computes in float32


def small_grid(shift: float = 0.0) -> torch.Tensor:
    maps = zip(SMALL_MAPS, STRIDES, strict=True)
    return torch.cat([grid_anchors(*size, stride) + shift * stride for size, stride in maps])


def error(actual: torch.Tensor, name: str) -> float:
    return float((actual - PARTS[name]).abs().max())


def error_of_std(actual: torch.Tensor, name: str) -> float:
    return error(actual, name) / float(PARTS[name].std())


def test_base_anchors_are_mmdets() -> None:
    assert error(torch.cat([base_anchors(stride) for stride in STRIDES]), "base_anchors") < MMDETS_ROUNDING


def test_the_grid_of_anchors_is_mmdets() -> None:
    assert error(small_grid(), "anchors_small") < MMDETS_ROUNDING


def test_anchors_off_by_half_a_cell_are_noticed() -> None:
    assert error(small_grid(shift=0.5), "anchors_small") >= 4


def test_anchors_with_x_and_y_swapped_are_noticed() -> None:
    assert error(small_grid()[:, [1, 0, 3, 2]], "anchors_small") > 8


def test_decoded_boxes_are_mmdets() -> None:
    boxes = decode(PARTS["deltas"][None], PARTS["roi"], img_size=(288, 416))[0]
    assert error_of_std(boxes, "decoded_retina") < 2e-5


def test_boxes_beyond_the_image_are_clipped_and_no_others() -> None:
    boxes = decode(PARTS["deltas"][None], PARTS["roi"], img_size=(10**6, 10**6))[0]
    expected = PARTS["decoded_retina_no_clip"]
    inside = (expected >= 0).all(1)
    assert inside.any()
    torch.testing.assert_close(boxes[inside], expected[inside], rtol=1e-5, atol=1e-3)
    clipped = decode(PARTS["deltas"][None], PARTS["roi"], img_size=(288, 416))[0]
    assert (clipped.amax(0) == torch.tensor([416.0, 288.0, 416.0, 288.0])).all()


def test_a_box_decoded_with_height_and_width_swapped_is_noticed() -> None:
    boxes = decode(PARTS["deltas"][None, :, [0, 1, 3, 2]], PARTS["roi"], img_size=(288, 416))[0]
    assert error_of_std(boxes, "decoded_retina") > 0.1


def test_the_growth_of_a_side_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    roi = torch.tensor([[10.0, 10.0, 12.0, 12.0]])
    wide = decode(torch.tensor([[[0.0, 0.0, 9.0, 0.0]]]), roi, img_size=(1000, 1000))[0, 0]
    assert wide.tolist() == pytest.approx([0, 10, 11 + 62.5, 12])
    monkeypatch.setattr(anchors, "MAX_LOG_SCALE", 9)
    assert decode(torch.tensor([[[0.0, 0.0, 9.0, 0.0]]]), roi, img_size=(1000, 1000))[0, 0, 2] == 1000
