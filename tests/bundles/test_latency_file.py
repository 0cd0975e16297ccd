"""A bundle keeps its last measurement, tied to the files that were measured."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from edgevit.bundles import store
from edgevit.bundles.build_records import RuntimeRecord
from edgevit.bundles.bundle import Bundle
from edgevit.bundles.latency_file import artifact_details, bundle_details, keep_latency
from edgevit.errors import BundleError, ExportError
from edgevit.latency.report import LatencyReport
from tests.helpers import samples
from tests.helpers.bundles import sample_manifest
from tests.helpers.file_limits import files_up_to


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    folder = tmp_path / "model-fp32-ort"
    folder.mkdir()
    for name in ("model.onnx", "model.ort", "reference.npz"):
        (folder / name).write_text(name)
    store.write_manifest(folder, sample_manifest(runtime=RuntimeRecord(fmt="ort", engine_files=("model.ort",))))
    return Bundle.open(folder)


def test_the_last_measurement_is_kept_with_every_sample(bundle: Bundle) -> None:
    (bundle.path / "notes.txt").write_text("mine")  # no file of the bundle
    engine = (bundle.path / "model.ort").stat().st_ino
    for time_ms in (3.0, 2.0):
        report = samples.report([[time_ms]] * 9, name=bundle.name)
        keep_latency(bundle, [report])
        kept = Bundle.open(bundle.path)
        assert [figures["p50_ms"] for figures in kept.manifest.latency or ()] == [time_ms]
        (stored,) = json.loads((bundle.path / "latency.json").read_text())
        assert LatencyReport.from_json(stored) == report
    assert (bundle.path / "model.ort").stat().st_ino == engine  # linked, and not copied
    assert (bundle.path / "notes.txt").read_text() == "mine"
    assert [file.path for file in kept.manifest.files] == ["latency.json", "model.onnx", "model.ort", "reference.npz"]
    assert [path.name for path in bundle.path.parent.iterdir()] == [bundle.name]


def test_the_older_bundle_stays_whole_until_it_is_replaced(bundle: Bundle, tmp_path: Path) -> None:
    """Its files are linked into the new one, and must not be written through the link."""
    keep_latency(bundle, [samples.report([[3.0]] * 9)])
    for name in ("latency.json", "manifest.json"):
        os.link(bundle.path / name, tmp_path / name)
    before = [(tmp_path / name).read_bytes() for name in ("latency.json", "manifest.json")]
    keep_latency(bundle, [samples.report([[2.0]] * 9)])
    assert [(tmp_path / name).read_bytes() for name in ("latency.json", "manifest.json")] == before


def test_a_full_disk_is_one_line_and_leaves_the_bundle(bundle: Bundle) -> None:
    before = bundle.path.stat().st_ino
    with pytest.raises(ExportError, match=r"^cannot write \S+: File too large; free some space$"), files_up_to(1000):
        keep_latency(bundle, [samples.report([[3.0]] * 9)])
    assert bundle.path.stat().st_ino == before


def test_a_measurement_names_the_files_it_was_made_of(bundle: Bundle) -> None:
    details = bundle_details(bundle, precision="fp32")
    assert details == artifact_details(bundle.path / "model.ort", bundle.model_path, precision="fp32")
    assert details["engine_sha256"] != details["onnx_sha256"]


def test_a_measurement_of_another_engine_is_not_kept(bundle: Bundle) -> None:
    (bundle.path / "model.ort").write_text("built again meanwhile")
    store.write_manifest(bundle.path, bundle.manifest)
    with pytest.raises(BundleError, match="was replaced during the measurement"):
        keep_latency(bundle, [samples.report([[1.0]])])
    assert Bundle.open(bundle.path).manifest.latency is None
