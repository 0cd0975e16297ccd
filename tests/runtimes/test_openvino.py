"""OpenVINO: no telemetry, paths with commas, names of outputs, the model cache."""

from __future__ import annotations

import logging
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest

from edgevit.bundles.bundle import Bundle
from edgevit.errors import BuildError
from edgevit.runtimes.base import BatchRange, BuildOptions, available_cores
from edgevit.runtimes.openvino import APP_TOLERANCE
from edgevit.runtimes.openvino_convert import convert
from edgevit.runtimes.registry import get_runtime
from edgevit.types import TensorSpec
from tests.helpers.file_limits import small_disk

DOCS = Path(__file__).parents[2] / "docs"

HEAD = '<ir_version: 10, opset_import: ["" : 21, "custom" : 1]>'
# Run in a subprocess, since telemetry starts with the first import of OpenVINO.
BUILD = """
import sys, tempfile, threading
from pathlib import Path
from edgevit.errors import BuildError
from edgevit.runtimes.base import BatchRange, BuildOptions
from edgevit.runtimes.registry import get_runtime

runtime = get_runtime("openvino")
with tempfile.TemporaryDirectory() as folder:
    artifact = runtime.build(Path(sys.argv[1]), Path(folder), BuildOptions())
    with runtime.open(artifact.path, BuildOptions()):
        assert [thread.name for thread in threading.enumerate()] == ["MainThread"], threading.enumerate()
loaded = [name for name in sys.modules if name.startswith("openvino_telemetry") and sys.modules[name] is not None]
assert loaded == [], loaded
"""


def test_telemetry_is_not_loaded(shared_bundle: Callable[[str], Bundle]) -> None:
    pytest.importorskip("openvino_telemetry", reason="openvino_telemetry is not installed")
    model = shared_bundle("onnx").model_path
    done = subprocess.run([sys.executable, "-c", BUILD, str(model)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_paths_may_contain_commas(shared_bundle: Callable[[str], Bundle], tmp_path: Path) -> None:
    folder = tmp_path / "one, two"
    folder.mkdir()
    model = Path(shutil.copy(shared_bundle("onnx").model_path, folder))
    runtime, options = get_runtime("openvino"), BuildOptions()
    with runtime.open(runtime.build(model, folder, options).path, options) as engine:
        assert engine.inputs[0].name == "images"


def test_inputs_and_outputs_keep_their_names_if_openvino_merges_them_with_other_tensors(tmp_path: Path) -> None:
    """Each Reshape does nothing, and OpenVINO gives the input and the output the names of both tensors."""
    text = """g (float[2, 4] x) => (float[2, 4] logits, float[2, 4] boxes) <int64[2] shape = {2, 4}> {
        data = Reshape (x, shape)  linear = Relu (data)  logits = Reshape (linear, shape)  boxes = Neg (data)
    }"""
    onnx.save(onnx.parser.parse_model(f"{HEAD} {text}"), tmp_path / "model.onnx")
    runtime, options = get_runtime("openvino"), BuildOptions()
    x = np.array([[-1, 1, 2, 3]] * 2, np.float32)
    with runtime.open(runtime.build(tmp_path / "model.onnx", tmp_path, options).path, options) as engine:
        assert [spec.name for spec in engine.inputs] == ["x"]
        outputs = engine.run({"x": x})
    assert list(outputs) == ["logits", "boxes"]
    assert np.array_equal(outputs["logits"], np.maximum(x, 0))


def test_a_model_from_the_cache_reports_its_layers(shared_bundle: Callable[[str], Bundle], tmp_path: Path) -> None:
    path, options = shared_bundle("openvino").engine_path, BuildOptions(cache_dir=tmp_path)
    assert path is not None
    reported = []
    for _ in range(2):
        engine, layers = get_runtime("openvino").open_with_precision(path, options)
        reported.append(layers)
        engine.close()
    assert list(tmp_path.iterdir()) != []
    assert reported[0] == reported[1]
    assert dict(reported[0].layers) == {"fp32": 23}


def test_the_number_of_threads_is_read_back(shared_bundle: Callable[[str], Bundle]) -> None:
    """OpenVINO takes 64 for what it has cores for."""
    path = shared_bundle("openvino").engine_path
    assert path is not None
    for requested in (1, 1024):
        with get_runtime("openvino").open(path, BuildOptions(threads=requested)) as engine:
            assert engine.threads is not None and 1 <= engine.threads <= min(requested, available_cores())


WRAP = """g (float[1, 3, 8, 8] x) => (float[1, 3, 10, 10] y) <int64[8] p = {0, 0, 1, 1, 0, 0, 1, 1}>
 { y = Pad <mode = "wrap"> (x, p) }"""


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (WRAP, "OpenVINO cannot convert model.onnx: Pad: Unsupported padding mode: [wrap]"),
        ("g (float[4] x) => (float[4] y) { y = custom.Foo (x) }", "unsupported operators: custom.Foo"),
        ("g (float[2, 2] x) => (float y) { y = Det (x) }", "unsupported operators: Det"),
    ],
)
def test_a_refused_conversion_gives_the_reason(text: str, reason: str, tmp_path: Path) -> None:
    model = tmp_path / "model.onnx"
    onnx.save(onnx.parser.parse_model(f"{HEAD} {text}"), model)
    with pytest.raises(BuildError, match=f"{re.escape(reason)}$"):
        get_runtime("openvino").build(model, tmp_path, BuildOptions())


