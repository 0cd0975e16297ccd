"""Check that the programs in examples/ run as their docstrings say."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import edgevit
from edgevit.bundles.bundle import Bundle

ROOT = Path(edgevit.__file__).parents[1]


def output_of(example: str, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, ROOT / "examples" / example, *arguments],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_quickstart_finds_the_cat(tmp_path: Path) -> None:
    assert output_of("quickstart.py", str(tmp_path)).splitlines()[-1] == "chelsea.png: cat"


def test_own_model_is_exported(tmp_path: Path) -> None:
    output_of("own_model.py", str(tmp_path))
    assert Bundle.open(tmp_path / "tinynet-fp32-openvino").path.is_dir()


def test_device_verifies_and_runs_a_bundle(shared_bundle: Callable[[str], Bundle]) -> None:
    photo = str(ROOT / "edgevit" / "data" / "photos" / "chelsea.png")
    assert output_of("device.py", str(shared_bundle("ort").path), photo).splitlines()[0].split()[1] == "cat"
