"""Candidates that are measured beside a bundle."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from edgevit.bundles.benchmark import measure_bundles
from edgevit.bundles.bundle import Bundle
from edgevit.latency import roofline
from edgevit.latency.studies import Studies
from tests.helpers.bundles import damage, manifest_json
from tests.helpers.samples import QUICK


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
