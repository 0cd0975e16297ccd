"""ONNX Runtime: executed precision from its profile file."""

from __future__ import annotations

import contextlib
import resource
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest

import edgevit
from edgevit.bundles.bundle import Bundle
from edgevit.errors import BuildError, InferenceError
from edgevit.runtimes import onnxruntime as onnxruntime_engine
from edgevit.runtimes.base import BuildOptions
from edgevit.runtimes.registry import get_runtime


@pytest.fixture
def sessions(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The sessions that have been created."""
    made: list[Any] = []
    session = onnxruntime.InferenceSession

    def counted(*arguments: Any, **options: Any) -> Any:
        made.append(session(*arguments, **options))
        return made[-1]

    monkeypatch.setattr(onnxruntime, "InferenceSession", counted)
    return made


def test_a_model_is_loaded_once_and_reports_its_layers(
    shared_bundle: Callable[[str], Bundle], sessions: list[Any]
) -> None:
    bundle = shared_bundle("ort")
    sessions.clear()
    with edgevit.load(bundle) as engine:
        assert dict(engine.executed_layers().layers) == {"fp32": 23}
        assert len(sessions) == 1
        assert sessions[0].get_session_options().enable_profiling
        engine.run({engine.inputs[0].name: np.zeros((1, 3, 32, 32), np.float32)})
        assert sessions[0].end_profiling() == ""  # profiling has ended


@contextlib.contextmanager
def full_disk() -> Iterator[None]:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1024, limits[1]))  # bytes per file
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_a_profile_that_cannot_be_written_is_a_build_error(shared_bundle: Callable[[str], Bundle]) -> None:
    bundle = shared_bundle("ort")
    with (
        full_disk(),
        pytest.raises(BuildError, match="is the disk full[?] Free some space, or set TMPDIR"),
    ):
        edgevit.load(bundle)


def test_a_large_model_still_runs_after_a_profile_that_cannot_be_written(
    shared_bundle: Callable[[str], Bundle], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnxruntime_engine, "_LARGE_BYTES", 0)  # its session is closed meanwhile
    with edgevit.load(shared_bundle("ort")) as engine:
        with full_disk(), pytest.raises(BuildError, match="is the disk full"):
            engine.executed_precision()
        engine.run({engine.inputs[0].name: np.zeros((1, 3, 32, 32), np.float32)})


def test_no_profile_is_left_behind(
    shared_bundle: Callable[[str], Bundle], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = shared_bundle("ort")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with edgevit.load(bundle) as engine:
        engine.executed_precision()
    assert list(tmp_path.iterdir()) == []


def test_errors_leave_no_log_lines_on_the_terminal(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Not when a graph cannot be loaded, and not when it fails to run."""
    runtime, options = get_runtime("ort"), BuildOptions()
    invalid, failing = tmp_path / "invalid.onnx", tmp_path / "failing.onnx"
    head = '<ir_version: 10, opset_import: ["" : 21]>'
    onnx.save(onnx.parser.parse_model(f"{head} g (float[2, 3] x) => (float[5, 7] y) {{ y = Unknown (x) }}"), invalid)
    text = "g (float[2, 3] x, int64[1] i) => (float[1, 3] y) { y = Gather <axis = 0> (x, i) }"
    onnx.save(onnx.parser.parse_model(f"{head} {text}"), failing)
    with pytest.raises(BuildError, match="cannot load"):
        runtime.open(invalid, options)
    with runtime.open(failing, options) as engine, pytest.raises(InferenceError, match="failed to run"):
        engine.run({"x": np.zeros((2, 3), np.float32), "i": np.array([9])})
    captured = capfd.readouterr()
    assert (captured.out, captured.err) == ("", "")
