"""Labeled images of an export that cannot be read."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from edgevit.errors import ImageError
from edgevit.models.loading import from_module
from edgevit.pipeline import run as pipeline
from edgevit.pipeline.config import ExportConfig
from edgevit.pipeline.references import EvalDataset, find_eval_dataset
from edgevit.runtimes.base import BuildOptions
from edgevit.types import Array, Feeds, TensorSpec

CLASSES = 2


def dataset(folder: Path, *, strict: bool) -> EvalDataset:
    """Two photos of each class, and a torn one of class 1."""
    for label in range(CLASSES):
        (folder / str(label)).mkdir()
        for index in range(2):
            Image.new("RGB", (8, 8), (index, 0, 0)).save(folder / str(label) / f"{index}.png")
    (folder / "1" / "torn.png").write_bytes(b"torn")
    model = from_module(nn.Conv2d(3, 2, 3), example_input=torch.zeros(1, 3, 8, 8))
    found = find_eval_dataset(model, folder, [TensorSpec("y", "float32", (1, CLASSES))], batch=2, strict=strict)
    assert isinstance(found, EvalDataset)
    return found


def predict_class_1(feeds: Feeds) -> dict[str, Array]:
    return {"y": np.tile(np.array([0, 1], np.float32), (len(feeds["input"]), 1))}


def test_labels_are_those_of_the_logits_behind_another_output(tmp_path: Path) -> None:
    for label in range(CLASSES):
        (tmp_path / str(label)).mkdir()
        Image.new("RGB", (8, 8)).save(tmp_path / str(label) / "0.png")
    model = from_module(nn.Conv2d(3, 2, 3), example_input=torch.zeros(1, 3, 8, 8))
    outputs = [TensorSpec("embedding", "float32", (1, 8)), TensorSpec("logits", "float32", (1, CLASSES))]
    found = find_eval_dataset(model, tmp_path, outputs, batch=1, strict=True)
    assert isinstance(found, EvalDataset)
    assert (found.output_name, found.images.class_count) == ("logits", CLASSES)


def test_an_image_that_cannot_be_read_is_left_out(tmp_path: Path) -> None:
    images = dataset(tmp_path, strict=False)
    (evaluation, _), skipped = images.evaluate({"engine": predict_class_1, "other": predict_class_1})
    assert (evaluation.images, evaluation.top1) == (4, 0.5)
    assert [error.path for error in skipped] == [tmp_path / "1" / "torn.png"]


def test_an_export_names_an_image_that_cannot_be_read_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "data").mkdir()
    dataset(tmp_path / "data", strict=False)
    module = nn.Sequential(nn.Conv2d(3, CLASSES, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    model = from_module(module, example_input=torch.zeros(1, 3, 8, 8))
    config = ExportConfig(
        formats=("onnx", "trt"),
        options=BuildOptions(precision="fp16"),
        eval=tmp_path / "data",
        max_drop=0.99,
        out=tmp_path / "out",
        latency=False,
    )
    with caplog.at_level(logging.WARNING):
        pipeline.run(model, config)
    assert "--eval: 1 of 5 images could not be read and were left out" in caplog.text
    assert caplog.text.count("torn.png") == 1


def test_strict_makes_it_an_error(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match=r"torn\.png"):
        dataset(tmp_path, strict=True).evaluate({"engine": predict_class_1})
