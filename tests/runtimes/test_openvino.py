"""What OpenVINO does besides: it must not report home."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable

import pytest

from edgevit.runtimes.bundle import Bundle

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
