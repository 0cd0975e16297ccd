"""Races: candidates are measured in interleaved rounds, and leave once they are shown to be slower than the best.

A candidate is dropped by the 99 % interval of its time over that of the fastest, paired by round. Those that remain are
measured longer (successive halving; Karnin, Koren and Somekh 2013, with an interval instead of a fixed half).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, TypeAlias

from edgevit.latency.compare import side_by_side
from edgevit.latency.plan import MeasurePlan
from edgevit.latency.report import LatencyReport
from edgevit.latency.statistics import bounds
from edgevit.pipeline.tuning.deadline import OutOfTimeError
from edgevit.pipeline.tuning.space import MAX_MS
from edgevit.types import Interval
from edgevit.untrusted import JsonObject, boolean, integer, list_of, nullable, number, text

# A candidate does not race if its first inference takes over 1 s and, per image, over 10 times as long as the fastest.
# Shorter ones cost little, and a first inference includes memory setup.
_SKIP_RATIO, _SKIP_MS = 10.0, 1000.0

# Measures candidates by name, in one interleaved run.
Measure: TypeAlias = Callable[[Sequence[str], MeasurePlan], Sequence[LatencyReport]]

# Short, to drop what is far slower; then long enough to tell a few percent apart.
RUNGS: tuple[MeasurePlan, ...] = tuple(
    MeasurePlan(
        min_runs=rounds,
        min_rounds=rounds,
        min_duration_s=duration_s,
        max_duration_s=10 * duration_s,
        warmup_window_s=0.05,
        warmup_max_s=2.0,
        settle_s=0.01,
        turn_s=duration_s / rounds,
        idle_s=0.0,
        clock_settle_s=0.5,
    )
    for rounds, duration_s in ((10, 0.2), (24, 0.8))
)


# Longer, for differences of a percent.
COMPARISON: MeasurePlan = replace(RUNGS[-1], min_runs=48, min_rounds=48, min_duration_s=1.6, max_duration_s=16.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """One candidate of a race, by its last measurement."""

    name: str
    p50_ms: float  # of a timed run
    images: int  # of a timed run
    ratio: float  # of its time for an image and that of the first
    interval: Interval | None  # of the ratio; None with too few rounds, or for the first
    runs: int
    dropped: bool  # whether it is shown to be slower than the first

    @property
    def is_faster(self) -> bool:
        """Whether it is shown to be faster than the first."""
        return self.interval is not None and self.interval.high < 1

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "interval": bounds(self.interval)}

    @classmethod
    def parse(cls, value: Any, place: str) -> Standing:
        fields = JsonObject.of(value, place)
        positive = number(0, MAX_MS)
        interval = fields.read("interval", nullable(list_of(positive, least=2, most=2)))
        return cls(
            name=fields.read("name", text()),
            p50_ms=fields.read("p50_ms", positive),
            images=fields.read("images", integer(1)),
            ratio=fields.read("ratio", positive),
            interval=None if interval is None else Interval(*interval),
            runs=fields.read("runs", integer(1)),
            dropped=fields.read("dropped", boolean),
        )


@dataclass(frozen=True, slots=True)
class Race:
    """The outcome of a race: the standings, the fastest first; or the incumbent, if others were compared with it."""

    standings: tuple[Standing, ...]

    @property
    def fastest(self) -> str:
        return self.standings[0].name

    @property
    def kept(self) -> tuple[str, ...]:
        """The fastest, and those that are not shown to be slower."""
        return tuple(each.name for each in self.standings if not each.dropped)

    def winner(self, incumbent: str) -> str:
        """Return the fastest if `incumbent` is shown to be slower, else `incumbent`."""
        return incumbent if incumbent in self.kept else self.fastest

    def standing(self, name: str) -> Standing:
        return next(each for each in self.standings if each.name == name)

    def to_json(self) -> list[dict[str, Any]]:
        return [each.to_json() for each in self.standings]

    @classmethod
    def parse(cls, value: Any, place: str) -> Race:
        return cls(list_of(Standing.parse, least=1, most=1000)(value, place))


def judge(reports: Sequence[LatencyReport]) -> Race:
    """Return the standings of one interleaved run."""
    return Race(standings(sorted(reports, key=lambda report: report.ms_per_image)))


def standings(reports: Sequence[LatencyReport]) -> tuple[Standing, ...]:
    """Return the standings of one interleaved run against its first report, in the order given."""
    return tuple(
        Standing(
            name=row.report.name,
            p50_ms=row.report.p50_ms,
            images=row.report.batch,
            ratio=1.0 if row.ratio is None else row.ratio.value,
            interval=None if row.ratio is None else row.ratio.interval,
            runs=row.report.runs,
            dropped=row.ratio is not None and row.ratio.verdict == "slower",
        )
        for row in side_by_side(reports)
    )


def too_slow(first_ms: Mapping[str, float], images: Mapping[str, int]) -> tuple[Standing, ...]:
    """Return the standings of candidates that one inference shows to be far slower than the fastest of them.

    `first_ms` is the time of the first inference of each, and `images` its batch. A race would run each of them four
    times more at least: a reference kernel that takes 17 s instead of 10 ms would take the time of everything else.
    """
    per_image = {name: time_ms / images[name] for name, time_ms in first_ms.items()}
    best = min(per_image.values(), default=0.0)
    return tuple(
        Standing(
            name=name,
            p50_ms=first_ms[name],
            images=images[name],
            ratio=time_ms / best,
            interval=None,
            runs=1,
            dropped=True,
        )
        for name, time_ms in sorted(per_image.items(), key=lambda item: item[1])
        if first_ms[name] > _SKIP_MS and time_ms > _SKIP_RATIO * best
    )


def race(
    names: Sequence[str],
    measure: Measure,
    *,
    rungs: Sequence[MeasurePlan] = RUNGS,
    remaining_s: Callable[[], float],
) -> Race:
    """Measure candidates, and those that are not dropped again, longer.

    `remaining_s` bounds each rung; later rungs are skipped if no time is left.
    """
    found: dict[str, Standing] = {}
    current = tuple(names)
    for index, plan in enumerate(rungs):
        left_s = remaining_s()
        if found and (len(current) == 1 or left_s <= 0):
            break
        # Half of the rest at most: what comes later needs time as well.
        bounded = replace(plan, max_total_s=max(0.1, left_s / 2 if index + 1 < len(rungs) else left_s))
        try:
            outcome = judge(measure(current, bounded))
        except OutOfTimeError:
            if found:
                break  # the earlier rung stays
            raise
        found |= {each.name: each for each in outcome.standings}
        current = outcome.kept
    dropped = sorted((each for each in found.values() if each.name not in current), key=lambda each: each.ratio)
    return Race((*(found[name] for name in current), *dropped))
