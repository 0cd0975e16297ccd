"""LatencyReport: all samples are stored; statistics are derived."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgevit.errors import UsageError
from edgevit.files import first_line
from edgevit.latency import statistics
from edgevit.latency.clock import Probe
from edgevit.latency.environment import (
    Environment,
    EventRise,
    MachineState,
    event_rises,
    others_fraction,
    throttle_causes,
)
from edgevit.latency.plan import MeasurePlan
from edgevit.latency.report_warnings import BUSY_FRACTION, warnings_of
from edgevit.latency.roofline import Roofline
from edgevit.latency.sampling.energy import EnergyEstimate, EnergyRecord
from edgevit.latency.sampling.nvml import GPU_PREFIX, gpu_title
from edgevit.latency.sampling.trace import DeviceTrace
from edgevit.latency.statistics import Percentile
from edgevit.latency.sustained import SustainedRun
from edgevit.latency.throughput import Throughput
from edgevit.runtimes.base import GPU, GPU_UUID
from edgevit.runtimes.layer_profile import LayerProfile
from edgevit.runtimes.parity import ParitySummary
from edgevit.types import Interval
from edgevit.untrusted import shorten

SCHEMA = 1
# The fields of studies, which may fail on their own.
ROOFLINE, LAYERS, THROUGHPUT, SUSTAINED = "roofline", "layers", "throughput", "sustained"
_PARTS: dict[str, type[Roofline | LayerProfile | Throughput | SustainedRun]] = {
    ROOFLINE: Roofline,
    LAYERS: LayerProfile,
    THROUGHPUT: Throughput,
    SUSTAINED: SustainedRun,
}
_JSON_NAMES = {"measured_with": "beside"}  # fields whose name in JSON is another


@dataclass(frozen=True, slots=True, kw_only=True)
class LatencyReport:
    """Every sample of one candidate, and the conditions of the measurement. Megabytes are 2**20 bytes.

    A sample is the time of one synchronous call, from host arrays to host arrays. Raises UsageError if the fields
    contradict each other.
    """

    name: str
    run_id: str  # shared by the reports of one interleaved run
    measured_with: tuple[str, ...]  # the other candidates of the run, in the order given
    samples_ms: tuple[float, ...]  # all of them, in the order of recording
    starts_ns: tuple[int, ...]  # from the start of the first round
    rounds: tuple[int, ...]  # the round of each sample
    batch: int
    input_shapes: Mapping[str, tuple[int, ...]]
    threads: int | None  # None: the runtime chooses
    load_s: float | None
    first_inference_ms: float | None  # None if the engine had run before, as after a parity check
    memory_rise_mb: float | None  # rise of the process's resident memory during load and first inference
    peak_memory_mb: float | None  # peak of a fresh process that loads the engine and runs it once
    steady: bool  # whether the warm-up reached a constant pace
    warmup_runs: int
    probes: tuple[Probe, ...]  # machine speed before, between and after the rounds
    clock_resolution_ns: int
    plan: MeasurePlan
    environment: Environment  # before the measurement
    after: MachineState  # after the measurement
    details: Mapping[str, str] = field(default_factory=dict)  # from the caller: hash of the artifact, precision
    device_memory_mb: float | None = None  # on the GPU, without what CUDA itself takes
    trace: DeviceTrace | None = None  # of the whole run; None if the device has no sensor that this process may read
    clock_steady: bool | None = None  # whether the warm-up reached a constant clock; None if no clock is reported
    alone_ms: tuple[float, ...] = ()  # runs without other candidates, if the clock varied in turns
    energy: EnergyRecord | None = None  # None without an energy counter
    measured_at: str = ""  # end of the measurement, ISO 8601 in UTC; empty in older reports
    compute_ms: tuple[float, ...] = ()  # on the GPU, by events around its graph, of each sample; empty if not measured
    parity: ParitySummary | None = None  # of this very engine with PyTorch; None if it was not compared
    # Why there is no result of a study that was requested, by its field: ROOFLINE, LAYERS, THROUGHPUT or SUSTAINED.
    study_problems: Mapping[str, str] = field(default_factory=dict)
    roofline: Roofline | None = None  # the fields from here on are None unless they were requested
    layers: LayerProfile | None = None
    throughput: Throughput | None = None
    sustained: SustainedRun | None = None

    def __post_init__(self) -> None:
        if not self.samples_ms or not len(self.samples_ms) == len(self.starts_ns) == len(self.rounds):
            raise UsageError(
                f"latency report of {self.name}: samples, starts and rounds must have the same length, at least 1"
            )
        if not all(0 < sample < float("inf") for sample in self.samples_ms):
            raise UsageError(f"latency report of {self.name}: every sample must be a finite time above 0")
        if not all(isinstance(number, int) for number in (*self.rounds, *self.starts_ns)):
            raise UsageError(f"latency report of {self.name}: rounds and starts must be integers")
        if self.compute_ms and len(self.compute_ms) != len(self.samples_ms):
            raise UsageError(f"latency report of {self.name}: every sample needs a time on the GPU, or none")
        if self.batch < 1:
            raise UsageError(f"latency report of {self.name}: the batch must be at least 1, not {self.batch}")

    @property
    def runs(self) -> int:
        return len(self.samples_ms)

    @property
    def p50_ms(self) -> float:
        """The median of all samples, for any number of runs; see `p50_interval_ms` for its accuracy."""
        return float(np.median(self.samples_ms))

    @property
    def p90_ms(self) -> float | None:
        """None below 64 runs; `percentile(90)` gives the reason."""
        return self.percentile(90).value

    @property
    def p99_ms(self) -> float | None:
        """None below 662 runs; `percentile(99)` gives the reason."""
        return self.percentile(99).value

    @property
    def alone_p50_ms(self) -> float | None:
        """Median of the runs without other candidates, which were made only if the clock varied."""
        return float(np.median(self.alone_ms)) if self.alone_ms else None

    @property
    def compute_p50_ms(self) -> float | None:
        """Median of the time on the GPU, copies included, without the processor's part; None without a GPU."""
        return float(np.median(self.compute_ms)) if self.compute_ms else None

    @property
    def first_answer_ms(self) -> float | None:
        """From the start of loading to the first output; None if either is unknown."""
        if self.load_s is None or self.first_inference_ms is None:
            return None
        return 1e3 * self.load_s + self.first_inference_ms

    @property
    def limit_fraction(self) -> float | None:
        """The fraction of the machine's limit that the median reaches; see Roofline."""
        return None if self.roofline is None else self.roofline.fraction(self.p50_ms)

    @property
    def mean_ms(self) -> float:
        return float(np.mean(self.samples_ms))

    @property
    def std_ms(self) -> float:
        return statistics.standard_deviation(self.samples_ms)

    @property
    def cv(self) -> float:
        """Coefficient of variation: standard deviation divided by mean."""
        return statistics.coefficient_of_variation(self.samples_ms)

    @property
    def ms_per_image(self) -> float:
        """The median time of a run, divided by its images."""
        return self.p50_ms / self.batch

    @property
    def throughput_per_s(self) -> float:
        """Images per second: all images divided by the sum of all samples, not one divided by the median."""
        return 1e3 * self.batch * self.runs / float(np.sum(self.samples_ms))

    @property
    def p50_interval_ms(self) -> Interval | None:
        """99 % confidence interval of the median, from the medians of the rounds; None below 8 rounds."""
        return statistics.median_interval(self.round_ms)

    @property
    def round_ms(self) -> NDArray[np.float64]:
        """Median of each round, (rounds,). Candidates of one run are paired by it."""
        return self._by_round(50)

    @property
    def fast_round_ms(self) -> NDArray[np.float64]:
        """10th percentile of each round, (rounds,): the runs that other processes hardly disturbed."""
        return self._by_round(statistics.FAST_PERCENT)

    @property
    def probe_ms(self) -> float | None:
        """Median of the machine-speed probes."""
        return float(np.median([probe.ms for probe in self.probes])) if self.probes else None

    @property
    def drift(self) -> float:
        """Median of the second half of the rounds divided by that of the first: 1.2 is 20 % slower at the end."""
        medians = self.round_ms
        half = len(medians) // 2
        return float(np.median(medians[-half:]) / np.median(medians[:half])) if half else 1.0

    @property
    def throttled(self) -> bool | None:
        """Whether the machine lowered its clocks during the measurement; None if the system does not report it.

        False is evidence only if the device was sampled while it worked; see `trace`.
        """
        causes = self.throttle_causes
        return None if causes is None else bool(causes)

    @property
    def throttle_causes(self) -> tuple[str, ...] | None:
        """The counters and limits that show it; None if the system has neither."""
        found = (
            throttle_causes(self.environment.state, self.after),
            self.trace.throttle_causes if self.trace is not None else None,
        )
        known = [causes for causes in found if causes is not None]
        # The trace names a counter too, from its own first sample on.
        return tuple({cause.rpartition(" ")[0]: cause for causes in known for cause in causes}.values()) or (
            () if known else None
        )

    @property
    def throttle_events(self) -> dict[str, EventRise]:
        """Rise of each throttle counter during the measurement, also of those that are no cause."""
        return event_rises(self.environment.state, self.after)

    @property
    def uses_gpu(self) -> bool:
        return GPU in self.details

    @property
    def energy_per_inference(self) -> dict[str, EnergyEstimate]:
        """Energy of one inference by counter, above that of the idle device; empty without a counter.

        GPUs that the engine does not run on are left out.
        """
        estimates = {} if self.energy is None else self.energy.per_inference()
        own = gpu_title(self.details[GPU_UUID]) if GPU_UUID in self.details else None
        return {name: each for name, each in estimates.items() if not name.startswith(GPU_PREFIX) or name == own}

    @property
    def power_w(self) -> dict[str, float]:
        """Median power by sensor while this engine worked."""
        spread = {} if self.trace is None else self.trace.spread(self.name, "power")
        return {name: median for name, (_, median, _) in spread.items()}

    @property
    def others_fraction(self) -> float | None:
        """Fraction of the cores used by other processes; None if the system does not report it."""
        return others_fraction(self.environment.state, self.after)

    @property
    def noise_reason(self) -> str:
        """Why the medians of this report may be biased; empty if other processes used little of the cores.

        Measuring in turns cancels slowdowns that affect all candidates equally. Other processes do not: they interrupt
        long inferences more often than those shorter than the scheduler's time slice, and a candidate with several
        threads waits for each interrupted thread.
        """
        share = self.others_fraction or 0.0
        return f"other processes took {100 * share:.0f} % of the cores" if share > BUSY_FRACTION else ""

    @property
    def speed_range(self) -> float:
        """Return by which fraction the slow probes (90th percentile) exceed the fast ones (10th percentile)."""
        if not self.probes:
            return 0.0
        fast, slow = np.percentile([probe.ms for probe in self.probes], [10, 90])
        return float(slow / fast) - 1

    @property
    def warnings(self) -> tuple[str, ...]:
        """Conditions that a reader must know to interpret the figures."""
        return warnings_of(self)

    def percentile_interval_ms(self, percent: float) -> Interval | None:
        """99 % confidence interval of a percentile, over rounds; None below 8 rounds or with too few runs."""
        return statistics.percentile_interval(statistics.by_round(self.samples_ms, self.rounds), percent)

    def compute_percentile(self, percent: float) -> tuple[float | None, Interval | None]:
        """Return a percentile of the time on the GPU in ms, and its interval; None without a GPU or enough runs."""
        if not self.compute_ms:
            return None, None
        interval = statistics.percentile_interval(statistics.by_round(self.compute_ms, self.rounds), percent)
        return statistics.percentile(self.compute_ms, percent).value, interval

    def percentile(self, percent: float) -> Percentile:
        """Return a percentile in ms, or why there is none."""
        return statistics.percentile(self.samples_ms, percent)

    def to_json(self) -> dict[str, Any]:
        """Return every field for `json.dump`; `from_json` gives an equal report."""
        fields = {_JSON_NAMES.get(name, name): value for name, value in asdict(self).items()}
        parts = {name: getattr(self, name) for name in ("trace", *_PARTS)}
        return {"schema": SCHEMA, **fields, **{name: part and part.to_json() for name, part in parts.items()}}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> LatencyReport:
        """Return the report that `to_json` wrote. Raises UsageError for anything else."""
        schema = data.get("schema") if isinstance(data, Mapping) else None
        if schema != SCHEMA:
            raise UsageError(f"not a latency report of schema {SCHEMA} (found {shorten(schema)}); measure again")
        try:
            report = cls(**_converted({name: value for name, value in data.items() if name != "schema"}))
            report._derive()
        except (KeyError, TypeError, AttributeError, ValueError, IndexError, ArithmeticError, RecursionError) as error:
            raise UsageError(f"damaged latency report ({shorten(first_line(error))}); measure again") from error
        return report

    def _derive(self) -> None:
        """Compute every statistic once: a field of a wrong type fails here and not in a later comparison."""
        _ = (
            self.warnings,
            self.throttle_events,
            self.round_ms,
            self.fast_round_ms,
            self.probe_ms,
            self.p50_interval_ms,
            self.cv,
            self.limit_fraction,
            self.compute_p50_ms,
            self.layers and self.layers.to_json(),
            self.throughput and self.throughput.to_json(),
            self.sustained and self.sustained.to_json(),
        )
        _ = (self.throughput_per_s, hash(tuple(map(str, self.environment.key().values()))), hash(self.threads))

    def _by_round(self, percent: float) -> NDArray[np.float64]:
        return np.array([np.percentile(turn, percent) for turn in statistics.by_round(self.samples_ms, self.rounds)])


