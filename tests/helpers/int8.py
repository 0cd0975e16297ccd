"""Export small models in int8 and read the results."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from edgevit.images import read_image, sample_images
from tests.helpers.cli import status

CALIBRATION_IMAGES, EVAL_IMAGES = 64, 100
COUNTED = ("ort", "openvino")  # formats that report MACs per precision


counted = pytest.mark.parametrize("fmt", COUNTED)


INCLUDED_PHOTOS = sample_images()[0].parent


SMALL_MODELS = """
import torch
from torch import nn


class Small(nn.Module):
    \"\"\"Channel 0 of the second layer's input is `gain` times larger, with weights scaled down to match.\"\"\"

    def __init__(self, gain):
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Conv2d(3, 16, 4, 4)
        self.wide = nn.Conv2d(16, 32, 3, padding=1)
        self.narrow = nn.Conv2d(32, 64, 3, padding=1)
        self.head = nn.Linear(64, 10)
        self.register_buffer("gains", torch.ones(16, 1, 1))
        self.gains[0] = gain
        self.wide.weight.data[:, 0] /= gain

    def forward(self, x):
        x = self.wide(self.stem(x).relu() * self.gains).relu()
        return self.head(self.narrow(x).relu().mean((2, 3)))


class Hopeless(nn.Module):
    \"\"\"One layer whose input has one channel with far larger values than the others.\"\"\"

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.only = nn.Conv2d(3, 10, 3, padding=1, bias=False)
        self.only.weight.data[:, 0] = 0

    def forward(self, x):
        x = torch.cat((1e4 * x[:, :1] ** 2, x[:, 1:]), 1)
        return self.only(x).relu().mean((2, 3))


def plain():
    return Small(1.0)


def outlier():
    return Small(3000.0)


def uneven():
    return Small(30.0)


def hopeless():
    return Hopeless()


class Ties(Small):
    \"\"\"Nearly equal logits, so that the class depends on the last digits of the input.\"\"\"

    def forward(self, x):
        return 1 + 0.03 * torch.sin(500 * super().forward(x))


def ties():
    return Ties(1.0)


def tokens():
    return nn.Conv2d(3, 10, 4, 4)


class Linears(nn.Module):
    \"\"\"Two linear layers on 64 tokens.\"\"\"

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 4, 4)
        self.mlp = nn.Sequential(nn.Linear(8, 32), nn.GELU(), nn.Linear(32, 8))

    def forward(self, x):
        tokens = self.stem(x).flatten(2).transpose(1, 2)
        return self.mlp(tokens).mean(1)


def linears():
    return Linears()
"""


def save_crops(folder: Path, count: int) -> Path:
    """Save `count` crops of each included photo in `folder`."""
    folder.mkdir(exist_ok=True)
    for path in sample_images():
        photo = read_image(path)
        for index in range(count):
            left, top = 240 * index // count, 60 * index // count
            photo.crop((left, top, left + 120, top + 120)).save(folder / f"{path.stem}{index}.png")
    return folder


def export(small: Path, factory: str, out: Path, *options: str | Path, fmt: str = "ort") -> int:
    model = f"{small}:{factory}"
    return status("export", model, "--img-size", "32", "--fmt", fmt, "--int8", "--no-latency", "--out", out, *options)


def manifest(out: Path, name: str) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((out / name / "manifest.json").read_text())
    return content


def costly(manifest: Mapping[str, Any]) -> list[str]:
    """Return the layers that stay in float because int8 costs accuracy."""
    return [node["name"] for node in manifest["typing"]["kept"] if node["reason"].startswith("costs accuracy")]


def dark_noise_photos(folder: Path, brightest: int = 12) -> Path:
    folder.mkdir()
    random = np.random.default_rng(0)
    for index in range(8):
        pixels = random.integers(0, brightest, (40, 40, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"{index}.png")
    return folder
