"""Outputs of the original implementations for known weights and a known image; see README.md."""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

import edgevit

_HERE = Path(__file__).parent


@dataclass(frozen=True)
class Oracle:
    """One recorded run: official weights (N(0, 1) streams seeded by key), images, and the authors' logits."""

    weights: dict[str, torch.Tensor]
    images: torch.Tensor  # (2, 3, H, W)
    logits: NDArray[np.float64]  # (2, 1000)
    params: int


def load(name: str) -> Oracle:
    """The oracle `<family>__<official name>`."""
    record = json.loads((_HERE / f"{name}.json").read_text())
    return Oracle(
        weights=_weights(record),
        images=torch.from_numpy(_image(record["input"]["seed"], tuple(record["input"]["shape"]))),
        logits=np.load(_HERE / f"{name}.npz")["logits"],
        params=record["params"],
    )


@dataclass(frozen=True)
class DenseOracle:
    """One recorded run of a backbone, detector or segmenter on two photos; of large outputs, values at `positions`."""

    weights: dict[str, torch.Tensor]
    images: torch.Tensor  # (2, 3, H, W)
    outputs: dict[str, NDArray[np.float64]]  # flat, as stored
    shapes: dict[str, tuple[int, ...]]
    stds: dict[str, float]  # of the whole output
    params: int

    def error_of_std(self, name: str, output: NDArray[Any]) -> float:
        """Largest difference of an output from the recorded one, in the recorded one's standard deviations."""
        assert output.shape == self.shapes[name]
        stored = output.reshape(-1)[positions(name, output.size)]
        return float(abs(stored - self.outputs[name]).max() / self.stds[name])


def load_dense(name: str) -> DenseOracle:
    """The oracle `<source>__<name>` of a dense system."""
    record = json.loads((_HERE / f"{name}.json").read_text())
    stored = np.load(_HERE / f"{name}.npz")
    height, width = record["input"]["shape"][2:]
    return DenseOracle(
        weights=_weights(record),
        images=torch.from_numpy(np.stack([_photo(photo, height, width) for photo in record["input"]["photos"]])),
        outputs={key: stored[key].reshape(-1) for key in record["outputs"]},
        shapes={key: tuple(output["shape"]) for key, output in record["outputs"].items()},
        stds={key: output["std"] for key, output in record["outputs"].items()},
        params=record["params"],
    )


def load_head(name: str) -> tuple[dict[str, torch.Tensor], list[torch.Tensor], NDArray[np.float64]]:
    """Weights, feature maps and logits (every fourth row and column) of a head that ran without a backbone."""
    record = json.loads((_HERE / f"{name}.json").read_text())
    seeds, shapes = record["input"]["seeds"], record["input"]["shapes"]
    maps = [torch.from_numpy(_image(seed, tuple(shape))) for seed, shape in zip(seeds, shapes, strict=True)]
    return _weights(record), maps, np.load(_HERE / f"{name}.npz")["logits"]


def load_parts() -> dict[str, torch.Tensor]:
    """Anchors, boxes and one suppression of mmdet (`detector_parts__mmdet`), in float32."""
    stored = np.load(_HERE / "detector_parts__mmdet.npz")
    return {key: torch.from_numpy(stored[key].astype(np.float32)) for key in stored}


def load_stored(name: str) -> dict[str, NDArray[np.float64]]:
    """The stored values, flat, of an oracle without weights and photos."""
    stored = np.load(_HERE / f"{name}.npz")
    return {key: stored[key].astype(np.float64).reshape(-1) for key in stored}


def positions(name: str, size: int) -> NDArray[np.int64]:
    """The positions in a flattened output whose values are stored: all of a small one, a sample of a large one."""
    if size <= 4096:
        return np.arange(size)
    return np.random.RandomState(zlib.crc32(name.encode()) & 0x7FFFFFFF).randint(0, size, 1024)


def _photo(name: str, height: int, width: int) -> NDArray[np.float32]:
    """The middle of an included photo, normalized, (3, height, width)."""
    path = Path(edgevit.__file__).parent / "data" / "photos" / name
    pixels = np.asarray(Image.open(path).convert("RGB"), np.float32)
    top, left = (pixels.shape[0] - height) // 2, (pixels.shape[1] - width) // 2
    mean, std = np.array((0.485, 0.456, 0.406), np.float32), np.array((0.229, 0.224, 0.225), np.float32)
    pixels = (pixels[top : top + height, left : left + width] / np.float32(255) - mean) / std
    return np.ascontiguousarray(pixels.transpose(2, 0, 1))


def _weights(record: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    return {
        key: torch.from_numpy(np.asarray(_entry(key, tuple(entry["shape"]), entry["kind"])))
        for key, entry in record["entries"].items()
    }


def _entry(key: str, shape: tuple[int, ...], kind: str) -> NDArray[np.generic]:
    stream = np.random.RandomState(zlib.crc32(key.encode()) & 0x7FFFFFFF)
    if kind == "counter":
        return np.zeros(shape, np.int64)
    if kind == "constant":  # the model computes these for itself; one that took them from here would answer NaN
        return np.full(shape, np.nan, np.float32)
    if kind == "running_var":
        return stream.uniform(0.5, 1.5, shape).astype(np.float32)
    normal = stream.standard_normal(shape)
    fan_in = int(np.prod(shape[1:])) if len(shape) > 1 else 1
    scale = {"norm_weight": 0.2, "bias": 0.1, "running_mean": 0.1, "table": 0.5, "half": 0.5}
    offset = 1.0 if kind == "norm_weight" else 0.0
    return np.asarray(offset + normal * scale.get(kind, 1 / np.sqrt(fan_in))).astype(np.float32)


def _image(seed: int, shape: tuple[int, ...]) -> NDArray[np.float32]:
    return np.random.RandomState(seed).standard_normal(shape).astype(np.float32)
