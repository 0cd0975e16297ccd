"""A bundle: one folder that a device can open, judge and measure without PyTorch.

    <model>-<precision>-<fmt>/
        manifest.json    what is in here, where it came from, and what was found
        model.onnx       the graph the engine was made from
        …                the engine's own files, byte-clean
        reference.npz    inputs, and what PyTorch answered to them
        latency.json     every sample of the measurement, where there was one
        classes.txt      class names in the order of the logits, where there are any

It is written beside its final place and renamed into it: whoever looks sees a whole bundle or none.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edgevit.bundles import manifest as manifest_form
from edgevit.errors import BundleError, UsageError
from edgevit.files import file_sha256
from edgevit.images import Preprocessing
from edgevit.runtimes.base import BatchRange, BuildOptions
from edgevit.runtimes.precision import ExecutedPrecision
from edgevit.types import Reference

SCHEMA_VERSION = 1
MANIFEST = "manifest.json"
MODEL = "model.onnx"
REFERENCE = "reference.npz"
CLASSES = "classes.txt"
LATENCY = "latency.json"


@dataclass(frozen=True, slots=True)
class Bundle:
    """A bundle on disk. `open` checks that it is whole; the properties read its manifest."""

    path: Path
    manifest: Mapping[str, Any]

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> Bundle:
        """The bundle at `path`, with every file's size and hash checked. Raises BundleError.

        What edgevit opens of a bundle has to be among them; files that somebody laid beside are left alone.
        """
        bundle = cls(Path(path), read_manifest(Path(path)))
        _check_content(bundle)
        _check_covered(bundle)
        for entry in bundle.manifest["files"]:
            _check_file(bundle.path, entry)
        return bundle

    @property
    def name(self) -> str:
        return self.path.resolve().name

    @property
    def fmt(self) -> str:
        return str(self.manifest["runtime"]["fmt"])

    @property
    def options(self) -> BuildOptions:
        """What the engine was built for."""
        build = self.manifest["build"]
        dynamic = build["dynamic_batch"]
        return BuildOptions(
            precision=self.manifest["precision"]["asked"],
            batch=build["batch"],
            dynamic_batch=BatchRange(*dynamic) if dynamic else None,
            compute_capabilities=tuple(build["compute_capabilities"]) if build.get("compute_capabilities") else None,
        )

    @property
    def recorded_precision(self) -> ExecutedPrecision:
        """What ran where the engine was built, by the manifest; of an engine that is yet to be built, nothing."""
        told = self.manifest["precision"]
        return ExecutedPrecision(told.get("layers", {}), told.get("multiply_adds", {}))

    @property
    def asked_share(self) -> float | None:
        """The share of the multiply-adds that the graph holds in its precision, where that has been counted."""
        share = (self.manifest.get("typing") or {}).get("share")
        return float(share) if share is not None else None

    @property
    def engine_path(self) -> Path | None:
        """The engine file to open; None where the engine has yet to be built on the device."""
        files = self.manifest["runtime"]["engine_files"]
        return self.path / files[0] if files else None

    @property
    def model_path(self) -> Path:
        return self.path / MODEL

    @property
    def preprocessing(self) -> Preprocessing:
        """How photos become the model's input. Raises BundleError where the model takes no photos."""
        data = self.manifest["model"]["preprocessing"]
        if data is None:
            raise BundleError(f"{self.name} takes no photos: its model was exported without preprocessing")
        return Preprocessing.from_json(data)

    @property
    def classes(self) -> tuple[str, ...] | None:
        path = self.path / CLASSES
        return tuple(path.read_text("utf-8").splitlines()) if path.exists() else None

    def references(self) -> tuple[Reference, ...]:
        """The inputs that the bundle carries, with PyTorch's answers."""
        path = self.path / REFERENCE
        if not path.exists():
            raise BundleError(f"{self.name} carries no {REFERENCE}: it was exported without it; export it again")
        return read_references(path)


def display_names(bundles: Sequence[Bundle]) -> list[str]:
    """Names of bundles in reports: the folder name, or the whole path if two bundles share it."""
    names = [bundle.name for bundle in bundles]
    return [bundle.name if names.count(bundle.name) == 1 else str(bundle.path) for bundle in bundles]


