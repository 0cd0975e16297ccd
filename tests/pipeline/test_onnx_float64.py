"""An ONNX file that is ill-conditioned is judged by its own float32 error, if that can be trusted."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest

import edgevit
from edgevit.pipeline import onnx_float64
from edgevit.pipeline.onnx_float64 import float32_errors
from edgevit.pipeline.onnx_model import OnnxModel, load_onnx_model, reference_outputs
from edgevit.types import Array, Feeds
from tests.helpers.graphs import HEADER, parse


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Means of values far from zero, less that distance: OpenVINO adds in another order than ONNX Runtime."""
    text = f"""{HEADER} g (float[1, 3, 32, 32] x) => (float[1, 3] y) {{
        far = Add (x, distance)
        mean = ReduceMean <keepdims = 0> (far, axes)
        y = Sub (mean, distance)
    }}"""
    arrays: dict[str, Array] = {"distance": np.array([200.0], np.float32), "axes": np.array([2, 3], np.int64)}
    parse(text, **arrays).save(tmp_path / "far.onnx")
    return tmp_path / "far.onnx"


def test_an_ill_conditioned_file_passes_by_its_own_error(file: Path) -> None:
    bundle = edgevit.export(str(file), fmt="openvino", out=file.parent, latency=False)
    assert max(reference.float32_error.get("y", 0.0) for reference in bundle.references()) > 1e-6


def asked(model: OnnxModel) -> dict[int, float]:
    reference = reference_outputs(model, images=None, strict=False, threads=None)[0]
    return {row: errors["y"] for row, errors in float32_errors(model, reference, [1, 2]).items()}


def test_the_error_is_that_of_the_rows_asked_for(file: Path) -> None:
    errors = asked(load_onnx_model(file))
    assert set(errors) == {1, 2} and all(0 < error < 1e-2 for error in errors.values())


def test_an_evaluator_that_computes_something_else_is_not_trusted(
    file: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def wrong(feeds: Feeds) -> dict[str, Array]:
        return {"y": feeds["x"].mean((2, 3)) * 1.1}

    monkeypatch.setattr(onnx_float64, "float64_evaluator", lambda _: wrong)
    with caplog.at_level(logging.WARNING):
        assert asked(load_onnx_model(file)) == {}
    assert "far.onnx was not run in float64 (onnx's reference evaluator and ONNX Runtime disagree)" in caplog.text
