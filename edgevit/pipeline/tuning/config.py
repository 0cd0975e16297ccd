"""TuneConfig: the options of a search, and the name of the folder of those with the same results."""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from edgevit.errors import UsageError
from edgevit.formats import Int8Range
from edgevit.models.description import ModelDescription
from edgevit.pipeline.config import DEFAULT_MAX_DROP, Calibration, require_max_drop, widest_int8_range
from edgevit.runtimes.base import BuildOptions

DEFAULT_LIMIT_S = 600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class TuneConfig:
    """The options of a search. Raises UsageError for values that make no sense."""

    formats: tuple[str, ...] = ()  # empty: all that are installed
    threads: tuple[int, ...] = ()  # to try; empty: all cores, and half of them
    limit_s: float = DEFAULT_LIMIT_S  # of the whole search, builds and checks included
    calib: Calibration | None = None  # without it, int8 is not tried
    eval: Path | None = None
    max_drop: float | None = None
    int8_range: Int8Range | None = None  # None: see `widest_int8_range`
    images: Path | None = None
    strict: bool = False
    out: Path = Path()
    throughput: bool = False  # whether images per second under full load count, not the latency
    fresh: bool = False  # whether an earlier, unfinished search is discarded
    start_s: float = field(default_factory=time.monotonic)  # of `time.monotonic`, from which the limit counts

    def __post_init__(self) -> None:
        if not 0 < self.limit_s < math.inf:
            raise UsageError(f"--time must be a time above 0, such as 10m; got {self.limit_s:g} s")
        if self.max_drop is not None and self.eval is None and self.calib is None:
            raise UsageError("--max-drop needs --eval DIR or --calib DIR: nothing can lose accuracy otherwise")
        require_max_drop(self.max_drop)
        for count in self.threads:
            BuildOptions(threads=count)  # raises UsageError for an impossible number

    @property
    def allowed_drop(self) -> float | None:
        return DEFAULT_MAX_DROP if self.max_drop is None and self.eval is not None else self.max_drop

    @property
    def weight_range(self) -> Int8Range:
        """The range of int8 weights. An engine tuned for this machine need not be correct on another one."""
        return self.int8_range or widest_int8_range()


def search_key(key: str, model: ModelDescription, config: TuneConfig) -> str:
    """Return the name of the search's folder: a hash of what decides the bundles that are built, or refused.

    They hold the preprocessing, the class names and the origin of the model, which `key` does not cover.
    """
    described = (model.name, model.preprocessing, model.preprocessing_source, model.classes, model.origin)
    folders = [_fingerprint(data) for data in (config.calib, config.eval, config.images)]
    content = [key, repr(described), folders, config.max_drop, config.weight_range, config.strict]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:32]


def _fingerprint(data: Calibration | None) -> list[str]:
    """Return what changes if the files of a folder change, images and labels, or the hashes of arrays."""
    if data is None:
        return []
    if isinstance(data, Mapping):
        return [f"{name} {hashlib.sha256(array.tobytes()).hexdigest()}" for name, array in sorted(data.items())]
    if not data.is_dir():
        return [str(data)]
    files = sorted(path for path in data.rglob("*") if path.is_file() and not path.name.startswith("."))
    return [f"{path} {path.stat().st_size} {path.stat().st_mtime_ns}" for path in files]
