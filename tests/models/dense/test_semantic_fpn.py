"""Semantic FPN matches Detectron2's, by mmseg's names too, and resizes logits before it takes the best class."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from edgevit import create_model
from edgevit.errors import UsageError
from edgevit.models.dense import segmenter
from edgevit.models.dense.segmenter import Segmenter
from edgevit.models.dense.semantic_fpn import FPNHead, SemanticBranch, SemanticFPN
from edgevit.models.dense.vt_fpn import from_detectron2
from edgevit.models.initialization import randomize
from edgevit.models.registry import get_spec
from tests import oracles
from tests.helpers.backbones import TinyBackbone

SMALL: dict[str, Any] = {"img_size": (64, 96), "num_classes": 3, "fpn_width": 16, "head_width": 32}


def small_model(**options: Any) -> Segmenter:
    model = SemanticFPN(TinyBackbone(), **{**SMALL, **options}).eval()
    randomize(model, seed=5)
    return model


@pytest.mark.large
def test_matches_detectron2() -> None:
    oracle = oracles.load_dense("semantic_fpn__r50_detectron2")
    model = create_model("fpn_r50", oracle.weights, img_size=tuple(oracle.images.shape[2:]))  # type: ignore[arg-type]
    assert isinstance(model, Segmenter)
    assert sum(parameter.numel() for parameter in model.parameters()) == oracle.params
    with torch.no_grad():
        levels = model.get_submodule("backbone")(model.feature_maps(oracle.images))
        logits = model.get_submodule("sem_seg_head")(levels)
    found = {f"p{level}": each for level, each in enumerate(levels, 2)} | {"logits_quarter": logits}
    found["logits"] = F.interpolate(logits, scale_factor=4, mode="bilinear", align_corners=False)
    assert max(oracle.error_of_std(name, value.numpy()) for name, value in found.items()) <= 1e-4


def test_the_pixel_statistics_of_detectron2_are_left_out_by_name(caplog: pytest.LogCaptureFixture) -> None:
    norm = {"stem.conv1.norm.running_mean": torch.zeros(2)}
    statistics = {"pixel_mean": torch.tensor([[[103.53]], [[116.28]], [[123.675]]]), "pixel_std": torch.ones(3, 1, 1)}
    with caplog.at_level(logging.WARNING):
        found = from_detectron2({**norm, **statistics})
    assert "does not use: pixel_mean (103.53, 116.28, 123.675), pixel_std (1, 1, 1)" in caplog.text
    assert list(found) == ["stem.conv1.norm.running_mean", "stem.conv1.norm.num_batches_tracked"]
    assert int(found["stem.conv1.norm.num_batches_tracked"]) == 0


def test_the_heads_of_mmseg_and_detectron2_differ_in_names_only() -> None:
    mmseg, detectron2 = FPNHead(16, 32, 3).eval(), SemanticBranch(16, 32, 3, norm="BN").eval()
    randomize(mmseg, seed=1)
    detectron2.load_state_dict(dict(zip(detectron2.state_dict(), mmseg.state_dict().values(), strict=True)))
    levels = [torch.randn(1, 16, 16 >> level, 24 >> level) for level in range(4)]
    torch.testing.assert_close(mmseg(levels), detectron2(levels))


def test_has_the_parameters_of_the_authors_configuration() -> None:
    with torch.device("meta"):
        model = get_spec("vitaev2_s_semfpn").factory(num_classes=150, img_size=(64, 64))
    assert sum(parameter.numel() for parameter in model.parameters()) / 1e6 == pytest.approx(23.09, abs=5e-3)


def test_logits_are_resized_before_the_best_class_is_taken() -> None:
    """Two pixels of class 0 and 1, and a class 2 that is second in both: it wins between them, and only there."""
    logits = torch.tensor([[[4.0, 0.0]], [[0.0, 4.0]], [[3.0, 3.0]]])[None]
    found = segmenter.classes(logits)
    assert found.dtype == torch.uint8
    assert found.shape == (1, 4, 8)
    assert found[0, 0].tolist() == [0, 0, 0, 2, 2, 1, 1, 1]
    assert 2 not in logits.argmax(1)  # resized after the choice, class 2 would be nowhere


def test_classes_are_those_of_the_resized_logits() -> None:
    model, images = small_model(), torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        logits: Tensor = model(images)["logits"]
        model.outputs = "classes"
        found = model(images)["classes"]
    expected = F.interpolate(logits, (64, 96), mode="bilinear", align_corners=False).argmax(1)
    assert torch.equal(found.long(), expected)


def test_more_classes_than_a_byte_holds_are_refused() -> None:
    with pytest.raises(UsageError, match="holds up to 256 classes, not 300"):
        small_model(num_classes=300, outputs="classes")


@pytest.mark.parametrize(("option", "value"), [("outputs", "boxes"), ("img_size", (64, 90))])
def test_wrong_options_are_refused(option: str, value: Any) -> None:
    with pytest.raises(UsageError):
        small_model(**{option: value})


def test_a_checkpoint_sets_the_number_of_classes() -> None:
    options = {key: value for key, value in SMALL.items() if key != "num_classes"}
    options["backbone_options"] = {"embed_dim": 12, "depths": (1, 1, 1, 1)}
    trained = create_model("shiftvit_t_light_semfpn", num_classes=7, **options)
    model = create_model("shiftvit_t_light_semfpn", trained.state_dict(), **options)
    with torch.no_grad():
        assert model(torch.randn(1, 3, 64, 96))["logits"].shape == (1, 7, 16, 24)
