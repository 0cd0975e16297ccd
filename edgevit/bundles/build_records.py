"""The engine's origin in a manifest: the exporter, the build, the runtime and the precision."""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, cast

from edgevit.runtimes.base import MAX_BATCH, MAX_THREADS, BatchRange, BuildOptions
from edgevit.runtimes.build import BuildResult, usable_version
from edgevit.runtimes.precision import ExecutedPrecision, precision_json
from edgevit.types import PRECISIONS, Precision
from edgevit.untrusted import JsonObject, integer, list_of, nullable, number, object_of, one_of, text

MAX_SECONDS = 1e9


@dataclass(frozen=True, slots=True, kw_only=True)
class PassEntry:
    """One step of the graph's way from PyTorch to the ONNX file."""

    name: str
    nodes_before: int
    nodes_after: int
    elapsed_s: float
    note: str = ""

    @classmethod
    def parse(cls, value: Any, place: str) -> PassEntry:
        fields = JsonObject.of(value, place)
        return cls(
            name=fields.read("name", text()),
            nodes_before=fields.read("nodes_before", integer()),
            nodes_after=fields.read("nodes_after", integer()),
            elapsed_s=fields.read("elapsed_s", number(0, MAX_SECONDS)),
            note=fields.read_or("note", text(), ""),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class StageRecord:
    """One stage of the export and its duration."""

    name: str
    elapsed_s: float

    @classmethod
    def parse(cls, value: Any, place: str) -> StageRecord:
        fields = JsonObject.of(value, place)
        return cls(name=fields.read("name", text()), elapsed_s=fields.read("elapsed_s", number(0, MAX_SECONDS)))


@dataclass(frozen=True, slots=True, kw_only=True)
class ExporterRecord:
    """The packages and steps that made the ONNX file."""

    name: str
    torch: str | None  # None for an ONNX file
    onnx: str
    onnx_ir: str
    onnxsim: str | None
    capture_opset: int
    opset: int
    passes: tuple[PassEntry, ...]
    stages: tuple[StageRecord, ...]

    def to_json(self) -> dict[str, Any]:
        return asdict(self) | {
            "passes": [asdict(each) for each in self.passes],
            "stages": [asdict(each) for each in self.stages],
        }

    @classmethod
    def parse(cls, value: Any, place: str) -> ExporterRecord:
        fields = JsonObject.of(value, place)
        version = text(most=255)
        return cls(
            name=fields.read("name", text()),
            torch=fields.read("torch", nullable(version)),
            onnx=fields.read("onnx", version),
            onnx_ir=fields.read("onnx_ir", version),
            onnxsim=fields.read_or("onnxsim", nullable(version), None),
            capture_opset=fields.read("capture_opset", integer(1, 1000)),
            opset=fields.read("opset", integer(1, 1000)),
            passes=fields.read("passes", list_of(PassEntry.parse)),
            stages=fields.read("stages", list_of(StageRecord.parse)),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildRecord:
    """The options of an engine's build, its duration and its notes."""

    batch: int
    dynamic_batch: BatchRange | None = None
    build_s: float | None = None
    compute_capabilities: tuple[int, ...] | None = None
    notes: tuple[str, ...] = ()
    missing: str | None = None  # the package or device without which the engine could not be built or run
    threads: int | None = None  # that the engine is opened with; None: one per core
    session: Mapping[str, str] = field(default_factory=dict)  # settings that differ from the runtime's defaults

    @classmethod
    def of(
        cls, built: BuildResult, options: BuildOptions, *, threads: int | None, notes: Sequence[str] = ()
    ) -> BuildRecord:
        """`threads` are those that the bundle keeps: `options` may have others, for the machine that builds."""
        artifact = built.artifact
        return cls(
            batch=options.batch,
            dynamic_batch=options.dynamic_batch,
            build_s=artifact.build_s if artifact else None,
            compute_capabilities=options.compute_capabilities,
            notes=(*notes, *(artifact.notes if artifact else ())),
            missing=built.missing,
            threads=threads,
            session=options.session.to_json(),
        )

    def to_json(self) -> dict[str, Any]:
        dynamic = self.dynamic_batch
        return {
            "batch": self.batch,
            "dynamic_batch": [dynamic.minimum, dynamic.optimum, dynamic.maximum] if dynamic else None,
            "build_s": self.build_s,
            "compute_capabilities": list(self.compute_capabilities) if self.compute_capabilities else None,
            "notes": list(self.notes),
            "missing": self.missing,
            **({} if self.threads is None else {"threads": self.threads}),
            **({"session": dict(self.session)} if self.session else {}),
        }

    @classmethod
    def parse(cls, value: Any, place: str) -> BuildRecord:
        fields = JsonObject.of(value, place)
        batch = integer(1, MAX_BATCH)
        dynamic = fields.read("dynamic_batch", nullable(list_of(batch, least=3, most=3)))
        capabilities = fields.read_or("compute_capabilities", nullable(list_of(integer(1, 10_000), most=100)), None)
        return cls(
            batch=fields.read("batch", batch),
            dynamic_batch=BatchRange(*dynamic) if dynamic else None,
            build_s=fields.read_or("build_s", nullable(number(0, MAX_SECONDS)), None),
            compute_capabilities=capabilities or None,
            notes=fields.read_or("notes", list_of(text(most=1 << 16)), ()),
            missing=fields.read_or("missing", nullable(text(most=1 << 16)), None),
            threads=fields.read_or("threads", nullable(integer(1, MAX_THREADS)), None),
            session=fields.read_or("session", object_of(text(most=64), most=64), {}),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class RuntimeRecord:
    """The runtime that runs the engine, and the engine's files."""

    fmt: str
    name: str = ""
    version: str | None = None
    engine_files: tuple[str, ...] = ()  # relative to the bundle; the first is the one to open; empty if not built yet
    system: str = ""
    machine: str = ""

    @classmethod
    def of(cls, built: BuildResult, folder: Path) -> RuntimeRecord:
        files = built.artifact.files if built.artifact else ()
        return cls(
            fmt=built.runtime.fmt,
            name=built.runtime.title,
            version=usable_version(built.runtime)[0],
            engine_files=tuple(file.relative_to(folder).as_posix() for file in files),
            system=platform.system(),
            machine=platform.machine(),
        )

    def to_json(self) -> dict[str, Any]:
        return asdict(self) | {"engine_files": list(self.engine_files)}

    @classmethod
    def parse(cls, value: Any, place: str) -> RuntimeRecord:
        fields = JsonObject.of(value, place)
        short = text(most=255)
        return cls(
            fmt=fields.read("fmt", short),
            name=fields.read_or("name", short, ""),
            version=fields.read_or("version", nullable(short), None),
            engine_files=fields.read("engine_files", list_of(text(), most=1000)),
            system=fields.read_or("system", short, ""),
            machine=fields.read_or("machine", short, ""),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class PrecisionRecord:
    """The precision that was requested and the one that ran; `executed` is None if nothing has run or reported it."""

    requested: Precision
    executed: ExecutedPrecision | None = None

    def to_json(self) -> dict[str, Any]:
        return precision_json(self.requested, self.executed)

    @classmethod
    def parse(cls, value: Any, place: str) -> PrecisionRecord:
        fields = JsonObject.of(value, place)
        requested = cast("Precision", fields.read("asked", one_of(*PRECISIONS)))
        counts, nothing = object_of(integer(), most=100), dict[str, int]()
        layers, macs = fields.read_or("layers", counts, nothing), fields.read_or("multiply_adds", counts, nothing)
        reported = fields.read_or("found", nullable(text(most=255)), None) is not None or layers or macs
        return cls(requested=requested, executed=ExecutedPrecision(layers, macs) if reported else None)
