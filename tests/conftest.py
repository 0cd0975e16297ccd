"""What several tests share: the trained model's bundles, made once, and its test images."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

if "PYTEST_XDIST_WORKER" in os.environ:  # a core each: two workers with two threads each wait for one another
    _own = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {_own[int(os.environ["PYTEST_XDIST_WORKER"][2:]) % len(_own)]})
CORES = len(os.sched_getaffinity(0))

import numpy as np
import pytest
import torch

import edgevit
from edgevit.bundles.bundle import Bundle
from edgevit.images import IMAGENET_MEAN, IMAGENET_STD
from edgevit.types import Array
from tests.helpers.formats import ON_CPU

torch.set_num_threads(CORES)
DATA = Path(__file__).parent / "data"


@dataclass(frozen=True)
class Cifar10:
    """The first 2,000 test images as the model's input, their labels, and what the authors' code answers."""

    inputs: Array  # (2000, 3, 32, 32) float32
    labels: Array  # (2000,)
    logits: Array  # (2000, 10)


@pytest.fixture(scope="session")
def cifar10() -> Cifar10:
    with np.load(DATA / "cifar10_sample.npz") as sample:
        pixels = sample["test_images"].astype(np.float32) / 255
        normalised = (pixels - np.asarray(IMAGENET_MEAN, np.float32)) / np.asarray(IMAGENET_STD, np.float32)
        return Cifar10(
            np.ascontiguousarray(normalised.transpose(0, 3, 1, 2)), sample["test_labels"], sample["test_logits"]
        )


@pytest.fixture(scope="session", params=ON_CPU)
def fmt(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Bundle]:
    """The trained model's bundle in a format, for batches of 1 to 16; made once a session. Do not change it."""
    bundles: dict[str, Bundle] = {}
    out = tmp_path_factory.mktemp("bundles")

    def make(fmt: str) -> Bundle:
        if fmt not in bundles:
            bundles[fmt] = edgevit.export("shiftvit_cifar10", fmt=fmt, out=out, dynamic_batch=(1, 2, 16))
        return bundles[fmt]

    return make


@pytest.fixture
def bundle(made: Callable[[str], Bundle], fmt: str) -> Bundle:
    """The shared bundle of each format. Do not change it."""
    return made(fmt)


@pytest.fixture
def own_bundle(bundle: Bundle, tmp_path: Path) -> Bundle:
    """A copy to break."""
    return Bundle.open(shutil.copytree(bundle.path, tmp_path / bundle.name))
