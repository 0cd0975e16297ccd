"""The cache of compiled models that `edgevit.load(cache_dir=)` uses: never one of another engine, machine or version.

OpenVINO finds a compiled model by the path, size and time of the .xml file, so that other weights at the same path
could be answered with the old ones. Therefore each bundle has a folder of its own on each machine, named after a hash
of the engine's files and the environment, and a compiled model is only used if its checksum is the one that was written
after it was compiled. A checksum finds damage, not malice: use a folder that only you can write to.

ONNX Runtime's optimized graphs lie in folders within that one, which have checksums of their own
(runtimes/onnxruntime_cache.py).
"""

from __future__ import annotations

import errno
import hashlib
import json
import logging
from pathlib import Path

from edgevit.bundles.manifest import Manifest
from edgevit.errors import BuildError
from edgevit.files import file_sha256, os_reason, write_atomically
from edgevit.latency.environment import Environment
from edgevit.untrusted import SHA256, InvalidError, object_of, read_json

_LOG = logging.getLogger(__name__)
_CHECKSUMS = "checksums.json"
_MAX_BYTES = 1 << 20
# Read-only, or full: an engine is loaded without the cache. Other errors are of a path that is not a folder.
_UNWRITABLE = frozenset({errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


def prepare(manifest: Manifest, cache_dir: Path) -> Path | None:
    """Return the folder for the compiled models of a bundle on this machine, without those that are damaged.

    None, which is logged, if it cannot be written. Raises BuildError if there cannot be such a folder.
    """
    folder = cache_dir / _key(manifest)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        known = _checksums(folder)
        for file in _compiled(folder):
            if known.get(file.name) != file_sha256(file):
                _LOG.warning("edgevit: %s is damaged and is compiled again", file)
                file.unlink()
    except OSError as error:
        _require_unwritable(folder, error)
        return None
    return folder


def seal(folder: Path) -> None:
    """Write the checksums of what has been compiled since `prepare`.

    If they cannot be written, which is logged, it is compiled again. Raises BuildError if the folder is gone.
    """
    try:
        known, found = _checksums(folder), _compiled(folder)
        if fresh := [file for file in found if file.name not in known]:
            checksums = {file.name: known[file.name] for file in found if file.name in known}
            checksums |= {file.name: file_sha256(file) for file in fresh}
            write_atomically(folder / _CHECKSUMS, json.dumps(checksums))
    except OSError as error:
        _require_unwritable(folder, error)


def _require_unwritable(folder: Path, error: OSError) -> None:
    """Log that a folder is not used as a cache because it is read-only or full. Raises BuildError for other reasons."""
    message = f"cannot use {folder} as a cache: {os_reason(error)}; choose another folder"
    if error.errno not in _UNWRITABLE:
        raise BuildError(message) from error
    _LOG.warning("edgevit: %s", message)


def _key(manifest: Manifest) -> str:
    files = sorted((record.path, record.sha256) for record in manifest.engine_records)
    content = json.dumps([files, Environment.capture().key()], sort_keys=True, default=str)
    return hashlib.sha256(content.encode()).hexdigest()[:32]


def _compiled(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_file() and path.name != _CHECKSUMS)


def _checksums(folder: Path) -> dict[str, str]:
    """Return the recorded checksums by file name; none if there are none yet, or if the record is damaged."""
    try:
        return object_of(SHA256)(read_json(folder / _CHECKSUMS, limit_bytes=_MAX_BYTES), _CHECKSUMS)
    except (FileNotFoundError, InvalidError):
        return {}
