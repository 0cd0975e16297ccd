"""Open, check and read a bundle: one folder that a device can verify, run and measure without PyTorch.

    <model>-<precision>-<fmt>/
        manifest.json    contents of the bundle, origin of the model, and measurements
        model.onnx       the graph that the engine is built from, above 2 GB with its weights in model.onnx.data
        ...              the engine's own files
        reference.npz    reference inputs and PyTorch's outputs for them
        latency.json     every sample of the latency measurement, if there was one
        tuning.json      the search that found the engine, if it was tuned
        classes.txt      class names in the order of the logits, if they are known

A bundle is written next to its final place and renamed into it (see store.py): it is there whole or not at all.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from edgevit.bundles import store
from edgevit.bundles.manifest import (
    CLASSES_FILE,
    MANIFEST_FILE,
    REFERENCE_FILE,
    WEIGHTS_FILE,
    FileRecord,
    Manifest,
    read_manifest,
)
from edgevit.bundles.reference_file import read_references
from edgevit.datasets import MAX_CLASSES_BYTES
from edgevit.dense.outputs import class_count
from edgevit.errors import BundleError, UsageError
from edgevit.files import MODEL_FILE, file_sha256, first_line, has_control_characters, os_reason
from edgevit.formats import get_format
from edgevit.images import Preprocessing
from edgevit.runtimes.base import BuildOptions
from edgevit.runtimes.precision import ExecutedPrecision
from edgevit.types import Reference
from edgevit.untrusted import read_limited

_READ_S = 5.0  # how long to try again to read a bundle that other processes replace meanwhile


@dataclass(frozen=True, slots=True, repr=False)
class Bundle:
    """A bundle on disk. Use `open`, which checks its files; the properties read its manifest."""

    path: Path
    manifest: Manifest

    def __repr__(self) -> str:
        return f"Bundle({str(self.path)!r})"  # the manifest has many kilobytes

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> Bundle:
        """Open the bundle at `path` after a check of the size and SHA-256 of every file in its manifest.

        Files that are not in the manifest are ignored, unless edgevit would open them. Raises BundleError if there is
        no bundle, or it is incomplete or was changed.
        """
        folder = Path(path)
        end = time.monotonic() + _READ_S
        while True:
            before = store.version(folder)
            try:
                return cls._read(folder)
            except BundleError:
                replaced = store.recover(folder) or store.version(folder) != before
                if not replaced or time.monotonic() > end:
                    raise

    @classmethod
    def _read(cls, folder: Path) -> Bundle:
        bundle = cls(folder, read_manifest(folder))
        _require_hashes(bundle)
        for file in bundle.manifest.files:
            _check_file(folder, file)
        return bundle

    @property
    def name(self) -> str:
        return self.path.resolve().name

    @property
    def fmt(self) -> str:
        return self.manifest.runtime.fmt

    @property
    def options(self) -> BuildOptions:
        """The options that the engine was built with."""
        return self.manifest.options

    @property
    def recorded_precision(self) -> ExecutedPrecision:
        """The precision that ran when the engine was built, from the manifest; empty if nothing has run yet."""
        return self.manifest.precision.executed or ExecutedPrecision()

    @property
    def quantized_fraction(self) -> float | None:
        """The fraction of MACs that the graph holds in the requested precision; None if they were not counted."""
        return self.manifest.quantized_fraction

    def needs_vnni(self, fmt: str | None = None) -> bool:
        """Whether an x86 processor without VNNI computes the bundle wrongly, in its own format or in `fmt`.

        The weights of int8 bundles that do not record it have the full range.
        """
        if self.options.precision != "int8" or not get_format(fmt or self.fmt).int8_on_cpu:
            return False
        return self.manifest.needs_vnni

    @property
    def engine_path(self) -> Path | None:
        """The engine file to open; None if the engine has yet to be built on the device."""
        files = self.manifest.runtime.engine_files
        return self.path / files[0] if files else None

    @property
    def model_path(self) -> Path:
        return self.path / MODEL_FILE

    @property
    def preprocessing(self) -> Preprocessing:
        """How images become the model's input. Raises BundleError if the model does not take images."""
        preprocessing = self.manifest.model.preprocessing
        if preprocessing is None:
            raise BundleError(f"{self.name} does not take images: its manifest has no preprocessing")
        return preprocessing

    @property
    def classes(self) -> tuple[str, ...] | None:
        """Class names in the order of the logits; None if the bundle has none.

        Raises BundleError if the file cannot be read, has control characters, or has another number of names than the
        model has logits.
        """
        path = self.path / CLASSES_FILE
        if not os.path.lexists(path):
            return None
        try:
            names = tuple(read_limited(path, limit_bytes=MAX_CLASSES_BYTES).decode("utf-8").splitlines())
        except OSError as error:
            raise BundleError(f"cannot read {path}: {os_reason(error)}") from error
        except ValueError as error:
            raise BundleError(f"{path} is damaged: {first_line(error)}; export the bundle again") from error
        if any(map(has_control_characters, names)):
            raise BundleError(f"{path} has control characters in its class names; export the bundle again")
        count = class_count(self.manifest.outputs, self.manifest.model.output_form)
        if count is not None and count != len(names):
            raise BundleError(f"{path} has {len(names)} names for {count} classes; export the bundle again")
        return names

    def references(self) -> tuple[Reference, ...]:
        """The reference inputs in the bundle, with PyTorch's outputs."""
        path = self.path / REFERENCE_FILE
        if not path.exists():
            raise BundleError(f"{self.name} has no {REFERENCE_FILE}; export it again")
        return read_references(path)


