"""Preprocessing is read from what a model declares, or set by the user, and never guessed in silence."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from enum import Enum
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from edgevit import create_model
from edgevit.errors import UsageError
from edgevit.images import Preprocessing, crop_fraction, to_array
from edgevit.models.description import describe_preprocessing, with_classes, with_preprocessing
from edgevit.models.loading import from_module
from edgevit.models.preprocessing import (
    PreprocessingOptions,
    declared_classes,
    declared_preprocessing,
    declared_size,
    parse_preprocessing,
)

TIMM = {
    "input_size": (3, 256, 256),
    "interpolation": "bicubic",
    "crop_pct": 0.95,
    "crop_mode": "squash",
    "mean": (0.5, 0.5, 0.5),
    "std": (0.5, 0.5, 0.5),
    "num_classes": 1000,
}
VIT = {
    "do_resize": True,
    "size": {"height": 224, "width": 224},
    "resample": 2,
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "do_normalize": True,
    "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.5, 0.5, 0.5],
}
SQUARE = (3, 224, 224)


class Classifier(nn.Module):
    """Three numbers of a photo, with whatever a library attaches to its modules."""

    def __init__(self, **declared: Any) -> None:
        super().__init__()
        for name, value in declared.items():
            setattr(self, name, value)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images.mean((2, 3))


def photo(size: int = 32) -> torch.Tensor:
    return torch.zeros(1, 3, size, size)


def test_a_timm_configuration_is_declared_for_the_size_of_the_example() -> None:
    model = from_module(Classifier(pretrained_cfg=TIMM), example_input=photo(32))
    assert model.preprocessing == replace(parse_preprocessing(TIMM), input_size=(3, 32, 32))
    assert (model.preprocessing.crop_mode, model.preprocessing.crop_pct) == ("squash", 0.95)
    assert model.preprocessing_source == "declared"


def test_without_a_declaration_imagenet_is_assumed_and_said() -> None:
    model = from_module(Classifier(), example_input=photo())
    assert (model.preprocessing, model.preprocessing_source) == (Preprocessing(input_size=(3, 32, 32)), "assumed")
    line = describe_preprocessing(model) or ""
    assert line.startswith("preprocessing assumed: bicubic resize to 36 (center), crop to 32x32, mean 0.485,0.456,")
    assert "set --mean, --std" in line


def test_an_input_that_is_no_photo_has_none() -> None:
    model = from_module(Classifier(pretrained_cfg=TIMM), example_input=torch.zeros(1, 2, 8, 8))
    assert (model.preprocessing, model.preprocessing_source, describe_preprocessing(model)) == (None, None, None)


def test_a_registered_model_keeps_its_settings_at_another_size() -> None:
    model = from_module(create_model("shiftvit_cifar10"), example_input=photo(64))
    assert model.preprocessing == Preprocessing(input_size=(3, 64, 64), crop_pct=1.0)
    assert (model.preprocessing_source, describe_preprocessing(model)) == ("published", None)


def hugging_face(size: tuple[int, int], **options: Any) -> Preprocessing:
    """The settings of a Hugging Face model with the mean and standard deviation of 0.5."""
    half = (0.5, 0.5, 0.5)
    return Preprocessing(input_size=(3, *size), interpolation="bilinear", mean=half, std=half, **options)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, hugging_face((224, 224), crop_pct=1.0, crop_mode="squash")),
        (
            {"size": {"shortest_edge": 256}, "do_center_crop": True, "crop_size": {"height": 224, "width": 224}},
            hugging_face((224, 224), crop_pct=0.875),
        ),
        (
            {"size": {"height": 256, "width": 256}, "do_center_crop": True, "crop_size": 224},
            hugging_face((224, 224), crop_pct=0.875, crop_mode="squash"),
        ),
        ({"size": {"shortest_edge": 224}, "crop_pct": 0.875}, hugging_face((224, 224), crop_pct=0.875)),
        ({"size": {"shortest_edge": 384}, "crop_pct": 1.0}, hugging_face((384, 384), crop_pct=1.0, crop_mode="squash")),
        ({"do_normalize": False}, replace(parse_preprocessing(VIT), mean=(0.0,) * 3, std=(1.0,) * 3)),
        (
            {"do_rescale": False, "do_normalize": False},
            replace(parse_preprocessing(VIT), mean=(0,) * 3, std=(1 / 255,) * 3),
        ),
        ({"rescale_factor": 2 / 255}, replace(parse_preprocessing(VIT), mean=(0.25,) * 3, std=(0.25,) * 3)),
    ],
)  # fmt: skip
def test_a_hugging_face_processor_is_read(changes: dict[str, Any], expected: Preprocessing) -> None:
    assert parse_preprocessing({**VIT, **changes}) == expected
    assert parse_preprocessing(SimpleNamespace(to_dict=lambda: {**VIT, **changes})) == expected


def test_a_hugging_face_model_is_read_from_the_folder_of_its_weights(tmp_path: Path) -> None:
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(VIT))
    module = Classifier(config=SimpleNamespace(name_or_path=str(tmp_path), id2label={1: "dog", 0: "cat"}))
    assert declared_preprocessing(module) == parse_preprocessing(VIT)
    assert declared_classes(module) == ("cat", "dog")
    (tmp_path / "preprocessor_config.json").write_text("{")
    with pytest.raises(UsageError, match=r"preprocessor_config\.json is damaged: not JSON"):
        declared_preprocessing(module)


SHORTER_224 = {"size": {"shortest_edge": 224}, "do_center_crop": True, "crop_size": {"height": 224, "width": 224}}
DETR_SIZE = {"size": {"shortest_edge": 800, "longest_edge": 1333}, "do_pad": True}


@pytest.mark.parametrize(
    ("kind", "changes", "expected"),
    [
        ("ViTFeatureExtractor", {"size": 224}, hugging_face((224, 224), crop_pct=1.0, crop_mode="squash")),
        ("CLIPFeatureExtractor", {"size": 224}, hugging_face((224, 224), crop_pct=1.0)),
        ("LevitImageProcessor", SHORTER_224, hugging_face((224, 224), crop_pct=224 / 256)),
        (
            "PoolFormerImageProcessorFast",
            {**SHORTER_224, "crop_pct": 0.9},
            hugging_face((224, 224), crop_pct=224 / 248),
        ),
        (
            "EfficientNetImageProcessor",
            {"include_top": True},
            replace(hugging_face((224, 224), crop_pct=1.0, crop_mode="squash"), std=(0.25,) * 3),
        ),
        (
            "DetrImageProcessor",
            DETR_SIZE,
            hugging_face((800, 800), crop_pct=1.0, resize="shorter_side", edges=(800, 1333)),
        ),
        (
            "DetrFeatureExtractor",
            {"size": 800, "max_size": 1333, "do_pad": True},
            hugging_face((800, 800), crop_pct=1.0, resize="shorter_side", edges=(800, 1333)),
        ),
    ],
)
def test_processors_with_rules_of_their_own(kind: str, changes: dict[str, Any], expected: Preprocessing) -> None:
    assert parse_preprocessing({**VIT, "image_processor_type": kind, **changes}) == expected


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"image_processor_type": "NougatImageProcessor"}, "that of a NougatImageProcessor, whose rules edgevit does"),
        ({"image_processor_type": "MobileViTImageProcessor", "do_flip_channel_order": True}, "swaps red and blue"),
        ({"size": 224}, "names no processor, so that it can mean two things"),
        ({"do_pad": True}, "pads images"),
        ({"do_resize": False}, "does not resize images"),
        ({"image_mean": None}, "no image_mean"),
        ({"image_mean": ["a"]}, "the preprocessing of the model is damaged: ValueError: could not convert string"),
        ({"resample": 77}, "the preprocessing of the model is damaged: IndexError"),
        ({"size": {"shortest_edge": 256}, "do_center_crop": True, "crop_size": [1]}, "damaged: TypeError"),
    ],
)
def test_rules_that_are_not_known_are_an_error_unless_the_user_gives_them(
    tmp_path: Path, changes: dict[str, Any], words: str
) -> None:
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({**VIT, **changes}))
    module = Classifier(config=SimpleNamespace(name_or_path=str(tmp_path)))
    with pytest.raises(UsageError, match=words):
        from_module(module, example_input=photo())
    model = from_module(module, example_input=photo(), preprocessing=PreprocessingOptions(mean=(0.1, 0.2, 0.3)))
    assert (model.preprocessing, model.preprocessing_source) == (
        Preprocessing(input_size=(3, 32, 32), mean=(0.1, 0.2, 0.3)),
        "given",
    )


def test_a_processor_inside_another_file_comes_first(tmp_path: Path) -> None:
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(VIT))
    inside = {**VIT, "image_mean": [0.1, 0.2, 0.3]}
    (tmp_path / "processor_config.json").write_text(json.dumps({"image_processor": inside, "tokenizer": {}}))
    module = Classifier(config=SimpleNamespace(name_or_path=str(tmp_path)))
    assert declared_preprocessing(module) == parse_preprocessing(inside)


def test_a_model_of_the_hub_has_the_preprocessing_in_its_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(VIT))
    files = {("org/name", "preprocessor_config.json", "c0ffee"): str(tmp_path / "preprocessor_config.json")}
    hub = SimpleNamespace(try_to_load_from_cache=lambda name, file, revision: files.get((name, file, revision)))
    monkeypatch.setitem(sys.modules, "huggingface_hub", hub)
    module = Classifier(config=SimpleNamespace(name_or_path="org/name", _commit_hash="c0ffee"))
    assert declared_preprocessing(module) == parse_preprocessing(VIT)
    assert declared_preprocessing(Classifier(config=SimpleNamespace(name_or_path="org/other"))) is None


def test_a_model_of_timm_inside_one_of_hugging_face_has_timms() -> None:
    assert declared_preprocessing(Classifier(config=SimpleNamespace(pretrained_cfg=TIMM))) == parse_preprocessing(TIMM)


@pytest.mark.parametrize(
    ("config", "size"),
    [
        (SimpleNamespace(image_size=64), (64, 64)),
        (SimpleNamespace(image_size=[64, 96]), (64, 96)),
        (SimpleNamespace(vision_config=SimpleNamespace(image_size=64)), (64, 64)),
        (SimpleNamespace(image_size=None), None),
        (None, None),
    ],
)
def test_the_size_is_that_of_the_configuration_if_no_preprocessing_tells(
    config: object, size: tuple[int, int] | None
) -> None:
    assert declared_size(Classifier(config=config)) == size


@pytest.mark.parametrize("options", [{"resize": 256}, {"crop_pct": 0.9}, {"crop_mode": "squash"}])
def test_no_crop_is_set_for_images_that_are_shown_whole(options: dict[str, Any]) -> None:
    whole = Preprocessing(input_size=SQUARE, resize="fit")
    with pytest.raises(UsageError, match="are for images that are cropped, and this model is given the whole"):
        PreprocessingOptions(**options).apply(whole)


def test_the_whole_image_is_shown_as_the_options_say() -> None:
    base = Preprocessing(input_size=(3, 64, 96), resize="fit", pad=(1, 1, 1))
    assert PreprocessingOptions(resize_mode="stretch").apply(base) == replace(base, resize="stretch")
    shorter = PreprocessingOptions(resize_mode="shorter_side", edges=(40, 60), pad_side="center").apply(base)
    assert shorter == replace(base, resize="shorter_side", edges=(40, 60), pad_side="center")
    assert PreprocessingOptions(resize_mode="fit").apply(shorter) == replace(base, pad_side="center")


@pytest.mark.parametrize(
    "options",
    [{"pad_color": (114 / 255,) * 3}, {"pad_color": (114,) * 3, "input_range": (0, 255), "mean": (127.5,) * 3}],
)
def test_the_padding_has_the_color_of_a_photo_of_that_color(options: dict[str, Any]) -> None:
    preprocessing = PreprocessingOptions(**options).apply(Preprocessing(input_size=(3, 8, 16), resize="fit"))
    pixels = to_array(Image.new("RGB", (8, 8), (114, 114, 114)), preprocessing)
    assert np.allclose(pixels[:, :, 8:], pixels[:, :, :8], atol=1e-5)


@pytest.mark.parametrize(
    ("base", "options", "words"),
    [
        ("crop", {"pad_side": "center"}, "need --resize-mode fit or shorter_side"),
        ("fit", {"resize_mode": "stretch", "pad_color": (0, 0, 0)}, "need --resize-mode fit or shorter_side"),
        ("fit", {"edges": (8, 16)}, "--edges needs --resize-mode shorter_side"),
        ("fit", {"resize_mode": "shorter_side", "edges": (16, 8)}, "a shortest edge that is no longer"),
        ("fit", {"pad_color": (114, 114, 114)}, "is from 0 to 1, as pixels are"),
        ("fit", {"pad_color": (0.5,)}, "needs one value per channel, 3, not 1"),
    ],
)
def test_settings_of_the_whole_image_that_contradict_each_other(base: Any, options: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        PreprocessingOptions(**options).apply(Preprocessing(input_size=SQUARE, resize=base))


@pytest.mark.parametrize("labels", [{0: "LABEL_0", 1: "LABEL_1"}, {1: "cat"}, {}, None, "cat"])
def test_labels_that_name_nothing_are_no_class_names(labels: object) -> None:
    assert declared_classes(Classifier(config=SimpleNamespace(id2label=labels))) is None


class Mode(Enum):
    BILINEAR = "bilinear"


@pytest.mark.parametrize(("resized", "mode"), [([256], "center"), ([232, 232], "squash")])
def test_the_transforms_of_torchvision_are_read(resized: list[int], mode: str) -> None:
    transforms = SimpleNamespace(
        crop_size=[224], resize_size=resized, mean=[0.1, 0.2, 0.3], std=[1, 1, 1], interpolation=Mode.BILINEAR
    )
    found = parse_preprocessing(transforms)
    assert (found.input_size, found.interpolation, found.resized) == (SQUARE, "bilinear", (resized[0],) * 2)
    assert (found.crop_mode, found.mean) == (mode, (0.1, 0.2, 0.3))


@pytest.mark.parametrize(
    ("source", "words"),
    [
        (object(), "cannot read the preprocessing from a object"),
        ({**TIMM, "interpolation": "random"}, "interpolation 'random' is not supported"),
        ({**TIMM, "crop_mode": "corner"}, "unknown crop_mode 'corner'"),
        ({**VIT, "do_resize": False}, "does not resize images"),
        ({**VIT, "size": {"longest_edge": 800}}, "which is not supported; give your own: --mean"),
        ({**VIT, "do_center_crop": True, "crop_size": 300}, "a crop of 300 pixels does not fit"),
    ],
)
def test_a_declaration_that_cannot_be_followed_is_an_error(source: object, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        parse_preprocessing(source)


def test_a_crop_fraction_gives_the_size_back() -> None:
    for resized in range(224, 1000):
        assert Preprocessing(input_size=SQUARE, crop_pct=crop_fraction(224, resized)).resized == (resized, resized)


@pytest.mark.parametrize(
    ("options", "black", "white"),
    [
        ({}, -0.485 / 0.229, (1 - 0.485) / 0.229),
        ({"input_range": (0, 255)}, 0, 255),
        ({"input_range": (-1, 1)}, -1, 1),
        ({"input_range": (0, 255), "mean": (123, 117, 104), "std": (58, 57, 57)}, -123 / 58, (255 - 123) / 58),
        ({"mean": (0.5, 0.5, 0.5)}, -0.5 / 0.229, 0.5 / 0.229),
        ({"std": (0.5, 0.5, 0.5)}, -0.485 / 0.5, (1 - 0.485) / 0.5),
    ],
)
def test_the_given_range_mean_and_std_reach_the_input(options: dict[str, Any], black: float, white: float) -> None:
    preprocessing = PreprocessingOptions(**options).apply(Preprocessing(input_size=(3, 4, 4)))
    for level, value in ((0, black), (255, white)):
        pixels = to_array(Image.new("RGB", (4, 4), (level,) * 3), preprocessing)
        assert np.allclose(pixels[0], value, atol=1e-4)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"resize": 256, "crop_pct": 0.875}, "--resize and --crop-pct exclude each other"),
        ({"resize": 200}, "a crop of 224 pixels does not fit into an image resized to 200"),
        ({"mean": (123.675, 116.28, 103.53)}, "add --input-range 0:255"),
        ({"input_range": (1, 1)}, "--input-range 1:1 is empty"),
        ({"mean": (0.5,)}, "one value per channel"),
        ({"std": (0, 1, 1)}, "std must be above 0"),
    ],
)
def test_settings_that_contradict_each_other_are_usage_errors(options: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        PreprocessingOptions(**options).apply(Preprocessing(input_size=SQUARE))


def test_given_settings_replace_single_ones_of_the_model() -> None:
    model = from_module(Classifier(pretrained_cfg=TIMM), example_input=photo(224))
    found = with_preprocessing(model, PreprocessingOptions(resize=256, crop_mode="center"))
    assert found.preprocessing == replace(
        parse_preprocessing(TIMM), input_size=SQUARE, crop_pct=0.875, crop_mode="center"
    )
    assert found.preprocessing_source == "given"


def test_a_gray_input_can_be_given_its_settings() -> None:
    model = from_module(Classifier(), example_input=torch.zeros(1, 1, 28, 28))
    assert model.preprocessing is None
    found = with_preprocessing(model, PreprocessingOptions(mean=(0.1307,), std=(0.3081,))).preprocessing
    assert found == Preprocessing(input_size=(1, 28, 28), mean=(0.1307,), std=(0.3081,))


def test_settings_are_for_a_model_with_one_image_input() -> None:
    model = from_module(Classifier(), example_input=torch.zeros(1, 5, 4, 4))
    with pytest.raises(UsageError, match="preprocessing is for one image input"):
        with_preprocessing(model, PreprocessingOptions(resize=8))


def test_class_names_are_read_one_a_line(tmp_path: Path) -> None:
    model = from_module(Classifier(), example_input=photo())
    (tmp_path / "names.txt").write_text("cat\ngray wolf\r\ndog\n\n")
    assert with_classes(model, tmp_path / "names.txt").classes == ("cat", "gray wolf", "dog")


@pytest.mark.parametrize(
    ("content", "words"),
    [(b"cat\n", "has 1 class names"), (b"\xff\n\xff", "cannot read the class names"), (None, "No such")],
)
def test_a_wrong_file_of_class_names_is_a_usage_error(content: bytes | None, words: str, tmp_path: Path) -> None:
    path = tmp_path / "names.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UsageError, match=words):
        with_classes(from_module(Classifier(), example_input=photo()), path)
