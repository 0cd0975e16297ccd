"""Main program of the subprocess that builds TensorRT engines.

Everything that touches TensorRT's builder happens in the subprocess (`python -m edgevit.runtimes.tensorrt.worker
FOLDER`), and so does reading back the precision, which loads the engine: the parent process holds no GPU memory during
a build. See subprocess_build.py.
"""

from __future__ import annotations

import importlib
import platform
import re
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from edgevit.runtimes import subprocess_build
from edgevit.runtimes.base import BatchRange, BuildOptions, OnPhase
from edgevit.runtimes.precision import ExecutedPrecision
from edgevit.runtimes.subprocess_build import Json
from edgevit.runtimes.tensorrt import cuda, cuda_graph
from edgevit.runtimes.tensorrt.builder import build_serialized_engine
from edgevit.runtimes.tensorrt.engine import TensorRtEngine
from edgevit.runtimes.tensorrt.memory import MB, FreeMemory, host_free_bytes, workspace_bytes
from edgevit.runtimes.tensorrt.record import ENGINE_FILE, EngineRecord
from edgevit.runtimes.tensorrt.versions import TensorRtModule, supported_module
from edgevit.types import TensorSpec

MODULE = "tensorrt"
DEVICE_TREE_MODEL = Path("/proc/device-tree/model")
POWER_MODE_STATUS = Path("/var/lib/nvpmodel/status")  # of a Jetson, such as "pmode:0002"


@dataclass(frozen=True, slots=True, kw_only=True)
class BuiltEngine:
    """An engine that the subprocess wrote, with its record and precision."""

    path: Path
    record: EngineRecord
    precision: ExecutedPrecision
    workspace: int
    inputs: tuple[TensorSpec, ...]


# The parent's side


def build_in_subprocess(
    model: Path, folder: Path, options: BuildOptions, *, on_phase: OnPhase | None = None
) -> BuiltEngine:
    """Build `model` for this machine's GPU and write the engine into `folder`.

    Raises BuildError with TensorRT's message if the build fails, crashes or is killed, MissingError without a GPU.
    """
    request = {"model": str(model.resolve()), "reports_phases": on_phase is not None, "options": _to_json(options)}
    report = subprocess_build.run(_job(model), request, folder, on_phase=on_phase)
    return BuiltEngine(
        path=folder / ENGINE_FILE,
        record=EngineRecord(**report["record"]),
        precision=ExecutedPrecision(**report["precision"]),
        workspace=report["workspace"],
        inputs=tuple(TensorSpec(name, dtype, tuple(shape)) for name, dtype, shape in report["inputs"]),
    )


def _job(model: Path) -> subprocess_build.Job:
    return subprocess_build.Job(
        module="edgevit.runtimes.tensorrt.worker",
        builder="TensorRT",
        model=model.name,
        when_killed="stop other processes (on a Jetson: sudo systemctl isolate multi-user.target), add swap, or "
        "reduce --workspace",
        when_crashed="some graphs crash TensorRT: try another --opset, or check the graph: edgevit lint BUNDLE "
        "--target trt:VERSION",
        when_broken="check the TensorRT installation: edgevit doctor",
    )


def _to_json(options: BuildOptions) -> Json:
    # Session settings are for opening an engine, not for building it.
    values = {field.name: getattr(options, field.name) for field in fields(options) if field.name != "session"}
    batches = options.dynamic_batch
    return {
        **values,
        "dynamic_batch": [batches.minimum, batches.optimum, batches.maximum] if batches else None,
        "cache_dir": str(options.cache_dir.resolve()) if options.cache_dir else None,
    }


# The subprocess's side


def main(arguments: Sequence[str]) -> int:
    """Serve the request in the folder that `arguments` name."""
    return subprocess_build.serve(work, arguments)


def work(request: Json, folder: Path, on_phase: OnPhase) -> Json:
    """Build the engine, load it, and read back the precision that runs."""
    trt = supported_module(importlib.import_module(MODULE))
    model, options = Path(request["model"]), _from_json(request["options"])
    with cuda.Device() as device:
        record = record_here(trt, device)
        workspace = workspace_bytes(options.workspace_mb, _free_memory(device), model.stat().st_size)
        content = build_serialized_engine(
            trt, model, options, record, workspace=workspace, on_phase=on_phase if request["reports_phases"] else None
        )
        with TensorRtEngine(trt, content) as engine:
            precision = engine.executed_precision()
            inputs = [[spec.name, spec.dtype, spec.shape] for spec in engine.inputs]
    (folder / ENGINE_FILE).write_bytes(content)
    return {"record": asdict(record), "precision": asdict(precision), "workspace": workspace, "inputs": inputs}


def record_here(trt: TensorRtModule, device: cuda.Device) -> EngineRecord:
    """Return the record of engines built on this machine."""
    return EngineRecord(
        tensorrt=trt.__version__,
        compute_capability=f"{device.compute_capability // 10}.{device.compute_capability % 10}",
        gpu=device.name,
        system=f"{platform.system()}-{platform.machine()}",
        board=_read(DEVICE_TREE_MODEL).rstrip("\0\n"),
        multiprocessors=device.multiprocessors,
        memory_mb=device.memory_bytes // MB,
        gpu_uuid=device.uuid,
        power_mode=mode[1] if (mode := re.search(r"pmode:(\S+)", _read(POWER_MODE_STATUS))) else "",
    )


def _read(path: Path) -> str:
    """Return the text of a system file, or an empty string if this system has no such file."""
    try:
        return path.read_text("utf-8", "replace")
    except OSError:
        return ""


def _free_memory(device: cuda.Device) -> FreeMemory:
    meminfo, free = _read(Path("/proc/meminfo")), cuda_graph.free_memory(device)
    return FreeMemory(
        device_free_bytes=free,
        host_free_bytes=host_free_bytes(meminfo, _read(Path("/proc/swaps"))) if meminfo else free,
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
