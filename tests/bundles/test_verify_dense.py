"""`edgevit verify` judges boxes and scores by position, and tells how many objects are the same after suppression."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import edgevit
from edgevit.bundles.verify import verify
from edgevit.errors import BundleError
from edgevit.runtimes.base import Engine
from edgevit.runtimes.registry import get_runtime
from edgevit.types import Array, Reference
from tests.helpers.cli import status
from tests.helpers.dense_bundles import detector


def photos() -> Array:
    """A red and a blue square, exactly on two of the detector's boxes, in two photos."""
    images = np.zeros((2, 3, 64, 96), np.float32)
    images[0, 0, 16:48, 16:48] = images[1, 2, 32:64, 64:96] = 1
    return images


def outputs(folder: Path) -> dict[str, Array]:
    with edgevit.load(detector(folder)) as engine:
        rows = [engine.run({"images": image[None]}) for image in photos()]
    return {name: np.concatenate([row[name] for row in rows]) for name in rows[0]}


def test_equal_outputs_have_all_objects_in_common(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    reference = Reference(kind="photos", inputs={"images": photos()}, outputs=outputs(tmp_path / "plain"))
    bundle = detector(tmp_path / "proven", reference=reference)
    assert status("verify", bundle.path, "--json", "-") == 0
    result = json.loads(capsys.readouterr().out)
    assert [row["iou"] for row in result["classes"]] == [1.0] * len(result["classes"])
    assert all(row["reference"] == row["engine"] == row["both"] for row in result["classes"])
    assert sum(row["both"] for row in result["classes"]) >= 2
    assert {row["output"] for row in result["results"]} == {"boxes", "scores"}
    assert status("verify", bundle.path) == 0
    printed = capsys.readouterr().out
    rows = [line.split() for line in printed.split("for information", 1)[1].splitlines() if "1.0000" in line]
    assert {row[0] for row in rows} == {"red", "blue"}
    assert all(row[1] == row[2] == row[3] for row in rows)
    assert [line.split()[2] for line in printed.splitlines() if line.startswith("ort: engine")] == ["boxes", "scores"]


@pytest.mark.parametrize(("written", "runs"), [("int64", "int32"), ("int64", "int64"), ("float32", "int32")])
def test_an_engine_may_have_int32_for_int64(
    written: str, runs: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As TensorRT 8.6 does: the classes of pixels of a segmentation model are int64."""
    reference = Reference(kind="photos", inputs={"images": photos()}, outputs=outputs(tmp_path / "plain"))
    bundle = detector(tmp_path / "proven", reference=reference)
    manifest = bundle.manifest
    described = tuple(replace(spec, dtype=written) for spec in manifest.outputs)
    bundle = replace(bundle, manifest=replace(manifest, outputs=described))

    def load_engine(*_: object, **__: object) -> Engine:
        engine = get_runtime("ort").open(bundle.model_path, bundle.options)
        engine.outputs = tuple(replace(spec, dtype=runs) for spec in manifest.outputs)
        return engine

    monkeypatch.setattr("edgevit.bundles.verify.load_engine", load_engine)
    if written == "int64":
        assert verify(bundle).passed
    else:
        with pytest.raises(BundleError, match="outputs is "):
            verify(bundle)


@pytest.mark.parametrize(
    "fault",
    [
        lambda boxes: boxes[..., [1, 0, 3, 2]],  # x and y swapped
        lambda boxes: boxes + 8,  # anchors off by half a cell
    ],
    ids=["xy swapped", "half a cell"],
)
def test_boxes_at_other_places_fail(fault: object, tmp_path: Path) -> None:
    expected = outputs(tmp_path / "plain")
    expected["boxes"] = fault(expected["boxes"])  # type: ignore[operator]
    reference = Reference(kind="photos", inputs={"images": photos()}, outputs=expected)
    assert status("verify", detector(tmp_path / "wrong", reference=reference).path) == 6


def test_scores_that_passed_sigmoid_twice_fail(tmp_path: Path) -> None:
    expected = outputs(tmp_path / "plain")
    expected["scores"] = 1 / (1 + np.exp(-expected["scores"]))
    reference = Reference(kind="photos", inputs={"images": photos()}, outputs=expected)
    assert status("verify", detector(tmp_path / "wrong", reference=reference).path) == 6
