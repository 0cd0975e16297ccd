"""TuningReport: the engines that were measured and checked, the Pareto front and the recommendation."""

from __future__ import annotations

import math
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import edgevit
from edgevit.arrays import finite_or_none
from edgevit.formats import Int8Range
from edgevit.latency.compare import latency_json, side_by_side
from edgevit.latency.report import LatencyReport
from edgevit.latency.statistics import Ratio, bounds
from edgevit.metrics import CONFIDENCE, Drop
from edgevit.pipeline.tuning.device_cache import Choice
from edgevit.pipeline.tuning.examiner import Verification
from edgevit.pipeline.tuning.racing import Race
from edgevit.pipeline.tuning.space import EQUAL_TIME, Configuration
from edgevit.pipeline.tuning.workspace import Refusal
from edgevit.words import counted

if TYPE_CHECKING:
    from edgevit.bundles.bundle import Bundle

SCHEMA = 1  # version of tuning.json and of --json
_EQUAL = 0.02  # fraction within which the times, the memory or the sizes of two engines are equal on the Pareto front
_EXACT_DB = 80.0  # SNR from which on outputs differ by float32 rounding only


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One engine of the final measurement."""

    configuration: Configuration
    latency: LatencyReport
    ratio: Ratio | None  # of its time and that of the reference; None for the reference
    verification: Verification | None  # None: not checked, for lack of time
    size_bytes: int

    @property
    def name(self) -> str:
        return self.configuration.name

    @property
    def exactness(self) -> int:
        """The place of the precision among all: 0 for the highest."""
        return self.configuration.variant.exactness

    @property
    def p50_ms(self) -> float:
        """The median time of a run: of one inference, or under full load of many."""
        return self.latency.p50_ms

    @property
    def ms_per_image(self) -> float:
        return self.latency.ms_per_image

    @property
    def images_per_s(self) -> float:
        return 1e3 / self.ms_per_image

    @property
    def under_load(self) -> bool:
        """Whether several inferences were in flight, so there is no latency."""
        return self.configuration.streams is not None

    @property
    def speed_text(self) -> str:
        """The latency, or the rate under full load, in words."""
        if not self.under_load:
            return f"{self.p50_ms:.2f} ms"
        return f"{self.images_per_s:.1f} images/s"

    @property
    def passed(self) -> bool:
        return self.verification is not None and not self.verification.failure

    @property
    def accuracy(self) -> float:
        """Top-1, mAP or mIoU if it was measured, else the SNR in dB; engines that differ by rounding are equal."""
        found = self.verification
        if found is None:
            return -math.inf
        if found.evaluation is not None:
            return found.evaluation.accuracy
        return min(_EXACT_DB, found.snr_db if found.snr_db is not None else -math.inf)

    @property
    def accuracy_text(self) -> str:
        """The accuracy in words: "top-1 91.2 % on 500 images" or "SNR 121 dB"."""
        found = self.verification
        if found is None:
            return "not checked"
        if found.evaluation is not None:
            evaluation = found.evaluation
            return f"{evaluation.metric} {100 * evaluation.accuracy:.1f} % on {counted(evaluation.images, 'image')}"
        return "failed" if found.snr_db is None else f"SNR {found.snr_db:.0f} dB"

    def to_json(self) -> dict[str, Any]:
        found = self.verification
        evaluation = None if found is None else found.evaluation
        drop = None if found is None else found.drop
        snr_db = None if found is None else finite_or_none(found.snr_db)
        return {
            **self.configuration.to_json(),
            "name": self.name,
            "p50_ms": None if self.under_load else self.p50_ms,
            "images_per_s": self.images_per_s,
            "ratio": None if self.ratio is None else self.ratio.value,
            "ratio_interval": None if self.ratio is None else bounds(self.ratio.interval),
            "peak_memory_mb": self.latency.peak_memory_mb,
            "size_bytes": self.size_bytes,
            "passed": None if found is None else not found.failure,
            "failure": None if found is None else found.failure,
            "snr_db": snr_db,
            "metric": None if evaluation is None else evaluation.metric,
            "accuracy": None if evaluation is None else evaluation.accuracy,
            "images": None if evaluation is None else evaluation.images,
            "drop_points": None if drop is None else drop.points,
            "drop_points_interval": None if drop is None else [drop.interval.low, drop.interval.high],
        }


def pareto_front(rows: Sequence[Row]) -> tuple[Row, ...]:
    """Return the engines that no other one beats: in time, accuracy, memory and size at once.

    Only engines that passed their checks take part. Times, memory and sizes within 2 % of one another are equal. The
    memory counts if it was measured of each.
    """
    passed, memory = [row for row in rows if row.passed], compares_memory(rows)
    return tuple(
        row for row in passed if not any(_dominates(each, row, memory=memory) for each in passed if each is not row)
    )


def compares_memory(rows: Sequence[Row]) -> bool:
    """Whether the peak memory of all engines that passed was measured, so that the Pareto front regards it."""
    return all(row.latency.peak_memory_mb is not None for row in rows if row.passed)


def _dominates(one: Row, other: Row, *, memory: bool) -> bool:
    """Whether `one` is at least as good in everything, and better in something; in memory too if that counts."""
    slack = 1 + _EQUAL
    costs = [(one.ms_per_image, other.ms_per_image), (one.size_bytes, other.size_bytes)]
    if memory:
        costs.append((one.latency.peak_memory_mb or 0.0, other.latency.peak_memory_mb or 0.0))
    if one.accuracy < other.accuracy or any(mine > slack * theirs for mine, theirs in costs):
        return False
    return one.accuracy > other.accuracy or any(slack * mine < theirs for mine, theirs in costs)


def recommended(rows: Sequence[Row]) -> Row | None:
    """Return the fastest engine that passed; of several that are equally fast, the most exact and the plainest.

    A lower precision has to be shown to be faster than a higher one.
    """
    passed = sorted((row for row in rows if row.passed), key=lambda row: row.ms_per_image)
    if not passed:
        return None
    ratios = [compared.ratio for compared in side_by_side([row.latency for row in passed])]
    tied = [
        row
        for row, ratio in zip(passed, ratios, strict=True)
        if ratio is None
        or (ratio.verdict == "cannot tell" and (ratio.value <= 1 + EQUAL_TIME or row.exactness < passed[0].exactness))
    ]
    return min(tied, key=_plainness)


def decides(row: Row, rows: Sequence[Row]) -> bool:
    """Whether the recommendation among `rows` depends on the check of `row`, which was not checked yet.

    It does until an engine passes. After that, it does if `row` has a higher precision than the engine that would be
    recommended, unless the fastest that passed is shown to be faster.
    """
    chosen = recommended(rows)
    if chosen is None:
        return True
    if row.exactness >= chosen.exactness:
        return False
    fastest = min((each for each in rows if each.passed), key=lambda each: each.ms_per_image)
    _, compared = side_by_side([fastest.latency, row.latency])
    return compared.ratio is None or compared.ratio.verdict != "slower"


def _plainness(row: Row) -> tuple[int, int, float, float]:
    configuration = row.configuration
    changes = len(configuration.session.chosen) + (not configuration.is_default)
    memory_mb = row.latency.peak_memory_mb or math.inf
    return row.exactness, changes, memory_mb, row.ms_per_image


@dataclass(frozen=True, slots=True, kw_only=True)
class TuningReport:
    """The result of `edgevit tune`."""

    model: str
    rows: tuple[Row, ...]  # the reference first, then by time
    winner: Row
    path: Path  # the recommended bundle
    races: tuple[tuple[str, Race], ...]
    refused: tuple[Refusal, ...]
    not_tried: tuple[str, ...]
    not_installed: dict[str, str]
    notes: tuple[str, ...]
    elapsed_s: float
    limit_s: float
    complete: bool  # whether everything was tried
    cached: bool  # whether --fmt auto finds it
    int8_range: Int8Range = "safe"  # of the weights of the int8 engines
    torch_options: str | None = None  # that name the PyTorch model for --against torch; None: none does

    @property
    def bundle(self) -> Bundle:
        """The recommended bundle."""
        from edgevit.bundles.bundle import Bundle

        return Bundle.open(self.path)

    @property
    def reference(self) -> Row:
        """The engine that an export without tuning gives: the fastest in fp32 with all settings at their defaults."""
        return self.rows[0]

    @property
    def sentence(self) -> str:
        """The recommendation and its reason in one line."""
        winner, reference = self.winner, self.reference
        gain = _gain(winner, reference, measured=len(self.rows))
        text = f"recommended: {winner.name}: {winner.speed_text}, {gain}, {winner.accuracy_text}"
        drop = winner.verification.drop if winner.verification is not None else None
        if drop is not None:
            text += f" ({_difference(drop)})"
        fastest = min((row for row in self.rows if row.passed), key=lambda row: row.ms_per_image)
        if fastest is not winner:
            text += f"; not told apart from {fastest.name} ({fastest.speed_text}), and more exact or plainer"
        return text

    @property
    def under_load(self) -> bool:
        """Whether images per second under full load were compared, not the latency."""
        return self.winner.under_load

    @property
    def next_command(self) -> str:
        words = ["edgevit", "latency", str(self.path)]
        if self.under_load:
            words += ["--throughput"]
        elif self.torch_options is not None:
            words += ["--against", "torch", *shlex.split(self.torch_options)]
        return shlex.join(words)

    def choices(self) -> list[Choice]:
        """The engines that passed, the recommended one first, for `--fmt auto`."""
        others = sorted(
            (row for row in self.rows if row.passed and row is not self.winner), key=lambda row: row.ms_per_image
        )
        return [
            Choice(
                configuration=row.configuration,
                p50_ms=row.p50_ms,
                accuracy=row.accuracy_text,
                int8_range=self.int8_range if row.configuration.variant.precision == "int8" else "safe",
            )
            for row in (self.winner, *others)
        ]

    def to_json(self) -> dict[str, Any]:
        """Return the report as tuning.json has it."""
        front = {row.name for row in pareto_front(self.rows)}
        return {
            "schema": SCHEMA,
            "edgevit_version": edgevit.__version__,
            "model": self.model,
            "throughput": self.under_load,
            "recommended": self.winner.name,
            "sentence": self.sentence,
            "engines": [{**row.to_json(), "pareto": row.name in front} for row in self.rows],
            "races": [{"title": title, "standings": outcome.to_json()} for title, outcome in self.races],
            "refused": [{"name": each.name, "reason": each.reason} for each in self.refused],
            "not_tried": list(self.not_tried),
            "not_installed": self.not_installed,
            "notes": list(self.notes),
            "elapsed_s": self.elapsed_s,
            "limit_s": self.limit_s,
            "complete": self.complete,
        }

    def result_json(self) -> dict[str, Any]:
        """Return the content of --json: tuning.json, the path of the bundle and all samples."""
        latency = latency_json([row.latency for row in self.rows])
        return {**self.to_json(), "path": str(self.path), "latency": latency, "next_command": self.next_command}


def _difference(drop: Drop) -> str:
    """Return the loss against the original in words, with the 95 % interval of the points lost."""
    interval = f"loss of {drop.interval.low:.2f} to {drop.interval.high:.2f} points at {100 * CONFIDENCE:g} %"
    return f"{drop.phrase('the original')}; {interval}"


def _gain(winner: Row, reference: Row, *, measured: int) -> str:
    """Return how much faster the winner is than the reference, among `measured` engines."""
    if winner is reference:
        return "the only engine that was measured" if measured == 1 else "no other engine was shown to be faster"
    name, ratio = reference.configuration.variant.name, winner.ratio
    default = "at default settings" if not reference.under_load else "one inference at a time"
    if ratio is None or ratio.verdict == "cannot tell":
        return f"not told apart from {name} {default}"
    times = 1 / ratio.value if ratio.verdict == "faster" else ratio.value
    return f"{times:.2f}x {ratio.verdict} than {name} {default}"
