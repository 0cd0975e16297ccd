"""Check that the device half runs with torch and onnx made unimportable."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.formats import ON_CPU

ROOT = Path(__file__).parents[1]
HEAVY = {"torch", "onnx", "onnx_ir", "onnxscript", "onnxsim", "safetensors"}


def test_a_device_needs_neither_torch_nor_onnx(bundles_on_a_device: str) -> None:
    """verify, run and latency with every heavy package made unimportable."""
    done = subprocess.run(
        [sys.executable, "-c", bundles_on_a_device], capture_output=True, text=True, check=False, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr + done.stdout


@pytest.fixture
def bundles_on_a_device(shared_bundle) -> str:  # type: ignore[no-untyped-def]  # noqa: ANN001
    paths = [str(shared_bundle(fmt).path) for fmt in ON_CPU]
    photo = str(ROOT / "edgevit" / "data" / "photos" / "chelsea.png")
    return f"""
import sys
class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {HEAVY}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Missing())
from edgevit.cli.main import main
for path in {paths}:
    assert main(["verify", path]) == 0
    assert main(["run", path, {photo!r}]) == 0
    assert main(["latency", path, "--duration", "0.1"]) == 0
    assert main(["latency", path, "--against", "torch"]) == 3
assert main(["export", "shiftvit_t", "--fmt", "ort"]) == 3
assert main(["list"]) == 3
"""
