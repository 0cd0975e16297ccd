"""Measure one model in a process of its own, which may crash or hang."""

from __future__ import annotations

import contextlib
import math
import multiprocessing
import os
import signal
import tempfile
from dataclasses import dataclass
from pathlib import Path

from edgevit.subprocesses import DIE_WITH_PARENT
from edgevit.types import Precision
from tests.tools.bench import rows

_TIMEOUT_S = 3600.0  # of one model


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """The measurements that a child process makes."""

    model: str
    threads: tuple[int, ...]
    seconds: float
    precisions: tuple[Precision, ...]
    weights: Path | None
    million_parameters: float | None  # a larger model is skipped
    results: Path
    kept: Path | None = None  # the folder of engines that are kept; None: all are built anew
    build_only: bool = False  # nothing is measured


def measure_in_child(task: Task) -> str:
    """Measure in a process of its own, which may crash or hang. Returns why it failed; empty if it did not."""
    with tempfile.TemporaryDirectory(prefix="edgevit-") as folder:
        process = multiprocessing.get_context("spawn").Process(target=_child, args=(task, Path(folder)))
        process.start()
        try:
            process.join(_TIMEOUT_S)
            timed_out = process.exitcode is None
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid or 0, signal.SIGKILL)  # with what it started
            process.join()
        if process.exitcode == 0:
            return ""
        if timed_out:
            return f"not finished within {_TIMEOUT_S:.0f} s"
        file = Path(folder) / "log"
        log = file.read_text("utf-8", errors="replace").strip() if file.exists() else ""
        return f"failed: {(log.splitlines() or ['no message'])[-1]}"


def _child(task: Task, folder: Path) -> None:
    os.setsid()
    exec(DIE_WITH_PARENT)
    log = os.open(folder / "log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    from tests.tools.bench.kept import Folders, compiled_by_inductor

    if task.kept is not None:  # before PyTorch is imported
        os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(compiled_by_inductor(task.kept).absolute()))
    from tests.tools.bench.engine_builder import EngineBuilder
    from tests.tools.bench.measuring import MeasurementRequest, build_all, measure_model

    root = folder if task.kept is None else task.kept
    builder = EngineBuilder(task.model, Folders.below(root, task.model, task.weights), weights=task.weights)
    if builder.million_parameters > (task.million_parameters or math.inf):
        return
    for threads in task.threads:
        request = MeasurementRequest(threads=threads, seconds=task.seconds, precisions=task.precisions)
        if task.build_only:
            build_all(builder, request)
        else:
            rows.append(task.results, measure_model(builder, request))
