"""A TensorRT build in a child process: what the parent asks for and gets back, and what the child does.

All that touches TensorRT's builder happens in the child (`python -m edgevit.runtimes.tensorrt.worker FOLDER`), the
reading back of the precision included, which needs the engine loaded: the parent holds no GPU memory meanwhile. See
child.py.
"""

from __future__ import annotations

import importlib
import platform
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from edgevit.runtimes import subprocess_build as child
from edgevit.runtimes.base import BatchRange, BuildOptions, OnPhase
from edgevit.runtimes.precision import ExecutedPrecision
from edgevit.runtimes.subprocess_build import Json
from edgevit.runtimes.tensorrt import cuda, cuda_graph
from edgevit.runtimes.tensorrt.builder import build_serialized_engine
from edgevit.runtimes.tensorrt.engine import TensorRtEngine
from edgevit.runtimes.tensorrt.memory import FreeMemory, host_free_bytes, workspace_bytes
from edgevit.runtimes.tensorrt.record import ENGINE_FILE, EngineRecord

MODULE = "tensorrt"


@dataclass(frozen=True, slots=True, kw_only=True)
class BuiltEngine:
    """An engine that a child wrote, and what it found."""

    path: Path
    record: EngineRecord
    precision: ExecutedPrecision
    workspace: int


# The parent's side


def build_in_child(model: Path, folder: Path, options: BuildOptions, *, on_phase: OnPhase | None = None) -> BuiltEngine:
    """Builds `model` for this machine's GPU; the engine lies in `folder`.

    Raises BuildError with TensorRT's own words, or where the child crashed or was killed, and MissingError without a
    GPU.
    """
    request = {"model": str(model.resolve()), "tells": on_phase is not None, "options": _to_json(options)}
    report = child.run(_job(model), request, folder, on_phase=on_phase)
    return BuiltEngine(
        path=folder / ENGINE_FILE,
        record=EngineRecord(**report["record"]),
        precision=ExecutedPrecision(**report["precision"]),
        workspace=report["workspace"],
    )


def _job(model: Path) -> child.Job:
    return child.Job(
        module="edgevit.runtimes.tensorrt.worker",
        builder="TensorRT",
        model=model.name,
        when_killed="stop what else runs (on a Jetson: sudo systemctl isolate multi-user.target), add swap, or give a "
        "smaller --workspace",
        when_crashed="a graph can do that to TensorRT: try another --opset; edgevit lint BUNDLE --target trt:VERSION "
        "may tell more",
        when_broken="see that TensorRT is whole: edgevit doctor",
    )


def _to_json(options: BuildOptions) -> Json:
    values = {field.name: getattr(options, field.name) for field in fields(options)}
    batches = options.dynamic_batch
    return {
        **values,
        "dynamic_batch": [batches.minimum, batches.optimum, batches.maximum] if batches else None,
        "cache_dir": str(options.cache_dir.resolve()) if options.cache_dir else None,
    }


# The child's side


def main(arguments: Sequence[str]) -> int:
    """Builds what the folder's request asks for, and writes the engine and a report beside it."""
    return child.serve(work, arguments)


def work(request: Json, folder: Path, on_phase: OnPhase) -> Json:
    """Builds the engine, loads it, and reads back which precision runs."""
    trt, model, options = importlib.import_module(MODULE), Path(request["model"]), _from_json(request["options"])
    with cuda.Device() as device:
        record = record_here(trt, device)
        workspace = workspace_bytes(options.workspace_mb, _memory(device), model.stat().st_size)
        content = build_serialized_engine(
            trt, model, options, record, workspace=workspace, on_phase=on_phase if request["tells"] else None
        )
        with TensorRtEngine(trt, content) as judged:
            precision = judged.executed_precision()
    (folder / ENGINE_FILE).write_bytes(content)
    return {"record": asdict(record), "precision": asdict(precision), "workspace": workspace}


def record_here(trt: Any, device: cuda.Device) -> EngineRecord:
    """What an engine that is built here is bound to."""
    return EngineRecord(
        tensorrt=trt.__version__,
        compute_capability=f"{device.compute_capability // 10}.{device.compute_capability % 10}",
        gpu=device.name,
        system=f"{platform.system()}-{platform.machine()}",
    )


def _memory(device: cuda.Device) -> FreeMemory:
    meminfo, free = Path("/proc/meminfo"), cuda_graph.free_memory(device)
    return FreeMemory(
        device_free=free,
        host_free=host_free_bytes(meminfo.read_text("ascii")) if meminfo.exists() else free,
        shared=cuda_graph.shares_memory(device),
    )


def _from_json(values: Json) -> BuildOptions:
    batches, cache_dir = values["dynamic_batch"], values["cache_dir"]
    given = {
        **values,
        "dynamic_batch": BatchRange(*batches) if batches else None,
        "cache_dir": Path(cache_dir) if cache_dir else None,
    }
    return BuildOptions(**given)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
