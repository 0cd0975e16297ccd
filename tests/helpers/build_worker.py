"""The module that a build's subprocess runs in tests: it fails, waits and reports progress on request."""

from __future__ import annotations

import os
import resource
import sys
import time
from pathlib import Path

from edgevit import errors
from edgevit.runtimes import subprocess_build
from edgevit.runtimes.base import OnPhase
from edgevit.runtimes.subprocess_build import Json

JOB = subprocess_build.Job(
    module="tests.helpers.build_worker",
    builder="Builder",
    model="vit.onnx",
    when_killed="free some memory",
    when_crashed="try another graph",
    when_broken="install it again",
    when_late="build a smaller model",
)


def work(request: Json, folder: Path, on_phase: OnPhase) -> Json:
    """Carry out a request in the subprocess."""
    sys.stdout.write("noise of a library\n")
    for step in range(request.get("steps", 0)):
        on_phase("Building", (step + 1) / request["steps"])
    if "raises" in request:
        raise getattr(errors, request["raises"])("what is wrong; what to do")
    if "signal" in request:
        os.kill(os.getpid(), request["signal"])
    if "writes_until_full" in request:
        _fill_disk(folder, reports="breaks" not in request)
    if "breaks" in request:
        raise RuntimeError("a library is missing")
    if "ends" in request:
        os._exit(request["ends"])
    if "takes" in request:
        resource.setrlimit(resource.RLIMIT_AS, (1 << 32, 1 << 32))  # like a machine with less memory
        bytearray(request["takes"])
    if "bytes" in request:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1024, 1024))  # like a full disk
        (folder / "model.engine").write_bytes(b"x" * request["bytes"])
    time.sleep(request.get("sleep_s", 0))
    score = Path("/proc/self/oom_score_adj")
    return {
        "pid": os.getpid(),
        "oom_score": int(score.read_text()) if score.exists() else 1000,
        "path": sys.path,
    }


def _fill_disk(folder: Path, *, reports: bool) -> None:
    """Write until the disk is full; raise OSError then, or not, as some libraries do."""
    with (folder / "model.engine").open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(1 << 12))
        except OSError:
            if reports:
                raise


if __name__ == "__main__":
    sys.exit(subprocess_build.serve(work, sys.argv[1:]))
