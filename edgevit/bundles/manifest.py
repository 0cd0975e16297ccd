"""The manifest of a bundle: typed dataclasses for manifest.json, to and from JSON."""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, cast

from edgevit.errors import BundleError, UsageError
from edgevit.files import MODEL_FILE, os_reason, weights_file
from edgevit.images import MAX_CROP_PCT, Preprocessing
from edgevit.macs import ModelWork
from edgevit.runtimes.base import MAX_BATCH, MAX_THREADS, BatchRange, BuildOptions
from edgevit.runtimes.build import BuildResult, usable_version
from edgevit.runtimes.precision import ExecutedPrecision, precision_json
from edgevit.runtimes.session_settings import SessionSettings
from edgevit.types import (
    CROP_MODES,
    INTERPOLATIONS,
    OUTPUT_FORMS,
    PAD_SIDES,
    PRECISIONS,
    PREPROCESSING_SOURCES,
    RESIZE_MODES,
    TASKS,
    CropMode,
    Dim,
    Interpolation,
    OutputForm,
    PadSide,
    Precision,
    PreprocessingSource,
    ResizeMode,
    Task,
    TensorSpec,
)
from edgevit.untrusted import (
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
    one_of,
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
# Limits that no real bundle comes near; a damaged or hostile manifest must not make edgevit allocate gigabytes.
MAX_CLASSES = 1 << 16
MAX_INPUT_SIDE = 1 << 13  # pixels of a preprocessed photo
MAX_RANK = 32
MIN_CROP_PCT = 0.05
MAX_SECONDS = 1e9

_SHA256 = text(most=64)


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelRecord:
    """The model that was exported.

    `source` is a registered name, the user's `file.py:factory`, or `onnx:FILE`; None for a module that was in memory.
    `weights` is the origin of the weights: a file, an address, "included ..." or "random ...". Both omit folders,
    because a bundle is passed on to others.
    """

    name: str
    source: str | None
    weights: str
    weights_sha256: str | None = None
    weights_key: str | None = None  # container in the checkpoint, such as "model_ema"
    weights_tensors: int | None = None
    family: str | None = None
    options: Json = field(default_factory=dict)
    num_classes: int | None = None  # of registered models with classes
    preprocessing: Preprocessing | None = None  # None if the input is not an image
    preprocessing_source: PreprocessingSource | None = None  # None in bundles of earlier versions
    fingerprint: str | None = None  # hash of class, structure and weights of a module in memory
    task: Task = "classification"
    output_form: OutputForm = "logits"

    @property
    def onnx_file(self) -> str | None:
        """The name of the ONNX file that was exported; None for a PyTorch model."""
        return self.source.removeprefix("onnx:") if self.source and self.source.startswith("onnx:") else None

    @property
    def is_registered(self) -> bool:
        return self.source is not None and ":" not in self.source

    @property
    def lacks_checkpoint(self) -> bool:
        """Whether the weights are known to be random. A checkpoint called random.pt has a hash."""
        return self.weights.startswith("random") and self.weights_sha256 is None

    @property
    def has_random_weights(self) -> bool:
        """Whether this is a registered model without a checkpoint."""
        return self.is_registered and self.lacks_checkpoint

    @property
    def has_seed(self) -> bool:
        """Whether the weights are random and can be drawn again; those of `create_model` cannot."""
        return self.has_random_weights and "seed" in self.weights

    def to_json(self) -> dict[str, Any]:
        classes = {} if self.num_classes is None else {"num_classes": self.num_classes}
        read: dict[str, Any] = {}  # absent in schema version 1
        if self.weights_tensors is not None:
            read = {"weights_key": self.weights_key, "weights_tensors": self.weights_tensors}
        return {
            "name": self.name,
            "family": self.family,
            "source": self.source,
            "options": dict(self.options),
            **classes,
            "weights": self.weights,
            "weights_sha256": self.weights_sha256,
            **read,
            **({} if self.fingerprint is None else {"fingerprint": self.fingerprint}),
            "task": self.task,
            "output_form": self.output_form,
            "preprocessing": self.preprocessing.to_json() if self.preprocessing else None,
            "preprocessing_source": self.preprocessing_source,
        }

    @classmethod
    def parse(cls, value: Any, place: str) -> ModelRecord:
        fields = JsonObject.of(value, place)
        return cls(
            name=fields.read("name", text(most=255)),
            source=fields.read("source", nullable(text())),
            weights=fields.read("weights", text()),
            weights_sha256=fields.read_or("weights_sha256", nullable(_SHA256), None),
            weights_key=fields.read_or("weights_key", nullable(text()), None),
            weights_tensors=fields.read_or("weights_tensors", nullable(integer(0, 1_000_000)), None),
            family=fields.read_or("family", nullable(text(most=255)), None),
            options=fields.read("options", any_object),
            num_classes=fields.read_or("num_classes", nullable(integer(1, MAX_CLASSES)), None),
            preprocessing=fields.read("preprocessing", nullable(_parse_preprocessing)),
            preprocessing_source=cast(
                "PreprocessingSource | None",
                fields.read_or("preprocessing_source", nullable(one_of(*PREPROCESSING_SOURCES)), None),
            ),
            fingerprint=fields.read_or("fingerprint", nullable(_SHA256), None),
            task=cast("Task", fields.read_or("task", one_of(*TASKS), "classification")),
            output_form=cast("OutputForm", fields.read_or("output_form", one_of(*OUTPUT_FORMS), "logits")),
        )


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
            sha256=fields.read("sha256", _SHA256),
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


def _parse_preprocessing(value: Any, place: str) -> Preprocessing:
    fields = JsonObject.of(value, place)
    channel_values = list_of(number(-1e6, 1e6), least=1, most=4)
    channels, height, width = fields.read("input_size", list_of(integer(1, MAX_INPUT_SIDE), least=3, most=3))
    try:
        return Preprocessing(
            input_size=(channels, height, width),
            interpolation=cast("Interpolation", fields.read("interpolation", one_of(*INTERPOLATIONS))),
            crop_pct=fields.read("crop_pct", number(MIN_CROP_PCT, MAX_CROP_PCT)),
            crop_mode=cast("CropMode", fields.read_or("crop_mode", one_of(*CROP_MODES), "center")),
            mean=fields.read("mean", channel_values),
            std=fields.read("std", channel_values),
            resize=cast("ResizeMode", fields.read_or("resize", one_of(*RESIZE_MODES), "crop")),
            edges=_pair(fields.read_or("edges", nullable(list_of(integer(1, MAX_INPUT_SIDE), least=2, most=2)), None)),
            pad=_unless_zero(fields.read_or("pad", nullable(channel_values), None)),
            pad_side=cast("PadSide", fields.read_or("pad_side", one_of(*PAD_SIDES), "bottom_right")),
        )
    except UsageError as error:
        raise InvalidError(f"{place}: {error}") from error


def _unless_zero(pad: tuple[float, ...] | None) -> tuple[float, ...] | None:
    return pad if pad is not None and any(pad) else None


def _pair(values: tuple[int, ...] | None) -> tuple[int, int] | None:
    return None if values is None else (values[0], values[1])


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
