"""The folder of one search: engines that are built, races that are run. A killed search goes on from there."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edgevit import errors
from edgevit.bundles.bundle import Bundle
from edgevit.errors import BundleError, EdgevitError, ExportError, ParityError, PrecisionError, UsageError
from edgevit.files import cache_folder, first_line, os_reason, try_lock, write_atomically
from edgevit.pipeline.tuning.racing import Race
from edgevit.pipeline.tuning.space import Variant
from edgevit.untrusted import InvalidError, JsonObject, integer, object_of, one_of, read_json, text

_LOG = logging.getLogger(__name__)
SCHEMA = 4  # of int8 with corrected biases
_LOG_FILE, _LOCK_FILE = "search.json", ".lock"
_MAX_BYTES = 16 << 20
_KEPT_S = 7 * 24 * 3600.0  # an unfinished search is deleted after this time
_ERRORS = {
    name: each for name, each in vars(errors).items() if isinstance(each, type) and issubclass(each, EdgevitError)
}


@dataclass(frozen=True, slots=True)
class Refusal:
    """Something that was tried and does not work, with the reason and the class of the error."""

    name: str
    reason: str
    error: type[EdgevitError]

    @property
    def is_final(self) -> bool:
        """Whether it would fail again: outputs or precision are wrong. A full disk or a killed build may not last."""
        return issubclass(self.error, (ParityError, PrecisionError))

    @classmethod
    def of(cls, name: str, error: EdgevitError) -> Refusal:
        """Keep the first line of an error and its class, or its first base class in errors.py."""
        kind = next(each for each in type(error).__mro__ if each in _ERRORS.values())
        return cls(name, first_line(error), kind)

    def to_json(self) -> dict[str, Any]:
        return {"name": self.name, "reason": self.reason, "error": self.error.__name__}

    @classmethod
    def parse(cls, value: Any, place: str) -> Refusal:
        fields = JsonObject.of(value, place)
        error = _ERRORS[fields.read("error", one_of(*_ERRORS))]
        return cls(fields.read("name", text()), fields.read("reason", text()), error)


@dataclass(slots=True)
class Workspace:
    """The folder of a search, locked by this process."""

    folder: Path
    races: dict[str, Race] = field(default_factory=dict)
    refused: dict[str, Refusal] = field(default_factory=dict)  # variants that are not built again, by name

    def bundle_folder(self, variant: Variant) -> Path:
        """The folder in which the bundle of a variant is created."""
        return self.folder / variant.name

    def built(self, variant: Variant) -> Bundle | None:
        """Return the bundle of a variant if an earlier run has built it; one that was changed since is removed."""
        folder = next(iter(sorted(self.bundle_folder(variant).glob("[!.]*"))), None)
        if folder is None:
            return None
        try:
            return Bundle.open(folder)
        except BundleError:
            shutil.rmtree(folder, ignore_errors=True)
            return None

    def race(self, names: Sequence[str]) -> Race | None:
        """Return the outcome of a race of these candidates in an earlier run."""
        return self.races.get(_key(names))

    def keep_race(self, names: Sequence[str], outcome: Race) -> None:
        self.races[_key(names)] = outcome
        self.save()

    def refuse(self, refusal: Refusal) -> None:
        """Do not build a variant again in this run, and if the refusal is final, not in the next one either."""
        self.refused[refusal.name] = refusal
        self.save()

    def save(self) -> None:
        """Write the log. A search without one only has to measure again."""
        content = {
            "schema": SCHEMA,
            "races": {key: outcome.to_json() for key, outcome in self.races.items()},
            "refused": {name: refusal.to_json() for name, refusal in self.refused.items() if refusal.is_final},
        }
        with contextlib.suppress(OSError):
            write_atomically(self.folder / _LOG_FILE, json.dumps(content, allow_nan=False))

    def read(self) -> None:
        """Read the log of an earlier run; a damaged one is ignored, with a warning."""
        file = self.folder / _LOG_FILE
        try:
            fields = JsonObject.of(read_json(file, limit_bytes=_MAX_BYTES))
            fields.read("schema", integer(SCHEMA, SCHEMA))
            self.races = fields.read("races", object_of(Race.parse))
            self.refused = fields.read("refused", object_of(Refusal.parse))
        except FileNotFoundError:
            return
        except (OSError, InvalidError) as error:
            reason = os_reason(error) if isinstance(error, OSError) else error
            _LOG.warning("edgevit: %s is damaged and is ignored (%s)", file, reason)


@contextmanager
def open_workspace(key: str, *, fresh: bool = False) -> Iterator[Workspace]:
    """Open and lock the folder of a search, with what an earlier run left in it unless `fresh`.

    Raises UsageError if another process holds it, ExportError if it cannot be written.
    """
    parent = cache_folder() / "tuning"
    folder = parent / key
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / _LOCK_FILE).open("w")
    except OSError as error:
        raise _cannot_write(folder, error) from error
    with lock:
        if not try_lock(lock):
            raise UsageError("another edgevit tune of this model is running; wait for its end")
        _remove_old(parent, kept=folder)
        workspace = Workspace(folder)
        if fresh:
            discard(workspace)
        workspace.read()
        yield workspace


@contextmanager
def advise_other_cache(folder: Path) -> Iterator[None]:
    """Change the advice of an error for a bundle that cannot be written into the cache: another --out does not help."""
    try:
        yield
    except ExportError as error:
        cause = error.__cause__
        if not isinstance(cause, OSError) or not str(error).startswith("cannot write"):
            raise
        raise _cannot_write(cause.filename or folder, cause) from cause


def _cannot_write(path: Path | str, error: OSError) -> ExportError:
    advice = "free some space, or set EDGEVIT_CACHE to another folder"
    return ExportError(f"cannot write {path} in the cache of edgevit: {os_reason(error)}; {advice}")


def discard(workspace: Workspace) -> None:
    """Delete what the folder holds; the lock stays until it is closed."""
    for path in workspace.folder.iterdir():
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        elif path.name != _LOCK_FILE:
            path.unlink(missing_ok=True)


def _remove_old(parent: Path, *, kept: Path) -> None:
    for folder in parent.iterdir():
        with contextlib.suppress(OSError):
            if folder != kept and time.time() - folder.stat().st_mtime > _KEPT_S:
                shutil.rmtree(folder, ignore_errors=True)


def _key(names: Sequence[str]) -> str:
    return hashlib.sha256("\n".join(sorted(names)).encode()).hexdigest()[:16]
