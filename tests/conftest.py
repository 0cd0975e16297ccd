"""Fixtures shared by the tests: the bundles of the trained model, built once, and its test images."""

from __future__ import annotations

import fcntl
import functools
import logging
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

if "PYTEST_XDIST_WORKER" in os.environ:  # a core each: two workers with two threads each wait for one another
    _own = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {_own[int(os.environ["PYTEST_XDIST_WORKER"][2:]) % len(_own)]})
CORES = len(os.sched_getaffinity(0))

import pytest
import torch

from edgevit.bundles.bundle import Bundle
from edgevit.models import loading
from edgevit.pipeline import run as pipeline
from edgevit.runtimes.base import BatchRange, BuildOptions
from tests.helpers.cifar10 import Cifar10, load_cifar10
from tests.helpers.formats import ON_CPU

torch.set_num_threads(CORES)
SPREAD = {"test_registry.py", "test_kernels.py"}  # minutes of tests, each of which exports a model of its own


@pytest.fixture(autouse=True)
def seed() -> None:
    """Give each test the same random numbers, whatever ran before it."""
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def root_logger() -> Iterator[None]:
    """Let no test silence the warnings that those behind it expect, as OpenVINO's converter does when it fails."""
    root = logging.getLogger()
    level, disabled = root.level, root.manager.disable
    yield
    assert (root.level, root.manager.disable) == (level, disabled)


@pytest.fixture(scope="session")
def cifar10() -> Cifar10:
    return load_cifar10()


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Parametrize `fmt` test by test: a session fixture with params makes pytest visit every module once per format,
    and build the fixtures of the module each time."""
    if "fmt" in metafunc.fixturenames and not _parametrizes(metafunc, "fmt"):
        metafunc.parametrize("fmt", ON_CPU)


def _parametrizes(metafunc: pytest.Metafunc, argument: str) -> bool:
    """Return whether the test has a parametrize mark of its own for this argument."""
    names = [mark.args[0] for mark in metafunc.definition.iter_markers("parametrize")]
    return any(argument in (name.replace(",", " ").split() if isinstance(name, str) else name) for name in names)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Give each file to one worker, which builds its fixtures once; share out the files that have no fixtures."""
    for item in items:
        if item.path.name not in SPREAD:
            item.add_marker(pytest.mark.xdist_group(str(item.path)))


@pytest.fixture(scope="session")
def shared_bundle(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Bundle]:
    """Return the trained model's bundle in a format, for batches of 1 to 16; built once for all workers. Read only."""
    base = tmp_path_factory.getbasetemp()
    out = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "shared_bundles"
    return functools.partial(_shared_bundle, out)


def _shared_bundle(out: Path, fmt: str) -> Bundle:
    with out.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # the other workers wait for the one that builds
        if not out.exists():
            options = BuildOptions(dynamic_batch=BatchRange(1, 2, 16))
            config = pipeline.ExportConfig(formats=ON_CPU, options=options, out=out, latency=False)
            pipeline.run(loading.from_name("shiftvit_cifar10"), config)
    return Bundle.open(out / f"shiftvit_cifar10-fp32-{fmt}")


@pytest.fixture
def bundle(shared_bundle: Callable[[str], Bundle], fmt: str) -> Bundle:
    """The shared bundle of each format. Read only."""
    return shared_bundle(fmt)


@pytest.fixture
def own_bundle(bundle: Bundle, tmp_path: Path) -> Bundle:
    """A copy that a test may damage."""
    return Bundle.open(shutil.copytree(bundle.path, tmp_path / bundle.name))
