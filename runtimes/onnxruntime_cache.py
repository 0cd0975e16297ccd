"""Optimized graphs that ONNX Runtime has saved: the next session of the same engine does not optimize again.

A saved graph is a folder with the graph, its weights and a record of their checksums and of the precisions that ran. It
is written next to its place and then renamed, so it is there whole or not at all, and its files never change. ONNX
Runtime maps the weights into memory instead of copying them; a file that is deleted meanwhile stays mapped.

The weights that kernels pack are packed again each time: of the packed ones that ONNX Runtime 1.31 can save as well
(session.save_external_prepacked_constant_initializers), those of fp32 matmuls crash the session that loads them.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import secrets
import shutil
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgevit.errors import BuildError
from edgevit.files import blocks, first_line, os_reason, try_lock
from edgevit.untrusted import InvalidError, JsonObject, any_object, integer, object_of, open_regular, read_json, text

MIN_EXTERNAL_BYTES = 65_536  # of weights outside of the graph; smaller tensors may be shapes, which are read in it
_LOG = logging.getLogger(__name__)
_GRAPH, _RECORD = "model.onnx", "record.json"
_MAX_RECORD_BYTES = 1 << 20
_FORMAT = 1  # of the folder


@dataclass(frozen=True, slots=True)
class OpenedSession:
    """A session of ONNX Runtime, and the number of its layers that multiply by precision."""

    session: Any
    layers: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class SavedGraph:
    """A saved graph whose checksums are right; `layers` are those of the session that saved it."""

    model: Path
    layers: Mapping[str, int]


class OptimizedGraph:
    """The place of one engine's optimized graph in a folder that belongs to the engine, this machine and its versions.

    Damage is found by checksums (CRC-32), malice is not: only the user may be able to write to the folder.
    """

    def __init__(self, cache_dir: Path, settings: Mapping[str, str]) -> None:
        """`settings` are all that changes the graph, apart from the engine and the machine."""
        key = hashlib.sha256(json.dumps([_FORMAT, settings], sort_keys=True).encode()).hexdigest()[:16]
        self._home = cache_dir.absolute() / f"optimized-{key}"
        self._graph = self._home / "graph"
        self._origin = f"{cache_dir.name}/{self._home.name}"  # a copy in another folder is not of that folder's engine

    def find(self) -> SavedGraph | None:
        """Return the saved graph; None if there is none, or if it is damaged or of another engine, which is logged."""
        try:
            return self._read() if os.path.lexists(self._graph) else None
        except (OSError, InvalidError) as error:
            _LOG.warning("edgevit: %s is damaged and is saved again: %s", self._graph, _reason(error))
            return None

    def save(self, load: Callable[[Path, str], OpenedSession]) -> OpenedSession | None:
        """Return the session that `load` opens while it saves its graph, and keep the graph in place of a damaged one.

        `load` takes the path of the graph and the file name of its weights. Returns None, without a session, if the
        graph cannot be saved, which is logged, or if another process is saving it.
        """
        opened, part = None, self._home / "part"
        try:
            _require_utf8(self._home)
            self._home.mkdir(parents=True, exist_ok=True)
            with (self._home / "lock").open("ab") as lock:  # it stays: without it two processes could hold two locks
                if not try_lock(lock):
                    return None
                try:
                    _remove(part)  # of a process that was killed
                    part.mkdir()
                    # A reader that sees the graph replaced does not find the weights of the other one.
                    opened = load(part / _GRAPH, f"weights-{secrets.token_hex(4)}.bin")
                    self._keep(part, opened.layers)
                finally:
                    shutil.rmtree(part, ignore_errors=True)
        except (OSError, BuildError) as error:  # of a full disk, for example
            _LOG.warning("edgevit: the optimized graph cannot be saved in %s: %s", self._home, _reason(error))
        return opened

    def _read(self) -> SavedGraph:
        """Return the saved graph. Raises OSError or InvalidError if it is damaged or of another origin."""
        record = JsonObject.of(read_json(self._graph / _RECORD, limit_bytes=_MAX_RECORD_BYTES))
        content = record.read("content", any_object)
        if record.read("crc32", integer()) != _crc32_of(content):
            raise InvalidError(f"{_RECORD} has another checksum")
        fields = JsonObject.of(content)
        if fields.read("origin", text()) != self._origin:
            raise InvalidError("it is of another engine or machine")
        for name, expected in fields.read("files", object_of(integer())).items():
            if _crc32(self._graph / name) != expected:
                raise InvalidError(f"{name} has another checksum")
        return SavedGraph(self._graph / _GRAPH, fields.read("layers", object_of(integer())))

    def _keep(self, part: Path, layers: Mapping[str, int]) -> None:
        """Write the record of a graph that has just been saved, and move it to its place."""
        files = {file.name: _crc32(file) for file in sorted(part.iterdir())}
        content = {"origin": self._origin, "files": files, "layers": dict(layers)}
        record = {"crc32": _crc32_of(content), "content": content}
        (part / _RECORD).write_text(json.dumps(record), encoding="utf-8")
        _remove(self._graph)
        part.rename(self._graph)


def _require_utf8(path: Path) -> None:
    try:
        str(path).encode()
    except UnicodeEncodeError as error:
        raise BuildError("ONNX Runtime takes paths in UTF-8 only; choose another folder") from error


def _crc32(file: Path) -> int:
    """Return the CRC-32 of a regular file. Raises OSError if it cannot be read."""
    checksum = 0
    with os.fdopen(open_regular(file), "rb", buffering=0) as content:
        for block in blocks(content):
            checksum = zlib.crc32(block, checksum)
    return checksum


def _crc32_of(content: Mapping[str, Any]) -> int:
    return zlib.crc32(json.dumps(content, sort_keys=True).encode())


def _remove(path: Path) -> None:
    """Remove a folder or a file, if there is one."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _reason(error: Exception) -> str:
    return os_reason(error) if isinstance(error, OSError) else first_line(error)
