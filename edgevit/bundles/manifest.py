"""The manifest of a bundle: typed dataclasses for manifest.json, to and from JSON."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from edgevit.bundles.build_records import BuildRecord, ExporterRecord, PrecisionRecord, RuntimeRecord
from edgevit.bundles.model_record import ModelRecord
from edgevit.errors import BundleError, UsageError
from edgevit.files import MODEL_FILE, os_reason, weights_file
from edgevit.macs import ModelWork
from edgevit.runtimes.base import MAX_BATCH, BuildOptions
from edgevit.runtimes.session_settings import SessionSettings
from edgevit.types import Dim, TensorSpec
from edgevit.untrusted import (
    SHA256,
    InvalidError,
    Json,
    JsonObject,
    any_object,
    boolean,
    integer,
    list_of,
    nullable,
    number,
    object_of,
    read_json,
    text,
)

# Version 2 has file names where version 1 had paths of the exporting machine: `model.weights` and `model.source`.
SCHEMA_VERSION = 2
READABLE_VERSIONS = (1, 2)

MANIFEST_FILE = "manifest.json"
WEIGHTS_FILE = weights_file(Path(MODEL_FILE)).name  # of a model above 2 GB
REFERENCE_FILE = "reference.npz"
CLASSES_FILE = "classes.txt"
LATENCY_FILE = "latency.json"
TUNING_FILE = "tuning.json"

JUDGED_ENGINE = "the engine"  # "judged" in the comparison with fp32, if an engine was compared

MAX_MANIFEST_BYTES = 64 << 20
MAX_RANK = 32  # that no real tensor comes near


@dataclass(frozen=True, slots=True, kw_only=True)
class FileRecord:
    """A file of the bundle; `path` is relative to the folder, with forward slashes."""

    path: str
    size_bytes: int
    sha256: str

    @classmethod
    def parse(cls, value: Any, place: str) -> FileRecord:
        fields = JsonObject.of(value, place)
        return cls(
            path=fields.read("path", text(most=1024)),
            size_bytes=fields.read("size_bytes", integer()),
            sha256=fields.read("sha256", SHA256),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """The content of manifest.json.

    Reports (`precision_plan`, `parity`, `latency`, `comparison`, `environment`) are kept as the JSON that their own
    classes write; edgevit does not act on them, apart from `quantized_fraction` and `needs_vnni`.
    """

    model: ModelRecord
    build: BuildRecord
    runtime: RuntimeRecord
    precision: PrecisionRecord
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    files: tuple[FileRecord, ...] = ()
    edgevit_version: str = ""
    exporter: ExporterRecord | None = None
    work: ModelWork | None = None  # None in bundles of earlier versions
    precision_plan: Json | None = None  # nodes kept out of the requested precision; None for fp32
    parity: Json | None = None  # None if the export was not verified
    latency: tuple[Json, ...] | None = None
    comparison: Json | None = None  # accuracy, latency and size against fp32
    environment: Json = field(default_factory=dict)

    @property
    def options(self) -> BuildOptions:
        """The options that the engine was built with. Raises UsageError if they contradict each other."""
        return BuildOptions(
            precision=self.precision.requested,
            batch=self.build.batch,
            dynamic_batch=self.build.dynamic_batch,
            compute_capabilities=self.build.compute_capabilities,
            threads=self.build.threads,
            session=SessionSettings(tuple(sorted(self.build.session.items()))),
        )

    @property
    def engine_records(self) -> tuple[FileRecord, ...]:
        """The records of the engine's files, the one to open first; empty if the engine has yet to be built."""
        records = {record.path: record for record in self.files}
        return tuple(records[path] for path in self.runtime.engine_files)

    @property
    def quantized_fraction(self) -> float | None:
        """The fraction of MACs that the graph holds in the requested precision; None if they were not counted."""
        return _parse_fraction(self.precision_plan, "typing") if self.precision_plan is not None else None

    @property
    def node_macs(self) -> Mapping[str, int]:
        """Multiply-adds of the graph's nodes by name; empty in bundles of earlier versions."""
        return self.work.node_macs if self.work is not None else {}

    @property
    def needs_vnni(self) -> bool:
        """Whether int8 weights overflow on x86 processors without VNNI; True if the manifest does not say."""
        return self.precision_plan is None or _parse_needs_vnni(self.precision_plan, "typing")

    def to_json(self) -> dict[str, Any]:
        return {
            "schema_version": SCHEMA_VERSION,
            "edgevit_version": self.edgevit_version,
            "model": self.model.to_json(),
            "exporter": self.exporter.to_json() if self.exporter else None,
            "build": self.build.to_json(),
            "runtime": self.runtime.to_json(),
            "precision": self.precision.to_json(),
            "inputs": [_tensor_json(spec) for spec in self.inputs],
            "outputs": [_tensor_json(spec) for spec in self.outputs],
            **({"work": asdict(self.work)} if self.work is not None else {}),
            "typing": self.precision_plan,
            "parity": self.parity,
            "latency": list(self.latency) if self.latency is not None else None,
            "verdict": self.comparison,
            "environment": self.environment,
            "files": [asdict(each) for each in self.files],
        }

    @classmethod
    def from_json(cls, value: Any) -> Manifest:
        """Check every field. Raises InvalidError naming the first that is missing or wrong."""
        fields = JsonObject.of(value)
        try:
            manifest = cls(
                model=fields.read("model", ModelRecord.parse),
                build=fields.read("build", BuildRecord.parse),
                runtime=fields.read("runtime", RuntimeRecord.parse),
                precision=fields.read("precision", PrecisionRecord.parse),
                inputs=fields.read("inputs", list_of(_parse_tensor, most=1000)),
                outputs=fields.read("outputs", list_of(_parse_tensor, most=1000)),
                files=fields.read("files", list_of(FileRecord.parse, most=10_000)),
                edgevit_version=fields.read_or("edgevit_version", text(most=255), ""),
                exporter=fields.read_or("exporter", nullable(ExporterRecord.parse), None),
                work=fields.read_or("work", nullable(_parse_work), None),
                precision_plan=fields.read_or("typing", nullable(any_object), None),
                parity=fields.read_or("parity", nullable(any_object), None),
                latency=fields.read_or("latency", nullable(list_of(any_object)), None),
                comparison=fields.read_or("verdict", nullable(any_object), None),
                environment=fields.read_or("environment", any_object, {}),
            )
            _ = manifest.options, manifest.quantized_fraction, manifest.needs_vnni
        except UsageError as error:  # each value is valid, but not together with the others
            raise InvalidError(str(error)) from error
        return manifest