def _converted(data: Mapping[str, Any]) -> dict[str, Any]:
    """Convert JSON's lists and objects to the types of the fields."""
    return {
        **{name: value for name, value in data.items() if name != _JSON_NAMES["measured_with"]},
        "measured_with": tuple(data[_JSON_NAMES["measured_with"]]),
        **{name: tuple(data[name]) for name in ("samples_ms", "starts_ns", "rounds")},
        "alone_ms": tuple(data.get("alone_ms", ())),
        "input_shapes": {name: tuple(shape) for name, shape in data["input_shapes"].items()},
        "probes": tuple(Probe(**probe) for probe in data["probes"]),
        "plan": MeasurePlan(**data["plan"]),
        "environment": Environment.from_json(data["environment"]),
        "after": MachineState.from_json(data["after"]),
        "trace": None if data.get("trace") is None else DeviceTrace.from_json(data["trace"]),
        "energy": None if data.get("energy") is None else EnergyRecord.from_json(data["energy"]),
        "compute_ms": tuple(map(float, data.get("compute_ms", ()))),
        "study_problems": {str(name): str(reason) for name, reason in data.get("study_problems", {}).items()},
        "parity": None if data.get("parity") is None else ParitySummary.from_json(data["parity"]),
        **{name: None if data.get(name) is None else part.from_json(data[name]) for name, part in _PARTS.items()},
    }
