"""Engines that are kept from run to run: built once, on a busy machine too, and measured when it is idle."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from edgevit.cpu import cpu_flags
from edgevit.latency.environment import Environment
from edgevit.types import Array

_ROOT = Path(__file__).parents[3]
_PEER_SOURCES = ("edgevit/models", "tests/tools/bench")
_OWN_SOURCES = ("edgevit", "export", "runtimes")


@dataclass(frozen=True, slots=True)
class Folders:
    """The folders of one model: its peers, and edgevit's engines."""

    peers: Path
    own: Path

    @classmethod
    def below(cls, root: Path, model: str, weights: Path | None = None, *, calibration: Array | None = None) -> Folders:
        """Return folders named after all that the engines are made of, so that none is used that is out of date."""
        packages = sorted({**Environment.capture().packages, "nncf": _version("nncf")}.items())
        given = (weights.read_bytes() if weights else b"", b"" if calibration is None else calibration.tobytes())
        peers = _hash([repr(packages).encode(), *_contents(_PEER_SOURCES), *given])
        own = _hash([peers.encode(), _flags(), *_contents(_OWN_SOURCES)])
        return cls(peers=root / f"{model}-peers-{peers}", own=root / f"{model}-own-{own}")


def compiled_by_inductor(root: Path) -> Path:
    """Return Inductor's cache folder for this instruction set; kernels cached for another one return NaN."""
    return root / f"inductor-{_hash([_flags()])}"


def kept(folder: Path, name: str, make: Callable[[Path], object]) -> Path:
    """Return the subfolder `name`; if there is none, `make` fills a new one, which appears whole or not at all."""
    target = folder / name
    if not target.is_dir():
        scratch = folder / f".{name}-{os.getpid()}"
        scratch.mkdir(parents=True)
        try:
            make(scratch)
            scratch.rename(target)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
    return target


def _flags() -> bytes:
    """The instructions of this processor, for which edgevit chooses its graphs and PyTorch compiles."""
    return " ".join(sorted(cpu_flags())).encode()


def _contents(sources: Iterable[str]) -> Iterable[bytes]:
    for source in sources:
        for path in sorted((_ROOT / source).rglob("*.py")):
            yield str(path.relative_to(_ROOT)).encode()
            yield path.read_bytes()


def _hash(parts: Iterable[bytes]) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(hashlib.sha256(part).digest())
    return digest.hexdigest()[:12]


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""
