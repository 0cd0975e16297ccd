"""RetinaNet matches the authors' backbones under mmdet's neck and head, and its definition."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from edgevit import create_model
from edgevit.errors import CheckpointError, UsageError
from edgevit.models.dense.fpn import FPN
from edgevit.models.dense.retinanet import LEVELS, RetinaNet, level_anchors
from edgevit.models.initialization import randomize
from edgevit.models.registry import get_spec
from edgevit.models.spec import StateDict
from tests import oracles
from tests.helpers.backbones import TinyBackbone
from tests.helpers.macs import macs

SIZE = (288, 416)
RAW = tuple(f"{kind}_{level}" for level in LEVELS for kind in ("cls", "reg"))
ORACLES = {
    "mobileformer_151m_retinanet": "mobileformer_dense__retinanet_151m",
    "vitaev2_s_retinanet": "vitaev2_det__retinanet_vitaev2_s",
}
SMALL: dict[str, Any] = {"img_size": (64, 96), "num_classes": 3, "head_width": 16, "stacked_convs": 1}


@pytest.fixture(
    scope="module",
    params=["mobileformer_151m_retinanet", pytest.param("vitaev2_s_retinanet", marks=pytest.mark.large)],
)
def recorded(request: pytest.FixtureRequest) -> tuple[oracles.DenseOracle, RetinaNet]:
    oracle = oracles.load_dense(ORACLES[request.param])
    model = create_model(request.param, oracle.weights, img_size=SIZE)
    assert isinstance(model, RetinaNet)
    return oracle, model


def run(model: RetinaNet, images: Tensor, outputs: Any = "boxes") -> dict[str, Tensor]:
    model.outputs = outputs
    with torch.no_grad():
        found: dict[str, Tensor] = model(images)
    return found


def small_model(**options: Any) -> RetinaNet:
    model = RetinaNet(TinyBackbone(), **{**SMALL, **options}).eval()
    randomize(model, seed=5)
    return model


def registered_model(weights: StateDict | None = None, **options: Any) -> RetinaNet:
    backbone = {"embed_dim": 12, "depths": (1, 1, 1, 1)}
    model = create_model("shiftvit_t_light_retinanet", weights, backbone_options=backbone, **options)
    assert isinstance(model, RetinaNet)
    return model


def test_matches_mmdet_on_the_authors_backbone(recorded: tuple[oracles.DenseOracle, RetinaNet]) -> None:
    oracle, model = recorded
    assert sum(parameter.numel() for parameter in model.parameters()) == oracle.params
    raw = run(model, oracle.images, "raw")
    assert max(oracle.error_of_std(name, raw[name].numpy()) for name in RAW) <= 1e-4
    logits, deltas = ([raw[f"{kind}_{level}"] for level in LEVELS] for kind in ("cls", "reg"))
    with torch.no_grad():
        boxes, scores = model.detections(logits, deltas)
    assert oracle.error_of_std("boxes", boxes.numpy()) <= 2e-4
    assert oracle.error_of_std("scores", scores.numpy()) <= 1e-4
    assert oracle.error_of_std("scores", scores.sigmoid().numpy()) > 0.1  # as if the sigmoid were computed twice
    assert oracle.error_of_std("boxes", boxes[..., [1, 0, 3, 2]].numpy()) > 0.1  # as if x and y were swapped


def test_the_anchors_are_mmdets() -> None:
    oracle = oracles.load_dense("mobileformer_dense__retinanet_151m")
    assert oracle.error_of_std("anchors", torch.cat(level_anchors(SIZE)).numpy()) <= 1e-6


@pytest.mark.parametrize(
    ("size", "anchors"), [((224, 224), 9441), ((512, 512), 49104), ((800, 800), 120087), ((800, 1344), 201600)]
)
def test_the_number_of_anchors(size: tuple[int, int], anchors: int) -> None:
    assert sum(map(len, level_anchors(size))) == anchors


# Millions of parameters with p6 from c5 and from p5 (section 4.2 of the paper's arithmetic).
PARAMS = {
    "mobileformer_151m": (14.091, 14.386),
    "mobileformer_214m": (15.001, 15.223),
    "mobileformer_294m": (15.942, 16.089),
    "mobileformer_508m": (17.931, 17.968),
    "vitaev2_s": (29.076, None),
    "shiftvit_t": (38.74, None),
    "shiftvit_t_light": (29.78, None),
    "shuffle_swin_xt": (17.35, None),
}


@pytest.mark.parametrize("backbone", PARAMS)
def test_has_the_parameters_of_its_parts(backbone: str) -> None:
    for extra_convs, expected in zip(("on_input", "on_output"), PARAMS[backbone], strict=True):
        if expected is not None:
            spec = get_spec(f"{backbone}_retinanet")
            with torch.device("meta"):
                model = spec.factory(num_classes=80, extra_convs=extra_convs, img_size=(64, 64))
            params = sum(parameter.numel() for parameter in model.parameters()) / 1e6
            assert params == pytest.approx(
                expected, abs=0.0051 if expected > 17.3 and "mobile" not in backbone else 5.1e-4
            )


@pytest.mark.parametrize(("spatial", "total"), [(False, 160.7), pytest.param(True, 161.1, marks=pytest.mark.large)])
def test_has_the_macs_that_the_paper_reports(spatial: bool, total: float) -> None:
    """161 G at 800 x 1344 with the ReLU of the classifier; the spatial one costs 0.47 G more."""
    model = create_model(
        "mobileformer_151m_retinanet", img_size=(800, 1344), backbone_options={"spatial_relu": spatial}
    )
    assert macs(model, (1, 3, 800, 1344)) / 1e9 == pytest.approx(total, abs=0.1)


def test_the_best_anchors_of_a_level_are_kept_with_their_boxes() -> None:
    images = torch.randn(2, 3, 64, 96)
    model = small_model()
    all_of_them, raw = run(model, images), run(model, images, "raw")
    model.topk = 50
    kept = run(model, images)
    counts = [min(50, raw[f"reg_{level}"].shape[2] * raw[f"reg_{level}"].shape[3] * 9) for level in LEVELS]
    assert kept["boxes"].shape == (2, sum(counts), 4)
    assert kept["scores"].shape == (2, sum(counts), 3)
    finest = raw["reg_p3"].shape[2] * raw["reg_p3"].shape[3] * 9
    order = all_of_them["scores"][1, :finest].amax(1).argsort(descending=True)[:50]
    torch.testing.assert_close(kept["boxes"][1, :50], all_of_them["boxes"][1, order])
    torch.testing.assert_close(kept["scores"][1, :50], all_of_them["scores"][1, order])


def test_detections_do_not_depend_on_the_batch() -> None:
    model, images = small_model(), torch.randn(3, 3, 64, 96)
    together = run(model, images)
    alone = torch.cat([run(model, image[None])["scores"] for image in images])
    torch.testing.assert_close(together["scores"], alone)


def test_features_are_those_of_the_backbone() -> None:
    model, images = small_model(), torch.randn(1, 3, 64, 96)
    found = run(model, images, "features")
    with torch.no_grad():
        expected = model.backbone(images)
    assert list(found) == ["c2", "c3", "c4", "c5"]
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_p6_is_computed_from_c5_or_from_p5() -> None:
    maps = [torch.randn(1, 4, 8 // 2**level, 8) for level in range(3)]
    for extra_convs in ("on_input", "on_output"):
        fpn = FPN((4, 4, 4), 4, extra=1, extra_convs=extra_convs)
        *_, p5, p6 = fpn(maps)
        torch.testing.assert_close(p6, fpn.fpn_convs[3](maps[2] if extra_convs == "on_input" else p5))


def test_there_is_no_relu_between_p6_and_p7() -> None:
    fpn = FPN((4,), 4, extra=2)
    (_, p6, p7) = fpn([torch.randn(1, 4, 16, 16)])
    assert (p6 < 0).any()
    torch.testing.assert_close(p7, fpn.fpn_convs[2](p6))


def test_a_checkpoint_sets_the_number_of_classes() -> None:
    options = {key: value for key, value in SMALL.items() if key != "num_classes"}
    model = registered_model(registered_model(num_classes=7, **options).state_dict(), **options)
    assert model.num_classes == 7
    assert run(model, torch.randn(1, 3, 64, 96))["scores"].shape[2] == 7


def test_tensors_of_training_are_left_out_by_name_and_others_refused(caplog: pytest.LogCaptureFixture) -> None:
    weights = registered_model(**SMALL).state_dict()
    of_classifier = {"backbone.classifier.fc.weight": torch.zeros(1), "auxiliary_head.convs.0.weight": torch.zeros(1)}
    with caplog.at_level(logging.WARNING):
        registered_model(weights | of_classifier, **SMALL)
    assert "auxiliary_head.* (1), backbone.classifier.* (1)" in caplog.text
    with pytest.raises(CheckpointError, match=r"1 unexpected in the checkpoint: roi_head\.x"):
        registered_model({**weights, "roi_head.x": torch.zeros(1)}, **SMALL)


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"img_size": (64, 100)}, "multiples of 32, got 64x100; the next valid size is 64x128"),
    ({"outputs": "masks"}, "unknown outputs 'masks'"),
    ({"extra_convs": "on_lateral"}, "unknown extra_convs 'on_lateral'"),
    ({"topk": 0}, "topk must be at least 1, not 0"),
]


@pytest.mark.parametrize(("options", "message"), REFUSED)
def test_wrong_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        small_model(**options)


def test_images_of_another_size_are_refused() -> None:
    refused: Callable[[Tensor], Any] = small_model()
    with pytest.raises(UsageError, match="created for 64x96 images, got 96x96"):
        refused(torch.zeros(1, 3, 96, 96))
