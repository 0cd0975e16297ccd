"""No command reports its use: no telemetry files in a fresh home, no network sockets."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from edgevit.bundles.bundle import Bundle
from tests.helpers.cli import PHOTO, USER_MODEL

ROOT = Path(__file__).parents[1]
EVERY_COMMAND = """
import sys
from pathlib import Path
from edgevit.cli.main import main

folder, photo = sys.argv[1:]

def edgevit(*words):
    status = main([str(word) for word in words])
    assert status == 0, (words, status)

edgevit("list")
edgevit("doctor")
model = f"{folder}/mine.py:build"
edgevit("export", model, "--fmt", "ort,openvino", "--img-size", "16", "--no-latency", "--out", folder)
bundles = [file.parent for file in Path(folder).glob("*/manifest.json")]
assert len(bundles) == 2, bundles
for bundle in bundles:
    edgevit("verify", bundle)
    edgevit("run", bundle, photo)
edgevit("latency", *bundles, "--duration", "0.05")
edgevit("build", bundles[0], "--fmt", "ort")
edgevit("lint", bundles[0] / "model.onnx", "--target", "ort")
"""


def python(home: Path, *arguments: str, prefix: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    """Run Python code with a home folder of its own and without the variable that edgevit sets."""
    environment = {name: value for name, value in os.environ.items() if name != "ORT_DISABLE_TELEMETRY"}
    return subprocess.run(
        [*prefix, sys.executable, "-c", *arguments],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
        env={**environment, "HOME": str(home), "XDG_CACHE_HOME": str(home / ".cache")},
    )


def test_a_fresh_home_gets_no_telemetry_files(shared_bundle: Callable[[str], Bundle], tmp_path: Path) -> None:
    code = "import sys; from edgevit.cli.main import main; sys.exit(main(sys.argv[1:]))"
    done = python(tmp_path, code, "run", str(shared_bundle("ort").path), str(PHOTO))
    assert done.returncode == 0, done.stderr
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == []


@pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed")
def test_no_command_opens_a_network_socket(tmp_path: Path) -> None:
    log, home, folder = tmp_path / "sockets.log", tmp_path / "home", tmp_path / "bundles"
    home.mkdir()
    folder.mkdir()
    (folder / "mine.py").write_text(USER_MODEL)
    strace = ("strace", "--follow-forks", "--seccomp-bpf", "--trace=socket", f"--output={log}")
    if python(home, "pass", prefix=strace).returncode != 0:
        pytest.skip("strace is not permitted to trace processes here")
    python(home, "import socket; socket.socket()", prefix=strace)
    assert "AF_INET" in log.read_text(), "strace does not see sockets"
    done = python(home, EVERY_COMMAND, str(folder), str(PHOTO), prefix=strace)
    assert done.returncode == 0, done.stderr
    assert re.findall(r"socket\(AF_INET6?,.*", log.read_text()) == []
    assert not list(home.rglob("Microsoft"))
