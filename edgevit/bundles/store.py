"""Write bundle folders atomically: stage next to the final place, then swap with an older bundle there.

A bundle in place is always whole, even if a process is killed at any moment. On file systems that cannot swap two
folders atomically, an older bundle is moved into the staging folder first; if the process is killed right then, the
next reader or writer moves it back.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import IO, Any

import numpy as np

from edgevit.bundles.manifest import MANIFEST_FILE, FileRecord, Manifest
from edgevit.errors import ExportError
from edgevit.files import exchange, file_sha256, os_reason, try_lock
from edgevit.types import Reference

_STAGING = ".edgevit-"
_REPLACED = ".replaced"  # an older bundle in a staging folder: <name>.replaced
_LOCK = ".lock"
_UNLOCKED_S = 60.0  # a staging folder without a lock file is abandoned after this time
_SWAP_S = 2.0  # how long a reader waits for a living process between its two renames
_POLL_S = 0.005


@contextlib.contextmanager
def staging(out: Path) -> Iterator[Path]:
    """Create a folder inside `out` to write bundles in; delete it afterwards, whatever happens.

    Staging folders of killed processes are deleted as well, after older bundles in them are moved back; a running
    process holds a lock on its own. Raises ExportError if `out` cannot be written.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
        _recover(out)
        folder = Path(tempfile.mkdtemp(prefix=_STAGING, dir=out))
        try:
            lock = _lock(folder)
        except OSError:
            shutil.rmtree(folder, ignore_errors=True)
            raise
    except OSError as error:
        raise ExportError(f"cannot write to {out}: {os_reason(error)}; choose another folder: --out") from error
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        lock.close()


@contextlib.contextmanager
def translate_write_errors(
    folder: Path, *, advice: str = "free some space, or choose another folder with --out"
) -> Iterator[None]:
    """Raise ExportError, in one line, for a full disk or a path that cannot be written."""
    try:
        yield
    except OSError as error:
        raise ExportError(f"cannot write {error.filename or folder}: {os_reason(error)}; {advice}") from error


def copy_folder(
    source: Path,
    target: Path,
    *,
    copy: Callable[[Path, Path], object] = shutil.copy2,
    left_out: Container[str] = (),
) -> None:
    """Copy a folder without the files named in `left_out`; links stay links.

    Raises the first OSError as it is; `shutil.copytree` goes on, and raises a list of all.
    """
    target.mkdir()
    for path in source.iterdir():
        if path.name in left_out:
            continue
        if path.is_symlink():
            (target / path.name).symlink_to(path.readlink())
        elif path.is_dir():
            copy_folder(path, target / path.name, copy=copy, left_out=left_out)
        else:
            copy(path, target / path.name)
    shutil.copystat(source, target)


def require_replaceable(target: Path) -> None:
    """Raise ExportError if `target` exists and is not a bundle."""
    if os.path.lexists(target) and not _is_bundle(target):
        raise ExportError(f"{target} exists and is not a bundle; move it away, or choose another folder: --out")


def publish(targets: Mapping[Path, Path]) -> None:
    """Move finished folders to their final places, replacing older bundles there: all of them, or none.

    `targets` maps each staged folder to its place, which has the same name, next to the staging folder. Raises
    ExportError if something other than a bundle is in the way, or a folder cannot be written or renamed. Only SIGKILL
    or a power cut between two bundles leaves some of them published and others not.
    """
    for target in targets.values():
        require_replaceable(target)
    for folder, target in targets.items():
        with translate_write_errors(target):
            for path in (*folder.rglob("*"), folder):
                _flush(path)
    with contextlib.ExitStack() as undo:
        for folder, target in targets.items():
            undo.callback(_undo, folder, target, folder.stat().st_ino)  # before: an interrupt can follow right after
            try:
                _put(folder, target)
            except OSError as error:
                raise ExportError(f"cannot write {target}: {os_reason(error)}; choose another folder: --out") from error
        undo.pop_all()
    for parent in {target.parent for target in targets.values()}:
        _flush(parent)


