"""Rows of the comparison of a tuned engine with the peers: one for a model, a number of threads and a processor."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from tests.tools.bench.rows import InterleavedRun, RowKey, Speedup, lines

RESULTS = Path(__file__).with_name("tuned.jsonl")
MAX_LOSS_POINTS = 1  # of top-1; an engine that loses more does not count


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """The measurement of one engine. `slowdown` is its time over the tuned engine's."""

    p50_ms: float
    top1: float
    counts: bool  # whether it loses at most a point
    slowdown: Speedup | None  # None for the tuned engine itself


class Best(NamedTuple):
    """The fastest peer that counts, and its time over the tuned engine's."""

    name: str
    slowdown: Speedup


@dataclass(frozen=True, slots=True, kw_only=True)
class TunedRow(InterleavedRun):
    """The engine that `edgevit tune` recommends, and the peers."""

    engine: str  # the recommended one, with its settings
    limit_s: float  # of the search
    tuned: Entry
    peers: Mapping[str, Entry]  # by candidate
    torch_top1: float
    images: int  # that top-1 was measured on
    calibration_images: int

    @property
    def best_peer(self) -> Best | None:
        """The peer with the least time of those that count; None if none does."""
        counted = (Best(name, each.slowdown) for name, each in self.peers.items() if each.counts and each.slowdown)
        return min(counted, key=lambda best: best.slowdown, default=None)

    @classmethod
    def of_line(cls, line: str) -> TunedRow:
        fields: dict[str, Any] = json.loads(line)
        peers = {name: _entry(each) for name, each in fields.pop("peers").items()}
        return cls(**fields | {"tuned": _entry(fields["tuned"])}, peers=peers)


def counts(correct: int, torch_correct: int, images: int) -> bool:
    """Return whether an engine counts, by the images that it and PyTorch classify correctly."""
    return 100 * (torch_correct - correct) <= MAX_LOSS_POINTS * images


def read(path: Path) -> dict[RowKey, TunedRow]:
    """Return the rows of a file, the last one of each key; none if there is no file yet."""
    return {row.key: row for row in map(TunedRow.of_line, lines(path))}


def _entry(fields: dict[str, Any]) -> Entry:
    slowdown = fields.pop("slowdown")
    return Entry(**fields, slowdown=None if slowdown is None else Speedup(*slowdown))
