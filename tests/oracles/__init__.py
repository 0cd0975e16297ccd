"""Outputs of the original implementations for known weights and a known image; see README.md."""

from __future__ import annotations

import json
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

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
        weights={
            key: torch.from_numpy(np.asarray(_entry(key, tuple(entry["shape"]), entry["kind"])))
            for key, entry in record["entries"].items()
        },
        images=torch.from_numpy(_image(record["input"]["seed"], tuple(record["input"]["shape"]))),
        logits=np.load(_HERE / f"{name}.npz")["logits"],
        params=record["params"],
    )


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
