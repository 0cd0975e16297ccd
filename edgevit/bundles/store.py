"""Write bundle folders atomically: stage next to the final place, then rename."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import IO

import numpy as np

from edgevit.bundles.manifest import MANIFEST_FILE, FileRecord, Manifest
from edgevit.errors import ExportError
from edgevit.files import file_sha256, try_lock
from edgevit.types import Reference

_STAGING = ".edgevit-"
_LOCK = ".lock"
_UNLOCKED_S = 60.0  # a staging folder without a lock file is abandoned after this time


@contextlib.contextmanager
def staging(out: Path) -> Iterator[Path]:
    """Create a folder inside `out` to write bundles in; delete it afterwards, whatever happens.

    Staging folders of killed processes are deleted as well; a running process holds a lock on its own. Raises
    ExportError if `out` cannot be written.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
        _delete_abandoned(out)
        folder = Path(tempfile.mkdtemp(prefix=_STAGING, dir=out))
        try:
            lock = _lock(folder)
        except OSError:
            shutil.rmtree(folder, ignore_errors=True)
            raise
    except OSError as error:
        raise ExportError(f"cannot write to {out}: {error.strerror or error}; choose another folder: --out") from error
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        lock.close()


def require_replaceable(target: Path) -> None:
    """Raise ExportError if `target` exists and is not a bundle."""
    if os.path.lexists(target) and not (target / MANIFEST_FILE).is_file():
        raise ExportError(f"{target} exists and is not a bundle; move it away, or choose another folder: --out")


def publish(targets: Mapping[Path, Path]) -> None:
    """Rename finished folders to their final places, replacing older bundles there: all of them, or none.

    `targets` maps each staged folder to its place. Raises ExportError if something other than a bundle is in the way,
    or a folder cannot be renamed. Only SIGKILL or a power cut between two renames leaves some of them done.
    """
    for target in targets.values():
        require_replaceable(target)
    for folder in targets:
        for path in folder.rglob("*"):
            _flush(path)
    with contextlib.ExitStack() as undo:
        for folder, target in targets.items():
            older = folder.with_name(f"{folder.name}.replaced")  # deleted with the staging folder
            undo.callback(_put_back, folder, target, older)  # before the rename: an interrupt can follow right after it
            try:
                if target.exists():
                    os.replace(target, older)
                os.replace(folder, target)
            except OSError as error:
                raise ExportError(
                    f"cannot write {target}: {error.strerror or error}; choose another folder: --out"
                ) from error
        undo.pop_all()


def write_references(path: Path, references: Sequence[Reference]) -> None:
    """Write reference inputs and outputs as an .npz file with the keys `kind/input|output/name`."""
    arrays = {
        f"{reference.kind}/{side}/{name}": array
        for reference in references
        for side, named in (("input", reference.inputs), ("output", reference.outputs))
        for name, array in named.items()
    }
    np.savez_compressed(path, **arrays)  # type: ignore[arg-type]  # NumPy's stub takes keywords for its own options


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write the manifest of a finished folder; its `files` are replaced by the size and hash of every other file."""
    files = tuple(
        FileRecord(path=path.relative_to(folder).as_posix(), size_bytes=path.stat().st_size, sha256=file_sha256(path))
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != MANIFEST_FILE
    )
    content = json.dumps(replace(manifest, files=files).to_json(), indent=2, allow_nan=False)
    (folder / MANIFEST_FILE).write_text(content + "\n", "utf-8")


def _put_back(folder: Path, target: Path, older: Path) -> None:
    """Undo the renames of `publish` that were done; a bundle that another process published since stays."""
    with contextlib.suppress(OSError):
        if not folder.exists():
            os.replace(target, folder)
        if older.exists() and not target.exists():
            os.replace(older, target)


def _flush(path: Path) -> None:
    if path.is_file():
        with path.open("rb") as file:
            os.fsync(file.fileno())


def _lock(folder: Path) -> IO[str]:
    """Lock a staging folder. The lock file is renamed into place once locked, so that it is never seen unlocked."""
    part = folder / f"{_LOCK}.part"
    file = part.open("w")
    try:
        try_lock(file)
        os.replace(part, folder / _LOCK)
    except BaseException:
        file.close()
        raise
    return file


def _delete_abandoned(out: Path) -> None:
    for folder in out.glob(f"{_STAGING}*"):
        with contextlib.suppress(OSError), _abandoned(folder) as abandoned:
            if abandoned:
                shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def _abandoned(folder: Path) -> Iterator[bool]:
    """Whether the process that made a staging folder is gone; its lock is held meanwhile."""
    try:
        file = (folder / _LOCK).open("r+")
    except FileNotFoundError:  # just created, or half deleted
        yield time.time() - folder.stat().st_mtime > _UNLOCKED_S
        return
    with file:
        yield try_lock(file)