def bundle_name(model: str, precision: str, fmt: str) -> str:
    return f"{model}-{precision}-{fmt}"


def read_manifest(path: Path) -> dict[str, Any]:
    """The manifest of the bundle at `path`. Raises BundleError where there is none or it cannot be read."""
    if not path.is_dir():
        raise BundleError(f"no bundle at {path}; make one: edgevit export MODEL --fmt ort")
    try:
        manifest = json.loads((path / MANIFEST).read_text("utf-8"))
        version = manifest["schema_version"]
    except FileNotFoundError as error:
        raise BundleError(f"{path} is not a bundle: it has no {MANIFEST}") from error
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise BundleError(f"{path / MANIFEST} is damaged ({error}); export the bundle again") from error
    if version != SCHEMA_VERSION:
        raise BundleError(
            f"{path} has the schema version {version}, and this edgevit reads {SCHEMA_VERSION}; "
            f"use the edgevit that made it ({manifest.get('edgevit_version')}), or export again"
        )
    missing = manifest_form.SECTIONS - manifest.keys()
    if missing:
        raise BundleError(f"{path / MANIFEST} lacks {', '.join(sorted(missing))}; export the bundle again")
    return dict(manifest)


def model_file(path: Path) -> Path:
    """The ONNX file that `path` names: itself, or the one inside a bundle, once the bundle is seen to be whole.

    Raises UsageError where there is neither, BundleError where the bundle is not whole.
    """
    if not path.exists():
        raise UsageError(f"no ONNX file and no bundle at {path}; make one: edgevit export MODEL --fmt onnx")
    return Bundle.open(path).model_path if path.is_dir() else path


def read_references(path: Path) -> tuple[Reference, ...]:
    found: dict[str, dict[str, dict[str, Any]]] = {}
    with np.load(path, allow_pickle=False) as archive:
        for key in archive.files:
            kind, side, name = key.split("/", 2)
            found.setdefault(kind, {"input": {}, "output": {}})[side][name] = archive[key]
    return tuple(Reference(kind=kind, inputs=sides["input"], outputs=sides["output"]) for kind, sides in found.items())


def _check_content(bundle: Bundle) -> None:
    """Raises BundleError where the manifest is not what `write_manifest` was given: what reads it can rely on it."""
    fault = manifest_form.fault(bundle.manifest)
    try:
        if fault is None and bundle.options and bundle.manifest["model"]["preprocessing"] is not None:
            _ = bundle.preprocessing
    except (UsageError, TypeError, IndexError) as error:  # right in form, and a contradiction
        fault = str(error)
    if fault is not None:
        raise BundleError(f"{bundle.path / MANIFEST} is damaged: {fault}; export the bundle again")


def _check_covered(bundle: Bundle) -> None:
    """Raises BundleError where a file that is to be opened has no hash; those that have one lie in the bundle."""
    hashed = {entry["path"] for entry in bundle.manifest["files"]}
    opened = [MODEL, REFERENCE, *bundle.manifest["runtime"]["engine_files"]]
    if os.path.lexists(bundle.path / CLASSES):
        opened.append(CLASSES)
    for name in opened:
        if name not in hashed:
            raise BundleError(
                f"{bundle.path / MANIFEST} has no hash of {name}, so that nothing says whether it is the file that was "
                "exported; export the bundle again"
            )


def _check_file(folder: Path, entry: Mapping[str, Any]) -> None:
    if "\0" in entry["path"]:
        raise BundleError(f"{folder} names a file that cannot be: {entry['path']!r}; export the bundle again")
    path = folder / entry["path"]
    if not path.resolve().is_relative_to(folder.resolve()):
        raise BundleError(f"{folder} names a file outside itself: {entry['path']}; do not use it")
    if not path.is_file():
        raise BundleError(f"{folder} lacks {entry['path']}; copy the bundle again, or export it again")
    size = path.stat().st_size
    if size != entry["size_bytes"] or file_sha256(path) != entry["sha256"]:
        raise BundleError(
            f"{path} is not the file that was exported: {size} bytes of {entry['size_bytes']}, or another hash; "
            "copy the bundle again, or export it again"
        )
