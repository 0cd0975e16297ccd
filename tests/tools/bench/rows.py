"""Results of the benchmark: one row for a model, a number of threads and a processor, appended as they come."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

from edgevit.cpu import int8_instructions
from edgevit.files import write_atomically
from edgevit.latency.environment import Environment

RESULTS = Path(__file__).with_name("results.jsonl")
_ROOT = Path(__file__).parents[3]


class Speedup(NamedTuple):
    """The peer's time divided by ours, with its 99 % interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """The measurement of one candidate."""

    p50_ms: float
    snr_db: float  # of its outputs against PyTorch's
    bound_ms: float | None = None  # of its multiply-adds at the runtime's best rate of a matrix product


class RowKey(NamedTuple):
    model: str
    threads: int
    processor: str


@dataclass(frozen=True, slots=True, kw_only=True)
class InterleavedRun:
    """An interleaved run of the candidates of a model, a line in a file of results."""

    model: str
    threads: int
    processor: str
    missing: Mapping[str, str]  # candidates that could not be measured, with the reason
    weights: str
    rounds: int
    busy_others: float  # fraction of the cores that other processes used meanwhile
    packages: Mapping[str, str]
    day: str
    revision: str = ""  # commit of edgevit that was measured; empty in rows that are older than this field

    @property
    def key(self) -> RowKey:
        return RowKey(self.model, self.threads, self.processor)

    def to_line(self) -> str:
        return json.dumps(asdict(self), allow_nan=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Row(InterleavedRun):
    """The figures of all candidates, and the speed of each engine of ours over its peers."""

    figures: Mapping[str, Figures]  # by candidate
    speedups: Mapping[str, Mapping[str, Speedup]]  # of each engine of ours over each peer
    million_parameters: float

    @classmethod
    def of_line(cls, line: str) -> Row:
        fields: dict[str, Any] = json.loads(line)
        figures = {name: Figures(**each) for name, each in fields.pop("figures").items()}
        speedups = {
            own: {peer: Speedup(*ratio) for peer, ratio in each.items()} for own, each in fields.pop("speedups").items()
        }
        return cls(**fields, figures=figures, speedups=speedups)


def this_processor() -> str:
    """The name of this processor, and the instructions that decide its int8 speed."""
    environment = Environment.capture()
    return f"{environment.cpu or environment.architecture} ({int8_instructions(environment.isa)})"


def this_revision() -> str:
    """Return the commit of this checkout, `-dirty` if files were changed since; empty without git."""
    command = ["git", "-C", str(_ROOT), "describe", "--always", "--dirty", "--exclude", "*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""


def read(path: Path) -> dict[RowKey, Row]:
    """Return the rows of a file, the last one of each key; none if there is no file yet."""
    return {row.key: row for row in map(Row.of_line, lines(path))}


def lines(path: Path) -> list[str]:
    """Return the lines of a file of results; none if there is no file yet."""
    return path.read_text("utf-8").splitlines() if path.is_file() else []


def append(path: Path, row: InterleavedRun) -> None:
    """Add a row to the file, which stays whole if the process is killed meanwhile."""
    before = path.read_text("utf-8") if path.is_file() else ""
    write_atomically(path, f"{before}{row.to_line()}\n")
