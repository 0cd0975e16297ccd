"""EngineRecord: the GPU and version an engine is bound to."""

from __future__ import annotations

import json
import shlex
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from edgevit.errors import BuildError, BundleError

ENGINE_FILE = "model.engine"
RECORD_FILE = "engine.json"
RECORD_VERSION = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineRecord:
    """The machine an engine was built on; it runs on no other. Stored in engine.json beside the engine.

    The engine file itself has no header of ours, so that TensorRT's own tools can read it.
    """

    tensorrt: str
    compute_capability: str
    gpu: str
    system: str  # such as Linux-aarch64

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
            if content["schema_version"] != RECORD_VERSION:
                raise BundleError(f"{path} was written by another version of edgevit; rebuild: {build_command(engine)}")
            return cls(**{name: str(content[name]) for name in cls.__slots__})
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise BundleError(
                f"cannot read {path} ({type(error).__name__}), so the GPU that {engine} was built for is unknown, and "
                f"TensorRT may crash on an engine built elsewhere; rebuild it here: {build_command(engine)}"
            ) from error

    def require(self, here: EngineRecord, engine: Path) -> None:
        """Raise BuildError, with the command that rebuilds the engine, if `here` is another machine."""
        titles = {"tensorrt": "TensorRT", "compute_capability": "compute capability", "gpu": "GPU", "system": "system"}
        ours, theirs = asdict(here), asdict(self)
        different = [
            f"{title} {theirs[name]}, here {ours[name]}" for name, title in titles.items() if theirs[name] != ours[name]
        ]
        if different:
            raise BuildError(f"{engine} was built for {'; '.join(different)}; rebuild it here: {build_command(engine)}")

    @property
    def notes(self) -> tuple[str, ...]:
        return tuple(f"{name}={value}" for name, value in asdict(self).items())


def build_command(engine: Path) -> str:
    """Return the command that builds the engine of a bundle on this machine."""
    return f"edgevit build {shlex.quote(str(engine.parent))}"