def recover(target: Path) -> bool:
    """Move a bundle back to `target` if a process was killed between moving it away and publishing the new one.

    Waits for a living process that is between the two renames. Return False if there was nothing to do.
    """
    end = time.monotonic() + _SWAP_S
    waited = False
    while not os.path.lexists(target) and list(target.parent.glob(f"{_STAGING}*/{target.name}{_REPLACED}")):
        waited = True
        _recover(target.parent)
        if time.monotonic() > end:
            break
        time.sleep(_POLL_S)
    return waited


def version(folder: Path) -> tuple[int, int, int] | None:
    """A value that changes if another bundle is published at `folder`; None if there is none."""
    try:
        status = folder.stat()
    except OSError:
        return None
    return status.st_ino, status.st_mtime_ns, status.st_ctime_ns  # an inode alone is soon used again


def write_references(path: Path | IO[bytes], references: Sequence[Reference]) -> None:
    """Write references as an .npz file with the keys `kind/input|output|float32_error/name`."""
    arrays = {
        f"{reference.kind}/{side}/{name}": np.asarray(array)
        for reference in references
        for side, named in _sides(reference).items()
        for name, array in named.items()
    }
    np.savez_compressed(path, **arrays)  # type: ignore[arg-type]  # NumPy's stub takes keywords for its own options


def _sides(reference: Reference) -> dict[str, Mapping[str, Any]]:
    return {"input": reference.inputs, "output": reference.outputs, "float32_error": reference.float32_error}


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write the manifest of a finished folder; its `files` are replaced by the size and hash of every other file."""
    files = tuple(
        FileRecord(path=path.relative_to(folder).as_posix(), size_bytes=path.stat().st_size, sha256=file_sha256(path))
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != MANIFEST_FILE
    )
    save_manifest(folder, replace(manifest, files=files))


def save_manifest(folder: Path, manifest: Manifest) -> None:
    """Write the manifest of a folder whose `files` it lists."""
    content = json.dumps(manifest.to_json(), indent=2, allow_nan=False)
    (folder / MANIFEST_FILE).write_text(content + "\n", "utf-8")


def _is_bundle(folder: Path) -> bool:
    return (folder / MANIFEST_FILE).is_file()


def _put(folder: Path, target: Path) -> None:
    """Move a folder to its place; an older bundle there ends up in the staging folder. Raises OSError."""
    if not os.path.lexists(target):
        os.replace(folder, target)
    elif exchange(folder, target):
        _require_bundle(folder)
    else:
        os.replace(target, _replaced(folder))
        _require_bundle(_replaced(folder))
        os.replace(folder, target)


def _require_bundle(older: Path) -> None:
    """Raise FileExistsError if the folder that was moved away is not a bundle: it was created after the first check."""
    if not _is_bundle(older):
        raise FileExistsError(None, "it exists and is not a bundle")


def _undo(folder: Path, target: Path, published: int) -> None:
    """Undo an interrupted `_put`. A bundle that another process has published in the meantime stays."""
    with contextlib.suppress(OSError):
        if target.exists() and target.stat().st_ino == published:
            if folder.exists():
                exchange(folder, target)
            else:
                os.replace(target, folder)
        if not os.path.lexists(target):
            os.replace(_replaced(folder), target)


def _replaced(folder: Path) -> Path:
    return folder.with_name(folder.name + _REPLACED)


def _flush(path: Path) -> None:
    """Write a file's content, or a folder's entries, to the disk. Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


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


def _recover(out: Path) -> None:
    """Empty and delete the staging folders of killed processes; older bundles in them go back to their places."""
    for folder in out.glob(f"{_STAGING}*"):
        with contextlib.suppress(OSError), _abandoned(folder) as abandoned:
            if not abandoned:
                continue
            for older in folder.glob(f"*{_REPLACED}"):
                target = out / older.name.removesuffix(_REPLACED)
                if not os.path.lexists(target):
                    os.replace(older, target)
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
