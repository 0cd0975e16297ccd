"""Candidates that are measured beside a bundle."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from edgevit.bundles import benchmark
from edgevit.bundles.benchmark import measure_bundles
from edgevit.bundles.bundle import Bundle
from edgevit.latency import roofline
from edgevit.latency.studies import Studies
from edgevit.runtimes.base import Engine
from edgevit.runtimes.loading import Loading, timed_load
from edgevit.runtimes.onnxruntime import OnnxRuntime
from tests.helpers.bundles import damage, manifest_json
from tests.helpers.samples import QUICK


@pytest.mark.large
def test_the_limit_of_pytorch_counts_its_own_weights_and_not_those_of_an_int8_graph(
    shared_bundle: Callable[[str], Bundle], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(roofline, "_SHAPE_S", 0.0)  # the rates do not matter
    folder = Path(shutil.copytree(shared_bundle("ort").path, tmp_path / "bundle"))
    work = manifest_json(folder)["work"]
    damage(folder, "work.weight_bytes", work["weight_bytes"] // 4)  # as in an int8 graph
    reports = measure_bundles(
        [Bundle.open(folder)], against=["torch", "ort"], threads=1, plan=QUICK, studies=Studies(roofline=True)
    )
    own, torch, same_file = (report.roofline for report in reports)
    assert own and torch and same_file
    of_two_images = work["weight_bytes"] // 4 + 2 * work["io_bytes"]
    assert own.moved_bytes == same_file.moved_bytes == of_two_images
    assert 0.9 * work["weight_bytes"] < torch.moved_bytes - 2 * work["io_bytes"] < 1.2 * work["weight_bytes"]


@pytest.mark.large
def test_the_load_time_of_an_engine_begins_when_its_runtime_has_started(
    shared_bundle: Callable[[str], Bundle], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else the first TensorRT engine would pay for the start of CUDA."""
    bundle, events = shared_bundle("ort"), list[str]()

    @contextmanager
    def session(_runtime: OnnxRuntime) -> Iterator[None]:
        events.append("started")
        yield
        events.append("ended")

    def load(opener: Callable[[], Engine]) -> tuple[Engine, Loading]:
        events.append("timed")
        return timed_load(opener)

    monkeypatch.setattr(OnnxRuntime, "session", session)
    monkeypatch.setattr(benchmark, "timed_load", load)
    monkeypatch.setattr(benchmark, "peak_memory_mb", lambda *_: None)
    measure_bundles([bundle], threads=1, plan=QUICK)
    assert events == ["started", "timed", "ended"]
