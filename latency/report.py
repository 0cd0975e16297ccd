"""What a measurement was to do and what it found: evidence is stored, every figure is derived from it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgevit.errors import UsageError
from edgevit.latency import statistics
from edgevit.latency.clock import Probe
from edgevit.latency.environment import Environment, MachineState, others_share, throttled
from edgevit.latency.statistics import Percentile
from edgevit.types import Interval

SCHEMA = 1
_JSON_NAMES = {"measured_with": "beside"}  # fields whose name in JSON is another
_DRIFT = 0.1  # a report remarks on a tenth
BUSY = 0.1  # the share of the cores that other processes may take before a measurement tells little


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasurePlan:
    """How to measure. Contradictions are refused here.

    Warm-up: windows of at least `warmup_window_runs` runs and `warmup_window_s` seconds, until the medians of the
    last three lie within `warmup_tolerance` of the middle one; after `warmup_max_s` seconds it ends without that.

    Rounds: each candidate takes one turn a round, in an order drawn from `seed`. A turn is at least one run and
    `settle_s` seconds that are not recorded, in which the caches and the spinning threads of whoever ran before give
    way, then the runs that are: as many as fill `turn_s` seconds at the warm-up's pace, and always as many, so that
    a round in which the machine was slow weighs no less than another. Rounds end when every candidate has `min_runs`
    samples and `min_duration_s` seconds of its own, or when they have taken `max_duration_s` seconds for each.
    """

    min_runs: int = 100
    min_duration_s: float = 3.0
    max_duration_s: float = 120.0
    warmup_window_runs: int = 5
    warmup_window_s: float = 0.1
    warmup_tolerance: float = 0.05
    warmup_max_s: float = 20.0
    settle_s: float = 0.02
    turn_s: float = 0.05
    seed: int = 0

    def __post_init__(self) -> None:
        if self.min_runs < 1 or self.warmup_window_runs < 1:
            raise UsageError("a measurement and a warm-up window hold at least one run")
        if not 0 <= self.min_duration_s <= self.max_duration_s < math.inf:
            raise UsageError(
                f"durations need 0 <= min_duration_s <= max_duration_s, both finite, not {self.min_duration_s:g} and "
                f"{self.max_duration_s:g}"
            )
        times = (self.warmup_window_s, self.warmup_tolerance, self.warmup_max_s, self.settle_s, self.turn_s)
        if not all(0 <= time < math.inf for time in times):
            raise UsageError("times and tolerances of a measurement are finite and not negative")


@dataclass(frozen=True, slots=True, kw_only=True)
class LatencyReport:
    """One candidate's measurement: host to host and synchronous, from arrays given to arrays returned.

    Raises UsageError where the parts contradict each other. Megabytes are 2**20 bytes.
    """

    name: str
    run_id: str  # reports of one interleaved run share it
    measured_with: tuple[str, ...]  # the other candidates of the run, in the order given
    samples_ms: tuple[float, ...]  # every one, in the order taken
    starts_ns: tuple[int, ...]  # from the start of the first round
    rounds: tuple[int, ...]  # the round that each sample belongs to
    batch: int
    input_shapes: Mapping[str, tuple[int, ...]]
    threads: int | None  # None: the runtime's own choice
    load_s: float | None
    first_inference_ms: float | None
    memory_rise_mb: float | None  # of the process's resident memory, over the load and the first inference
    peak_memory_mb: float | None  # the most that a process of its own held, which loaded it and ran it
    steady: bool  # whether the warm-up settled
    warmup_runs: int
    probes: tuple[Probe, ...]  # the machine's speed before, between and after the rounds
    clock_resolution_ns: int
    plan: MeasurePlan
    environment: Environment  # before
    after: MachineState
    details: Mapping[str, str] = field(default_factory=dict)  # what the caller knows: artefact's hash, precision, …

    def __post_init__(self) -> None:
        if not self.samples_ms or not len(self.samples_ms) == len(self.starts_ns) == len(self.rounds):
            raise UsageError(f"the report of {self.name} does not hold one start and one round for each sample")
        if not all(0 < sample < float("inf") for sample in self.samples_ms):
            raise UsageError(f"the report of {self.name} holds samples that are no times")
        if self.batch < 1:
            raise UsageError(f"a batch holds at least one image, not {self.batch}")

    @property
    def runs(self) -> int:
        return len(self.samples_ms)

    @property
    def p50_ms(self) -> float:
        """The median, whatever the number of runs; `p50_interval_ms` says how sure it is."""
        return float(np.median(self.samples_ms))

    @property
    def p90_ms(self) -> float | None:
        """None below 64 runs; `percentile(90)` says so."""
        return self.percentile(90).value

    @property
    def p99_ms(self) -> float | None:
        """None below 662 runs; `percentile(99)` says so."""
        return self.percentile(99).value

    @property
    def mean_ms(self) -> float:
        return float(np.mean(self.samples_ms))

    @property
    def std_ms(self) -> float:
        return statistics.standard_deviation(self.samples_ms)

    @property
    def cv(self) -> float:
        """The coefficient of variation, standard deviation over mean."""
        return statistics.coefficient_of_variation(self.samples_ms)

    @property
    def throughput_per_s(self) -> float:
        """Images a second, as measured: all images over all time, not one over the median."""
        return 1e3 * self.batch * self.runs / float(np.sum(self.samples_ms))

    @property
    def p50_interval_ms(self) -> Interval | None:
        """Where the median lies with 99 % confidence, from the medians of the rounds; None below eight rounds."""
        return statistics.median_interval(self.round_ms)

    @property
    def round_ms(self) -> NDArray[np.float64]:
        """The median of each round, (rounds,): what pairs up between candidates."""
        first_of_round = np.flatnonzero(np.diff(self.rounds)) + 1
        return np.array([np.median(turn) for turn in np.split(np.array(self.samples_ms), first_of_round)])

    @property
    def probe_ms(self) -> float | None:
        """The machine's speed over the whole measurement: the median of the probes."""
        return float(np.median([probe.ms for probe in self.probes])) if self.probes else None

    @property
    def drift(self) -> float:
        """The median of the second half of the rounds over that of the first: 1.2 is 20 % slower towards the end."""
        medians = self.round_ms
        half = len(medians) // 2
        return float(np.median(medians[-half:]) / np.median(medians[:half])) if half else 1.0

    @property
    def throttled(self) -> bool | None:
        """Whether the machine slowed itself down meanwhile; None where it shows nothing to tell it by."""
        return throttled(self.environment.state, self.after)

    @property
    def others_share(self) -> float | None:
        """The share of the cores that other processes took meanwhile, 0 to 1; None where the system does not say."""
        return others_share(self.environment.state, self.after)

    @property
    def noise_reason(self) -> str:
        """Why no verdict can rest on this report; empty where one can.

        Taking turns cancels what slows all alike. Other processes do not: an inference that is shorter than the
        scheduler's slice escapes them and a longer one does not, and threads that wait for each other wait for them.
        """
        share = self.others_share or 0.0
        return f"other processes took {100 * share:.0f} % of the cores; measure when they rest" if share > BUSY else ""

    @property
    def warnings(self) -> tuple[str, ...]:
        """What a reader must know before using the figures; empty where there is nothing."""
        found = {
            f"the warm-up did not settle within {self.plan.warmup_max_s:g} s": not self.steady,
            f"stopped after {sum(self.samples_ms) / 1e3:.1f} s of {self.plan.min_duration_s:g} s": (
                sum(self.samples_ms) < 1e3 * self.plan.min_duration_s
            ),
            f"the second half took {self.drift:.2f} times the first": abs(self.drift - 1) > _DRIFT,
            f"the machine's own speed varied by {100 * self._speed_range():.0f} %": self._speed_range() > _DRIFT,
            "the machine throttled": self.throttled is True,
            self.noise_reason: bool(self.noise_reason),
        }
        return tuple(warning for warning, holds in found.items() if holds)

    def percentile(self, percent: float) -> Percentile:
        """A percentile in ms, or the reason why these runs do not tell it."""
        return statistics.percentile(self.samples_ms, percent)

    def to_json(self) -> dict[str, Any]:
        """All evidence, for `json.dump`; `from_json` gives an equal report."""
        fields = {_JSON_NAMES.get(name, name): value for name, value in asdict(self).items()}
        return {"schema": SCHEMA, **fields}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> LatencyReport:
        """The report that `to_json` wrote. Raises UsageError where it is not one."""
        schema = data.get("schema") if isinstance(data, Mapping) else None
        if schema != SCHEMA:
            raise UsageError(f"not a latency report of schema {SCHEMA} (found {schema}); measure again")
        try:
            return cls(**_converted({name: value for name, value in data.items() if name != "schema"}))
        except (KeyError, TypeError, AttributeError) as error:
            raise UsageError(f"the latency report is incomplete or changed ({error}); measure again") from error

    def _speed_range(self) -> float:
        """How far the slower probes (90th percentile) lie above the faster ones (10th), as a share."""
        if not self.probes:
            return 0.0
        fast, slow = np.percentile([probe.ms for probe in self.probes], [10, 90])
        return float(slow / fast) - 1


def _converted(data: Mapping[str, Any]) -> dict[str, Any]:
    """JSON's lists and objects as the types of the fields."""
    return {
        **{name: value for name, value in data.items() if name != _JSON_NAMES["measured_with"]},
        "measured_with": tuple(data[_JSON_NAMES["measured_with"]]),
        **{name: tuple(data[name]) for name in ("samples_ms", "starts_ns", "rounds")},
        "input_shapes": {name: tuple(shape) for name, shape in data["input_shapes"].items()},
        "probes": tuple(Probe(**probe) for probe in data["probes"]),
        "plan": MeasurePlan(**data["plan"]),
        "environment": Environment.from_json(data["environment"]),
        "after": MachineState.from_json(data["after"]),
    }
