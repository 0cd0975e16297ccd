"""Fixtures shared by the tests: the bundles of the trained model, built once, and its test images."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

if "PYTEST_XDIST_WORKER" in os.environ:  # a core each: two workers with two threads each wait for one another
    _own = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {_own[int(os.environ["PYTEST_XDIST_WORKER"][2:]) % len(_own)]})
CORES = len(os.sched_getaffinity(0))

import pytest
import torch

import edgevit
from edgevit.bundles.bundle import Bundle
from tests.helpers.cifar10 import Cifar10, load_cifar10
from tests.helpers.formats import ON_CPU

torch.set_num_threads(CORES)


@pytest.fixture(scope="session")
def cifar10() -> Cifar10:
    return load_cifar10()


@pytest.fixture(scope="session", params=ON_CPU)
def fmt(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="session")
def shared_bundle(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Bundle]:
    """Build the trained model's bundle in a format, for batches of 1 to 16; once per session. Read only."""
    bundles: dict[str, Bundle] = {}
    out = tmp_path_factory.mktemp("bundles")

    def make(fmt: str) -> Bundle:
        if fmt not in bundles:
            bundles[fmt] = edgevit.export("shiftvit_cifar10", fmt=fmt, out=out, dynamic_batch=(1, 2, 16))
        return bundles[fmt]

    return make


@pytest.fixture
def bundle(shared_bundle: Callable[[str], Bundle], fmt: str) -> Bundle:
    """The shared bundle of each format. Read only."""
    return shared_bundle(fmt)


@pytest.fixture
def own_bundle(bundle: Bundle, tmp_path: Path) -> Bundle:
    """A copy that a test may damage."""
    return Bundle.open(shutil.copytree(bundle.path, tmp_path / bundle.name))
