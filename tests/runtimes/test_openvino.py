"""What is OpenVINO's own: it must not report home, and it takes paths apart."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from edgevit.bundles.bundle import Bundle
from edgevit.runtimes.base import BuildOptions
from edgevit.runtimes.registry import get_runtime

# A process of its own, as the telemetry starts with the first import of OpenVINO.
BUILD = """
import sys, tempfile, threading
from pathlib import Path
from edgevit.runtimes.base import BuildOptions
from edgevit.runtimes.registry import get_runtime

runtime = get_runtime("openvino")
with tempfile.TemporaryDirectory() as folder:
    artifact = runtime.build(Path(sys.argv[1]), Path(folder), BuildOptions())
    with runtime.open(artifact.path, BuildOptions()):
        assert [thread.name for thread in threading.enumerate()] == ["MainThread"], threading.enumerate()
told = [name for name in sys.modules if name.startswith("openvino_telemetry") and sys.modules[name] is not None]
assert told == [], told
"""


def test_nothing_is_reported_home(made: Callable[[str], Bundle]) -> None:
    pytest.importorskip("openvino_telemetry", reason="not installed, so that OpenVINO cannot use it")
    model = made("onnx").model_path
    done = subprocess.run([sys.executable, "-c", BUILD, str(model)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_a_comma_in_a_path_is_a_part_of_it(made: Callable[[str], Bundle], tmp_path: Path) -> None:
    folder = tmp_path / "one, two"
    folder.mkdir()
    model = Path(shutil.copy(made("onnx").model_path, folder))
    runtime, options = get_runtime("openvino"), BuildOptions()
    with runtime.open(runtime.build(model, folder, options).path, options) as engine:
        assert engine.inputs[0].name == "images"


def test_a_model_from_the_cache_tells_its_layers(made: Callable[[str], Bundle], tmp_path: Path) -> None:
    path, options = made("openvino").engine_path, BuildOptions(cache_dir=tmp_path)
    assert path is not None
    told = []
    for _ in range(2):
        engine, layers = get_runtime("openvino").open_with_precision(path, options)
        told.append(layers)
        engine.close()
    assert list(tmp_path.iterdir()) != []
    assert told[0] == told[1]
    assert dict(told[0].layers) == {"fp32": 23}
