"""EngineRecord: the GPU and version an engine is bound to."""

from __future__ import annotations

import hashlib
import json
import shlex
from collections.abc import Mapping
from dataclasses import MISSING, Field, asdict, dataclass, fields
from pathlib import Path
from typing import Any

from edgevit.errors import BuildError, BundleError

ENGINE_FILE = "model.engine"
RECORD_FILE = "engine.json"
RECORD_VERSION = 2  # 1 lacks the fields that have defaults below
MEMORY_TOLERANCE = 0.1  # firmware reserves varying amounts on devices of one model


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineRecord:
    """The machine an engine was built on; it runs on no other. Stored in engine.json next to the engine.

    The engine file itself has no header of ours, so that TensorRT's own tools can read it.
    """

    tensorrt: str
    compute_capability: str
    gpu: str  # "Orin" for every Jetson Orin
    system: str  # such as Linux-aarch64
    board: str = ""  # device-tree model, such as "NVIDIA Jetson AGX Orin Developer Kit"; empty on a PC
    multiprocessors: int = 0
    memory_mb: int = 0  # of the GPU; on a Jetson, of the system
    gpu_uuid: str = ""  # for the timings only: another GPU of the same model runs the engine too
    power_mode: str = ""  # of a Jetson; for the timings only: it changes the speed, and which kernels are fastest

    def write(self, folder: Path, **details: Any) -> Path:
        """Write the record into `folder`, together with `details` of the build, and return its path."""
        path = folder / RECORD_FILE
        content = {"schema_version": RECORD_VERSION, **asdict(self), **details}
        path.write_text(json.dumps(content, indent=2, allow_nan=False) + "\n", "utf-8")
        return path

    @classmethod
    def read(cls, engine: Path) -> EngineRecord:
        """Read the record of the engine at `engine`. Raises BundleError if it is missing or damaged."""
        path = engine.with_name(RECORD_FILE)
        try:
            content = json.loads(path.read_text("utf-8"))
            version = content["schema_version"]
            values: dict[str, Any] = {field.name: _value(content, field) for field in fields(cls)}
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise BundleError(
                f"cannot read {path} ({type(error).__name__}), so the GPU that {engine} was built for is unknown, and "
                f"TensorRT may crash on an engine built elsewhere; rebuild it here: {build_command(engine)}"
            ) from error
        if version not in (1, RECORD_VERSION):
            raise BundleError(f"{path} was written by another version of edgevit; rebuild: {build_command(engine)}")
        return cls(**values)

    def require(self, here: EngineRecord, engine: Path) -> None:
        """Raise BuildError, with the command that rebuilds the engine, if `here` is another machine."""
        ours, theirs = asdict(here), asdict(self)
        different = [
            f"{title} {theirs[name]}, here {ours[name]}"
            for name, title in _COMPARED.items()
            if ours[name] and theirs[name] and ours[name] != theirs[name]  # unknown fields are not compared
        ]
        if self.memory_mb and here.memory_mb and not _same_memory(self.memory_mb, here.memory_mb):
            different.append(f"{self.memory_mb} MB of GPU memory, here {here.memory_mb} MB")
        if different:
            raise BuildError(f"{engine} was built for {'; '.join(different)}; rebuild it here: {build_command(engine)}")

    @property
    def notes(self) -> tuple[str, ...]:
        return tuple(f"{name}={value}" for name, value in asdict(self).items() if value)

    @property
    def timing_key(self) -> str:
        """A file name for the timings of kernels on this device; timings of another device are misleading."""
        gpu = "".join(letter if letter.isalnum() else "-" for letter in self.gpu)
        device = (self.board, self.multiprocessors, round(self.memory_mb / 1024), self.gpu_uuid, self.power_mode)
        digest = hashlib.sha256(repr(device).encode()).hexdigest()[:8]
        return f"tensorrt-{self.tensorrt}-{gpu}-sm{self.compute_capability}-{digest}"


_COMPARED = {
    "tensorrt": "TensorRT",
    "compute_capability": "compute capability",
    "gpu": "GPU",
    "board": "board",
    "multiprocessors": "number of multiprocessors",
    "system": "system",
}


def _value(content: Mapping[str, Any], field: Field[Any]) -> str | int:
    """Return a field of a record. Raises KeyError or ValueError if it is required and absent or empty, or no number."""
    if field.default is MISSING:
        if not content[field.name]:
            raise ValueError(f"{field.name} is empty")
        return str(content[field.name])
    value = content.get(field.name, field.default)
    return int(value) if isinstance(field.default, int) else str(value)


def _same_memory(one_mb: int, other_mb: int) -> bool:
    return abs(one_mb - other_mb) <= MEMORY_TOLERANCE * max(one_mb, other_mb)


def build_command(engine: Path) -> str:
    """Return the command that builds the engine of a bundle on this machine."""
    return f"edgevit build {shlex.quote(str(engine.parent))}"