def bundle_name(model: str, precision: str, fmt: str) -> str:
    """The folder name of a bundle."""
    return f"{model}-{precision}-{fmt}"


def display_names(bundles: Sequence[Bundle]) -> list[str]:
    """Names of bundles in reports: the folder name, prefixed with enough parent folders to be unique."""
    return [_distinct(bundle, [other for other in bundles if other.name == bundle.name]) for bundle in bundles]


def require_distinct(names: Iterable[str]) -> None:
    """Raise UsageError if a name occurs twice: reports hold one result for each."""
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise UsageError(f"{name} is given twice; give it once")
        seen.add(name)


def _distinct(bundle: Bundle, namesakes: Sequence[Bundle]) -> str:
    """Return the end of a bundle's path that no namesake shares; the whole path if there is none."""
    parts = bundle.path.parts
    for count in range(1, len(parts) + 1):
        ends = [each.path.parts[-count:] for each in namesakes]
        if ends.count(parts[-count:]) == 1:
            return str(Path(*parts[-count:]))
    return str(bundle.path)


def model_file(path: Path) -> Path:
    """Return `path` if it is an ONNX file, or the ONNX file inside it if it is a bundle, which is checked first.

    Raises UsageError if there is nothing at `path`, BundleError if the bundle is incomplete or was changed.
    """
    if not path.exists():
        raise UsageError(f"no ONNX file and no bundle at {path}; make one: edgevit export MODEL --fmt onnx")
    if path.is_dir():
        return Bundle.open(path).model_path
    if not path.is_file():
        raise UsageError(f"{path} is not a regular file; give an ONNX file or a bundle")
    return path


def _require_hashes(bundle: Bundle) -> None:
    """Raise BundleError if a file that edgevit opens has no hash in the manifest."""
    hashed = {file.path for file in bundle.manifest.files}
    opened = [MODEL_FILE, REFERENCE_FILE, *bundle.manifest.runtime.engine_files]
    opened += [name for name in (CLASSES_FILE, WEIGHTS_FILE) if os.path.lexists(bundle.path / name)]
    for name in opened:
        if name not in hashed:
            raise BundleError(
                f"{bundle.path / MANIFEST_FILE} has no hash of {name}, so changes to it would go unnoticed; "
                "export the bundle again"
            )


def _check_file(folder: Path, file: FileRecord) -> None:
    """Raise BundleError unless the file lies in `folder` and has the size and hash of the manifest."""
    path = folder / file.path
    try:
        inside = path.resolve().is_relative_to(folder.resolve())
    except (OSError, RuntimeError) as error:  # a loop of symbolic links
        raise BundleError(f"cannot read {path}: {first_line(error)}") from error
    if not inside:
        raise BundleError(f"{folder / MANIFEST_FILE} lists a file outside of the bundle: {file.path}; do not use it")
    if not path.is_file():
        raise BundleError(f"{folder} lacks {file.path}; copy the bundle again, or export it again")
    try:
        size = path.stat().st_size
        as_exported = size == file.size_bytes and file_sha256(path) == file.sha256
    except OSError as error:  # another process may replace the bundle meanwhile
        raise BundleError(f"cannot read {path}: {os_reason(error)}") from error
    if not as_exported:
        if size == file.size_bytes:
            reason = "its contents differ: it has another SHA-256"
        else:
            reason = f"it has {size} bytes, expected {file.size_bytes}"
        raise BundleError(
            f"{path} is not the file that was exported: {reason}; copy the bundle again, or export it again"
        )
