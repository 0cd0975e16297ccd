"""Tests of backbones: the feature maps equal those of the original implementations, at any size."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import edgevit
from edgevit.errors import CheckpointError, UsageError
from edgevit.models import registry
from edgevit.models.dense import resnet
from edgevit.models.dense.systems import backbone_of
from edgevit.models.features import Backbone
from tests import oracles

# A variant of each kind of backbone with options that make it small.
SMALL: dict[str, dict[str, Any]] = {
    "shiftvit_t": {"embed_dim": 24, "depths": (1, 1, 1, 1)},
    "swin_t": {"embed_dim": 24, "depths": (2, 2, 2, 2)},
    "shuffle_swin_t": {"embed_dim": 24, "depths": (2, 2, 2, 2)},
    "mobileformer_26m": {},
    "vitaev2_s": {
        "embed_dims": (16, 16, 32, 64),
        "token_dims": (16, 32, 64, 128),
        "depths": (1, 1, 1, 1),
        "groups": (1, 8, 16, 32),
        "reduction_groups": (1, 4, 8, 16),
    },
}


def small(name: str, size: tuple[int, int]) -> Backbone:
    torch.manual_seed(0)
    model = edgevit.create_model(name, features=True, img_size=size, **SMALL[name])
    assert isinstance(model, Backbone)
    return model


@pytest.mark.parametrize(
    ("name", "oracle", "options"),
    [
        pytest.param(
            "shiftvit_t", "shiftvit_dense__shiftvit_t_stages", {"stage_norms": False}, marks=pytest.mark.large
        ),
        ("shiftvit_t_light", "shiftvit_dense__fork_light_tiny", {}),
        pytest.param("mobileformer_151m", "mobileformer_dense__mobile_former_151m_shared", {}, marks=pytest.mark.large),
        ("mobileformer_151m", "mobileformer_dense__mobile_former_151m_spatial", {"spatial_relu": True}),
        pytest.param("vitaev2_s", "vitaev2_det__vitaev2_s_backbone", {}, marks=pytest.mark.large),
    ],
)
def test_matches_the_original_implementation(name: str, oracle: str, options: dict[str, Any]) -> None:
    expected = oracles.load_dense(oracle)
    height, width = expected.images.shape[2:]
    model = edgevit.create_model(name, expected.weights, features=True, img_size=(height, width), **options)
    with torch.no_grad():
        maps = model(expected.images)
    assert list(maps) == ["c2", "c3", "c4", "c5"]
    for key, value in maps.items():
        assert expected.error_of_std(key, value.numpy()) <= 1e-4


# Channels of the maps and millions of parameters of the backbone alone.
BACKBONES: dict[str, tuple[tuple[int, ...], float]] = {
    "shiftvit_t": ((96, 192, 384, 768), 27.799),
    "shiftvit_t_light": ((96, 192, 384, 768), 18.841),
    "shiftvit_s": ((96, 192, 384, 768), 49.536),
    "shiftvit_b": ((128, 256, 512, 1024), 88.003),
    "swin_t": ((96, 192, 384, 768), 27.520),
    "shuffle_swin_xt": ((96, 192, 384, 768), 6.415),
    "vitaev2_s": ((64, 128, 256, 512), 18.8427),
    "vitaev2_48m": ((96, 192, 384, 768), 48.6746 - 0.7690),
    "vitaev2_b": ((128, 256, 512, 1024), 89.6934 - 1.0250),
    "mobileformer_508m": ((40, 72, 176, 240), 8.4290),
    "mobileformer_294m": ((24, 48, 128, 192), 6.5804),
    "mobileformer_214m": ((20, 40, 112, 160), 5.7283),
    "mobileformer_151m": ((16, 32, 88, 128), 4.9078),
    "mobileformer_96m": ((16, 32, 88, 128), 2.0039),
    "mobileformer_52m": ((12, 24, 64, 96), 1.6262),
    "mobileformer_26m": ((12, 24, 64, 96), 1.4314),
}


@pytest.mark.parametrize("name", BACKBONES)
def test_has_the_channels_and_parameters_of_the_specification(name: str) -> None:
    channels, million_parameters = BACKBONES[name]
    with torch.device("meta"):
        model = backbone_of(registry.get_spec(name), (64, 64), None)
    assert model.channels == channels
    count = sum(parameter.numel() for parameter in model.parameters())
    assert count / 1e6 == pytest.approx(million_parameters, abs=1e-3)


@pytest.mark.parametrize("name", SMALL)
def test_pads_images_at_the_bottom_and_right_with_zeros(name: str) -> None:
    height, width = 50, 70
    model, images = small(name, (height, width)), torch.randn(2, 3, height, width)
    padded = torch.zeros(2, 3, 64, 96)
    padded[:, :, :height, :width] = images
    with torch.no_grad():
        maps, expected = model(images), model(padded)
    for index, (key, value) in enumerate(maps.items()):
        stride = 4 * 2**index
        assert value.shape == (2, model.channels[index], 64 // stride, 96 // stride)
        assert torch.equal(value, expected[key])


@pytest.mark.parametrize("name", SMALL)
def test_the_maps_do_not_depend_on_the_other_images_of_a_batch(name: str) -> None:
    model, images = small(name, (64, 64)), torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        together, alone = model(images), model(images[1:])
    for key, value in together.items():
        assert torch.allclose(value[1:], alone[key], atol=1e-4)


@pytest.mark.parametrize("name", ["swin_t", "shuffle_swin_t"])
def test_the_maps_of_swin_at_224_are_those_of_its_classifier(name: str) -> None:
    """At 224 pixels no map is padded, so the last map is what the classifier's head reads, up to the norm."""
    torch.manual_seed(0)
    classifier, images = edgevit.create_model(name, **SMALL[name]), torch.randn(1, 3, 224, 224)
    backbone = edgevit.create_model(name, classifier.state_dict(), features=True, **SMALL[name])
    with torch.no_grad():
        backbone.get_submodule("norm3").load_state_dict(classifier.get_submodule("norm").state_dict())
        pooled = backbone(images)["c5"].mean((2, 3))
        assert torch.allclose(classifier.get_submodule("head")(pooled), classifier(images), atol=1e-5)