def read_manifest(folder: Path) -> Manifest:
    """Read the manifest of a bundle folder. Raises BundleError if there is none, or it cannot be read or is invalid."""
    path = folder / MANIFEST_FILE
    try:
        content = read_json(path, limit_bytes=MAX_MANIFEST_BYTES)
        _require_version(folder, JsonObject.of(content))
        return Manifest.from_json(content)
    except FileNotFoundError as error:
        if not folder.is_dir():
            raise BundleError(f"no bundle at {folder}; make one: edgevit export MODEL --fmt ort") from error
        raise BundleError(f"{folder} is not a bundle: it has no {MANIFEST_FILE}") from error
    except NotADirectoryError as error:
        raise BundleError(f"no bundle at {folder}; make one: edgevit export MODEL --fmt ort") from error
    except OSError as error:
        raise BundleError(f"cannot read {path}: {os_reason(error)}") from error
    except InvalidError as error:
        raise BundleError(f"{path} is damaged: {error}; export the bundle again") from error


def _require_version(folder: Path, fields: JsonObject) -> None:
    version = fields.read("schema_version", integer())
    if version not in READABLE_VERSIONS:
        made_by = fields.read_or("edgevit_version", text(most=255), "unknown")
        known = " and ".join(str(each) for each in READABLE_VERSIONS)
        raise BundleError(
            f"{folder} has schema version {version}, and this edgevit reads {known}; "
            f"use the edgevit that wrote it ({made_by}), or export again"
        )


def _parse_work(value: Any, place: str) -> ModelWork:
    fields = JsonObject.of(value, place)
    return ModelWork(
        batch=fields.read("batch", integer(1, MAX_BATCH)),
        macs=fields.read("macs", integer()),
        weight_bytes=fields.read("weight_bytes", integer()),
        io_bytes=fields.read("io_bytes", integer()),
        activation_bytes=fields.read("activation_bytes", integer()),
        node_macs=fields.read_or("node_macs", object_of(integer()), dict[str, int]()),
    )


def _parse_tensor(value: Any, place: str) -> TensorSpec:
    fields = JsonObject.of(value, place)
    return TensorSpec(
        name=fields.read("name", text()),
        dtype=fields.read("dtype", text(most=32)),
        shape=fields.read("shape", list_of(_parse_dim, most=MAX_RANK)),
    )


def _parse_dim(value: Any, place: str) -> Dim:
    return "batch" if value == "batch" else integer()(value, place)


def _parse_fraction(plan: Json, place: str) -> float | None:
    return JsonObject.of(plan, place).read_or("share", nullable(number(0, 1)), None)


def _parse_needs_vnni(plan: Json, place: str) -> bool:
    return JsonObject.of(plan, place).read_or("needs_vnni", boolean, default=True)


def _tensor_json(spec: TensorSpec) -> dict[str, Any]:
    return {"name": spec.name, "dtype": spec.dtype, "shape": list(spec.shape)}
