"""Denormal numbers: an ONNX Runtime engine computes them as its settings say, and changes no other computation."""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import onnx
import pytest

from edgevit.errors import InferenceError
from edgevit.runtimes import onnxruntime
from edgevit.runtimes.base import BuildOptions
from edgevit.runtimes.denormals import KEEP, ZERO, can_set_denormals, denormals, set_denormals
from edgevit.runtimes.onnxruntime import DENORMALS, OnnxRuntimeEngine
from edgevit.runtimes.openvino import DENORMALS as OPENVINO_DENORMALS
from edgevit.runtimes.registry import get_runtime

ELEMENTS = 1 << 18  # enough for several threads
GRAPH = f"""<ir_version: 10, opset_import: ["" : 20]>
g (float[{ELEMENTS}] x, int64[1] place) => (float[{ELEMENTS}] y, float[1] constant, float[1] one)
<float[1] w = {{1e-20}}> {{ y = Mul (x, x) constant = Mul (w, w) one = Gather (y, place) }}"""
SCRIPT = """
import sys
from pathlib import Path
import numpy as np
from edgevit.runtimes.base import BuildOptions
from edgevit.runtimes.denormals import set_denormals
from edgevit.runtimes.registry import get_runtime

own = int(sys.argv.pop())
set_denormals(own)
x = np.full({elements}, 1e-20, np.float32)
feeds, runtime, engines = {{"x": x, "place": np.zeros(1, np.int64)}}, get_runtime("ort"), []
for opened in sys.argv[2:]:
    mode, threads = opened.split("-")
    options = BuildOptions(threads=int(threads), session=runtime.session_settings({{"denormals": mode}}))
    engines.append((mode, opened, runtime.open(Path(sys.argv[1]), options)))
    assert set_denormals(own) == own, f"NumPy computes otherwise after {{opened}} was opened"
for mode, opened, engine in 3 * engines:
    outputs = engine.run(feeds)
    assert outputs["y"].view(np.uint32).any() == (mode == "keep"), opened
    assert outputs["y"].view(np.uint32).all() == (mode == "keep"), opened
    assert outputs["constant"].view(np.uint32).all(), f"{{opened}} has folded a constant to zero"
    assert (x * x).view(np.uint32).all() == (own == 0), f"NumPy computes otherwise after {{opened}} was run"
"""

pytestmark = pytest.mark.skipif(not can_set_denormals(), reason="the mode of denormal numbers cannot be set here")


@pytest.fixture
def model(tmp_path: Path) -> Path:
    onnx.save(onnx.parser.parse_model(GRAPH), tmp_path / "model.onnx")
    return tmp_path / "model.onnx"


def opened(model: Path, mode: str, threads: int = 1) -> OnnxRuntimeEngine:
    runtime = get_runtime("ort")
    options = BuildOptions(threads=threads, session=runtime.session_settings({DENORMALS.name: mode}))
    engine = runtime.open(model, options)
    assert isinstance(engine, OnnxRuntimeEngine)
    return engine


def feeds(place: int = 0) -> dict[str, np.ndarray]:
    return {"x": np.full(ELEMENTS, 1e-20, np.float32), "place": np.array([place])}


@pytest.mark.parametrize("own", [KEEP, ZERO])
@pytest.mark.parametrize(
    "order",
    ["keep-1 keep-2 zero-1 zero-2", "zero-1 zero-2 keep-1 keep-2", "zero-2 keep-2 keep-1 zero-1"],
)
def test_each_engine_has_its_own_mode_whatever_was_opened_before(model: Path, order: str, own: int) -> None:
    """In a process of its own: the first session of a process decides what ONNX Runtime itself does."""
    script = SCRIPT.format(elements=ELEMENTS)
    command = [sys.executable, "-c", script, str(model), *order.split(), str(own)]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("own", [KEEP, ZERO])
@pytest.mark.parametrize("mode", ["keep", "zero"])
def test_the_thread_has_its_own_mode_again_after_a_run_and_after_an_error(model: Path, mode: str, own: int) -> None:
    with denormals(own):
        with opened(model, mode) as engine:
            assert set_denormals(own) == own
            assert bool(engine.run(feeds())["y"].view(np.uint32).any()) == (mode == "keep")
            assert set_denormals(own) == own
            with pytest.raises(InferenceError):
                engine.run(feeds(place=ELEMENTS))
            assert set_denormals(own) == own
        squares = feeds()["x"] * feeds()["x"]
        assert bool(squares.view(np.uint32).any()) == (own == KEEP)


def test_the_mode_is_that_of_one_thread() -> None:
    found = []
    with denormals(KEEP):
        thread = threading.Thread(target=lambda: found.append(set_denormals(ZERO)))
        thread.start()
        thread.join()
        assert set_denormals(KEEP) == KEEP
    assert found == [KEEP]


def test_where_the_mode_cannot_be_set_it_is_not_tried_and_nothing_is_zero(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert get_runtime("ort").usable_values(DENORMALS) == ("keep", "zero")
    monkeypatch.setattr(onnxruntime, "can_set_denormals", lambda: False)
    assert get_runtime("ort").usable_values(DENORMALS) == ("keep",)
    with opened(model, "zero", threads=2) as engine:
        assert engine.run(feeds())["y"].view(np.uint32).all()


def test_openvino_leaves_the_mode_of_the_thread_alone(tmp_path: Path) -> None:
    """It sets the bits on the thread that compiles a model. Bundles that were tuned before ask for it."""
    runtime = get_runtime("openvino")
    (tmp_path / "model.onnx").write_bytes(onnx.parser.parse_model(GRAPH).SerializeToString())
    artifact = runtime.build(tmp_path / "model.onnx", tmp_path, BuildOptions())
    options = BuildOptions(threads=1, session=runtime.session_settings({DENORMALS.name: "zero"}))
    assert runtime.usable_values(OPENVINO_DENORMALS) == ("keep",)
    for own in (KEEP, ZERO):
        with denormals(own), runtime.open(artifact.files[0], options) as engine:
            assert set_denormals(own) == own
            engine.run(feeds())
            assert set_denormals(own) == own
            engine.profile_layers(feeds(), runs=1)
            assert set_denormals(own) == own