def test_a_shifted_window_does_not_look_across_the_border_of_a_padded_map() -> None:
    """The lower right pixel of a map of 8 x 8 in windows of 7 changes nothing in the upper left one in one layer."""
    torch.manual_seed(0)
    model = edgevit.create_model("swin_t", features=True, img_size=32, embed_dim=24, depths=(2, 1, 1, 1))
    images = torch.randn(1, 3, 32, 32)
    changed = images.clone()
    changed[:, :, 28:, 28:] += 1
    with torch.no_grad():
        difference = (model(changed)["c2"] - model(images)["c2"]).abs().amax(1)[0]  # (8, 8)
    assert difference[7, 7] > 0
    assert difference[0, 0] == 0


@pytest.mark.parametrize("name", SMALL)
def test_loads_the_checkpoints_of_the_classifier_and_of_a_detector(name: str) -> None:
    classifier, images = edgevit.create_model(name, **SMALL[name]), torch.randn(1, 3, 64, 64)
    weights = dict(classifier.state_dict())
    from_classifier = edgevit.create_model(name, weights, features=True, img_size=64, **SMALL[name])
    detector = {f"backbone.{key}": value for key, value in from_classifier.state_dict().items()}
    detector["neck.lateral_convs.0.conv.weight"] = torch.zeros(1)
    from_detector = edgevit.create_model(name, detector, features=True, img_size=64, **SMALL[name])
    with torch.no_grad():
        expected, maps = from_classifier(images), from_detector(images)
    assert all(torch.equal(expected[key], maps[key]) for key in expected)


def test_the_resnet_of_a_segmenter_loads_its_checkpoint_and_takes_any_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(resnet.DEPTHS, 50, (1, 1, 1, 1))
    torch.manual_seed(0)
    segmenter = edgevit.create_model("fpn_r50", img_size=(64, 96), outputs="features")
    model = edgevit.create_model("fpn_r50", segmenter.state_dict(), features=True, img_size=(50, 70))
    assert registry.output_options("fpn_r50", "features") == registry.OutputChoice(features=True)
    assert isinstance(model, Backbone) and model.channels == (256, 512, 1024, 2048)
    images = torch.randn(1, 3, 50, 70)
    with torch.no_grad():
        expected, maps = segmenter(torch.nn.functional.pad(images, (0, 26, 0, 14))), model(images)
    assert all(torch.equal(maps[key], expected[key]) for key in expected)


@pytest.mark.parametrize(("depth", "million_parameters"), [(50, 23.508), (101, 42.500)])
def test_a_resnet_has_the_parameters_of_the_specification(depth: int, million_parameters: float) -> None:
    with torch.device("meta"):
        model = resnet.ResNet(depth)
    count = sum(parameter.numel() for parameter in model.parameters())
    assert count / 1e6 == pytest.approx(million_parameters, abs=1e-3)


def test_a_checkpoint_with_norms_of_some_maps_only_is_refused() -> None:
    weights = dict(edgevit.create_model("shiftvit_t", features=True, **SMALL["shiftvit_t"]).state_dict())
    del weights["norm2.weight"]
    with pytest.raises(CheckpointError, match="norm2.weight"):
        edgevit.create_model("shiftvit_t", weights, features=True, **SMALL["shiftvit_t"])


def test_a_missing_weight_is_named() -> None:
    weights = dict(edgevit.create_model("shiftvit_t", features=True, **SMALL["shiftvit_t"]).state_dict())
    del weights["patch_embed.proj.bias"]
    with pytest.raises(CheckpointError, match="1 missing in the checkpoint: patch_embed.proj.bias"):
        edgevit.create_model("shiftvit_t", weights, features=True, **SMALL["shiftvit_t"])


@pytest.mark.parametrize("name", ["deit_t", "vt_resnet18", "shiftvit_cifar10"])
def test_a_model_without_maps_is_refused_with_those_that_have_some(name: str) -> None:
    with pytest.raises(UsageError, match=f"{name} has no feature maps.*shiftvit_t, "):
        edgevit.create_model(name, features=True)


def test_feature_maps_have_no_classes() -> None:
    with pytest.raises(UsageError, match="omit num_classes"):
        edgevit.create_model("shiftvit_t", num_classes=10, features=True)


@pytest.mark.large
def test_exports_the_maps_by_name_and_loads_the_backbone_again(tmp_path: Path) -> None:
    model = edgevit.create_model("mobileformer_26m", features=True, img_size=64)
    bundle = edgevit.export(model, fmt="ort", out=tmp_path)
    assert [output.name for output in bundle.manifest.outputs] == ["c2", "c3", "c4", "c5"]
    assert bundle.manifest.model.num_classes is None
    again = edgevit.create_model("mobileformer_26m", img_size=64, **bundle.manifest.model.options)
    assert isinstance(again, Backbone)
