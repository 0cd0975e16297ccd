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

import contextlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np

from edgevit.bundles import manifest as manifest_form
from edgevit.errors import BundleError, ExportError, UsageError
from edgevit.files import file_sha256, try_lock
from edgevit.images import Preprocessing
from edgevit.runtimes.base import BatchRange, BuildOptions, ExecutedPrecision
from edgevit.types import Reference

SCHEMA_VERSION = 1
MANIFEST = "manifest.json"
MODEL = "model.onnx"
REFERENCE = "reference.npz"
CLASSES = "classes.txt"
LATENCY = "latency.json"
_STAGING = ".edgevit-"
_LOCK = ".lock"
_UNLOCKED_S = 60.0  # a living run has locked its folder by then


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


def write_references(path: Path, references: Sequence[Reference]) -> None:
    arrays = {
        f"{reference.kind}/{side}/{name}": array
        for reference in references
        for side, named in (("input", reference.inputs), ("output", reference.outputs))
        for name, array in named.items()
    }
    np.savez_compressed(path, **arrays)  # type: ignore[arg-type]  # NumPy's stub takes its options for arrays


def read_references(path: Path) -> tuple[Reference, ...]:
    found: dict[str, dict[str, dict[str, Any]]] = {}
    with np.load(path, allow_pickle=False) as archive:
        for key in archive.files:
            kind, side, name = key.split("/", 2)
            found.setdefault(kind, {"input": {}, "output": {}})[side][name] = archive[key]
    return tuple(Reference(kind=kind, inputs=sides["input"], outputs=sides["output"]) for kind, sides in found.items())


def write_manifest(folder: Path, content: Mapping[str, Any]) -> None:
    """Writes the manifest of a finished folder, with every other file's size and hash."""
    files = [
        {
            "path": path.relative_to(folder).as_posix(),
            "size_bytes": path.stat().st_size,
            "sha256": file_sha256(path),
        }
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != MANIFEST
    ]
    text = json.dumps({"schema_version": SCHEMA_VERSION, **content, "files": files}, indent=2, allow_nan=False)
    (folder / MANIFEST).write_text(text + "\n", "utf-8")


@contextlib.contextmanager
def staging(out: Path) -> Iterator[Path]:
    """A folder beside the bundles' final place, to make them in; it is gone afterwards, whatever happens.

    What a killed run left behind is cleared away by the next one: a living run holds a lock on its own.
    Raises ExportError where `out` cannot be written.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
        _clear_abandoned(out)
        folder = Path(tempfile.mkdtemp(prefix=_STAGING, dir=out))
        try:
            lock = _lock(folder)
        except OSError:
            shutil.rmtree(folder, ignore_errors=True)
            raise
    except OSError as error:
        raise ExportError(
            f"cannot write to {out}: {error.strerror or error}; name another folder with --out"
        ) from error
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        lock.close()


def require_replaceable(target: Path) -> None:
    """Raises ExportError where something that is no bundle stands in the place of a bundle to come."""
    if os.path.lexists(target) and not (target / MANIFEST).is_file():
        raise ExportError(f"{target} exists and is not a bundle; move it away, or name another folder with --out")


def publish(targets: Mapping[Path, Path]) -> tuple[Bundle, ...]:
    """Renames finished folders to their final places, in place of older bundles there: all of them, or none.

    Raises ExportError where something that is no bundle stands there, or a folder cannot be renamed. Only SIGKILL or a
    power cut between two renames leaves some of them done.
    """
    for target in targets.values():
        require_replaceable(target)
    for folder in targets:
        for path in folder.rglob("*"):
            _flush(path)
    with contextlib.ExitStack() as undo:
        for folder, target in targets.items():
            older = folder.with_name(f"{folder.name}.replaced")  # goes with the staging folder
            undo.callback(_put_back, folder, target, older)  # first: an interrupt can come right after a rename
            try:
                if target.exists():
                    os.replace(target, older)
                os.replace(folder, target)
            except OSError as error:
                raise ExportError(
                    f"cannot write {target}: {error.strerror or error}; name another folder with --out"
                ) from error
        undo.pop_all()
    return tuple(Bundle(target, read_manifest(target)) for target in targets.values())


def _put_back(folder: Path, target: Path, older: Path) -> None:
    """Undoes as much of a publishing as has been done; what another run has put there since stays."""
    with contextlib.suppress(OSError):
        if not folder.exists():
            os.replace(target, folder)
        if older.exists() and not target.exists():
            os.replace(older, target)


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


def _flush(path: Path) -> None:
    if path.is_file():
        with path.open("rb") as file:
            os.fsync(file.fileno())


def _lock(folder: Path) -> IO[str]:
    """The folder's lock file, which gets its name once it is locked: whoever sees it unlocked sees a dead run's."""
    part = folder / f"{_LOCK}.part"
    file = part.open("w")
    try:
        try_lock(file)
        os.replace(part, folder / _LOCK)
    except BaseException:
        file.close()
        raise
    return file


def _clear_abandoned(out: Path) -> None:
    for folder in out.glob(f"{_STAGING}*"):
        with contextlib.suppress(OSError), _abandoned(folder) as abandoned:
            if abandoned:
                shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def _abandoned(folder: Path) -> Iterator[bool]:
    """Whether the run that made a folder is dead; its lock is held meanwhile. Raises OSError where it is alive."""
    try:
        file = (folder / _LOCK).open("r+")
    except FileNotFoundError:  # just made, or half cleared away: only time tells
        yield time.time() - folder.stat().st_mtime > _UNLOCKED_S
        return
    with file:
        yield try_lock(file)