def test_a_refused_conversion_leaves_the_root_logger_as_it_was(tmp_path: Path) -> None:
    """Warnings after it would be lost. `build` converts files that are not ours in a child process."""
    model = tmp_path / "model.onnx"
    onnx.save(onnx.parser.parse_model(f"{HEAD} {WRAP}"), model)
    level = logging.getLogger().level
    with pytest.raises(BuildError):
        convert(get_runtime("openvino").load(), model, tmp_path / "model.xml", scratch=tmp_path)
    assert logging.getLogger().level == level


def test_a_graph_that_crashes_openvino_is_a_build_error(tmp_path: Path) -> None:
    """A Conv without inputs ends the process that converts it by SIGSEGV."""
    node = onnx.helper.make_node("Conv", [], ["y"])
    output = onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [1])
    graph = onnx.helper.make_graph([node], "g", [], [output])
    onnx.save(onnx.helper.make_model(graph), tmp_path / "model.onnx")
    with pytest.raises(BuildError, match="crashed with SIGSEGV.*edgevit lint") as caught:
        get_runtime("openvino").build(tmp_path / "model.onnx", tmp_path, BuildOptions())
    assert len(str(caught.value).splitlines()) == 1
    assert [file.name for file in tmp_path.iterdir()] == ["model.onnx"]


# benchmark_app, without the telemetry that its package may send.
BENCHMARK_APP = """
import sys
sys.modules["openvino_telemetry"] = None
from openvino.tools.benchmark.main import main
sys.exit(main())
"""


def test_a_full_disk_is_an_error_of_the_system_and_not_of_the_graph(
    shared_bundle: Callable[[str], Bundle], tmp_path: Path
) -> None:
    """It was an invitation to reinstall OpenVINO (5 MB), or its own "iostream error" with status 5 (8 MB)."""
    with small_disk(tmp_path / "disk", "8m") as disk:
        model = Path(shutil.copy(shared_bundle("onnx").model_path, disk))
        with pytest.raises(OSError, match="No space left on device"):
            get_runtime("openvino").build(model, disk, BuildOptions())


@pytest.mark.parametrize("dynamic", [False, True])
def test_the_command_of_benchmark_app_times_the_engine_in_the_same_settings(tmp_path: Path, dynamic: bool) -> None:
    batch = "batch" if dynamic else "2"
    text = f"""g (float[{batch}, 3, 8, 8] images) => (float[{batch}, 3, 8, 8] y) {{ y = Relu(images) }}"""
    onnx.save(onnx.parser.parse_model(f"{HEAD} {text}"), tmp_path / "model.onnx")
    options = BuildOptions(threads=1, **({"dynamic_batch": BatchRange(1, 2, 4)} if dynamic else {"batch": 2}))
    runtime = get_runtime("openvino")
    engine = runtime.build(tmp_path / "model.onnx", tmp_path, options).path
    inputs = [TensorSpec("images", "float32", ("batch" if dynamic else 2, 3, 8, 8))]
    command = runtime.time_command(engine, options, inputs=inputs)
    assert command is not None and APP_TOLERANCE in command.note
    assert f"must agree with p50 within {APP_TOLERANCE}" in (DOCS / "latency.md").read_text("utf-8")
    name, *words = shlex.split(command.line.replace("-t 10", "-niter 20"))
    assert name == "benchmark_app"
    done = subprocess.run([sys.executable, "-c", BENCHMARK_APP, *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    for setting in ("NUM_STREAMS: 1", "INFERENCE_NUM_THREADS: 1", "INFERENCE_PRECISION_HINT: <Type: 'float32'>"):
        assert setting in done.stdout
    assert re.search(r"images \(node: images\) : f32 / ", done.stdout), done.stdout
    assert re.search(r"Median: +[\d.]+ [mu]s", done.stdout)
