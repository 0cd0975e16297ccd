"""Latency reports: statistics are derived from the stored samples."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable
from typing import Any

import pytest

from edgevit.cli.latency_output import latency_parts
from edgevit.errors import UsageError
from edgevit.latency.candidate import Candidate
from edgevit.latency.clock import Probe
from edgevit.latency.compare import MEMORY_LAYOUT_EFFECT, latency_json
from edgevit.latency.environment import Environment
from edgevit.latency.measure import measure
from edgevit.latency.report import LatencyReport
from edgevit.latency.sampling.channel import Channel
from edgevit.latency.sampling.energy import EnergyRecord
from edgevit.latency.sampling.trace import DeviceTrace, Series
from edgevit.latency.sustained import SustainedRun
from edgevit.latency.throughput import Throughput, ThroughputPoint
from edgevit.runtimes.base import CUDA_GRAPH, GPU, GPU_UUID
from edgevit.runtimes.layer_profile import LayerProfile, LayerTime
from edgevit.runtimes.parity import ParitySummary
from edgevit.types import Interval
from tests.helpers import samples
from tests.helpers.samples import QUICK, work


def test_statistics_are_those_of_the_samples() -> None:
    report = samples.report([[1, 2], [3, 4], [5, 105]], batch=2)
    assert report.runs == 6 and report.p50_ms == 3.5 and report.mean_ms == 20
    assert list(report.round_ms) == [1.5, 3.5, 55]
    assert report.throughput_per_s == 100  # 12 images in 120 ms; one over the median would claim 571
    assert report.cv == report.std_ms / report.mean_ms
    assert report.p90_ms is None and report.p99_ms is None and report.p50_interval_ms is None


def test_a_table_of_several_batch_sizes_names_them_all() -> None:
    mixed = [samples.report([[2.0]] * 9, name="one"), samples.report([[6.0]] * 9, name="four", batch=4)]
    assert str(latency_parts(mixed)[1]).startswith("batches 1, 4 (times are per batch, ratios per image)")
    assert str(latency_parts(mixed[:1])[1]).startswith("batch 1, 1 threads")
    row = latency_json(mixed)[1]
    assert row["ratio"] == pytest.approx(0.75) and row["verdict"] == "faster"
    assert row["ratio_interval"] == pytest.approx(
        [0.75 / (1 + MEMORY_LAYOUT_EFFECT), 0.75 * (1 + MEMORY_LAYOUT_EFFECT)]
    )
    assert [each["ratio_interval"] for each in latency_json(mixed[:1])] == [None]


def test_a_gpu_gives_its_energy_to_the_engines_that_run_on_it() -> None:
    energy = EnergyRecord(
        sources=("package", "gpu 744b68d1"),
        idle_w=((5.0, 80.0),) * 8,
        turns_j=((7.0, 82.0),) * 9,
        turns_s=(1.0,) * 9,
        inferences=10,
    )
    report = dataclasses.replace(samples.report([[1.0]] * 9), energy=energy)
    assert list(report.energy_per_inference) == ["package"]
    on_gpu = dataclasses.replace(report, details={GPU_UUID: "744b68d1-887d-1407-1b2f-7ebcbfc5b42c"})
    assert [round(each.joules, 3) for each in on_gpu.energy_per_inference.values()] == [0.2, 0.2]


def test_energy_below_the_noise_of_the_device_is_a_limit_and_no_figure() -> None:
    energy = EnergyRecord(
        sources=("package",),
        idle_w=tuple((value,) for value in (80.0, 90.0) * 4),
        turns_j=((85.0,),) * 9,
        turns_s=(1.0,) * 9,
        inferences=1000,
    )
    report = dataclasses.replace(samples.report([[1.0]] * 9), energy=energy)
    (line,) = (str(part) for part in latency_parts([report])[1:] if "energy" in str(part))
    assert re.fullmatch(r"energy above idle by package, mJ per batch: .* at most \d+\.\d+", line)


def test_the_printed_conditions_name_the_board_the_gpu_and_the_processor() -> None:
    on_gpu = dataclasses.replace(samples.report([[1.0]] * 9), details={"gpu": "Orin"})
    conditions = str(latency_parts([on_gpu])[1])
    assert "one process, random order; A board, Orin, A processor (asimddp)" in conditions


def test_the_rate_of_over_current_spikes_is_a_condition_and_no_warning() -> None:
    counted = dataclasses.replace(samples.AFTER, throttle_events={"oc3_event_cnt": 73}, time_s=10.0)
    before = dataclasses.replace(samples.QUIET, throttle_events={"oc3_event_cnt": 3}, time_s=0.0)
    report = samples.report([[1.0]] * 9, environment=dataclasses.replace(samples.BOARD, state=before), after=counted)
    conditions, *notes = latency_parts([report])[1:]
    assert str(conditions).endswith("; oc3_event_cnt 7.0/s") and notes == []
    assert latency_json([report])[0]["throttle_events"] == {"oc3_event_cnt": {"count": 70, "per_s": 7.0}}


def test_a_report_keeps_its_profile_limit_throughput_and_sustained_run() -> None:
    layer = LayerTime(name="blocks.0/MatMul", kind="MatMul", module="blocks.0", ms=1.5)
    report = dataclasses.replace(
        samples.report([[2.0, 2.5]] * 9),
        compute_ms=(1.0,) * 18,
        parity=ParitySummary(passed=False, max_error_std=None, cosine=0.5, failure="max error"),
        roofline=samples.ROOFLINE,
        layers=LayerProfile(layers=(layer,), runs=3, profiled_ms=2.5),
        throughput=Throughput(
            points=(ThroughputPoint(batch=1, streams=2, images_per_s=9.5, inferences=19, elapsed_s=2.0),)
        ),
        sustained=SustainedRun(batch=1, images_per_s=(9.0, 8.0, 7.0), first_clock_mhz=Interval(900, 1000)),
    )
    assert LatencyReport.from_json(json.loads(json.dumps(report.to_json(), allow_nan=False))) == report
    figures = latency_json([report])[0]
    assert figures["compute_ms"]["p50"] == 1 and figures["compute_ms"]["p90"] is None
    assert figures["first_answer_ms"] == 262.5 and figures["limit_fraction"] == report.limit_fraction


def test_a_damaged_roofline_is_refused() -> None:
    data = dataclasses.replace(samples.report([[2.0]] * 9), roofline=samples.ROOFLINE).to_json()
    data["roofline"]["macs_per_s"] = {}
    with pytest.raises(UsageError, match="damaged latency report"):
        LatencyReport.from_json(data)


def test_different_precisions_are_named_in_a_note() -> None:
    fp16 = samples.report([[2.0]] * 9, name="one")  # in fp16, as its details say
    int8 = dataclasses.replace(fp16, name="other", details={"precision": "int8"})
    notes = [str(part) for part in latency_parts([fp16, int8])[2:]]
    assert notes == ["note: different precisions: one fp16, other int8"]
    assert latency_parts([fp16, dataclasses.replace(fp16, name="other")])[2:] == []


@pytest.mark.parametrize(("runs", "known"), [(661, False), (662, True)])
def test_p99_needs_662_runs(runs: int, known: bool) -> None:
    report = samples.report([[1.0] * runs])
    assert (report.p99_ms is not None) == known and report.p90_ms == 1
    assert ("needs 662 runs" in report.percentile(99).reason) != known


def test_the_interval_of_the_median_contains_the_true_value() -> None:
    interval = samples.report(samples.noisy(5.0, seed=1)).p50_interval_ms
    assert interval is not None and 5.0 in interval and interval.high / interval.low < 1.05


def test_a_report_is_unchanged_by_a_round_trip_through_json() -> None:
    reports = measure([Candidate(name=name, infer=work(1), input_shapes={"x": (1, 3)}) for name in "ab"], QUICK)
    for report in (*reports, samples.report([[0.1, 1 / 3], [1e-9, 2e9]])):
        again = LatencyReport.from_json(json.loads(json.dumps(report.to_json(), allow_nan=False)))
        assert again == report and again.environment.key() == report.environment.key()


CLOCK, RAIL = Channel("17000000.gpu", "clock"), Channel("VDD_GPU_SOC", "power")
ZONE, LIMIT = Channel("gpu-thermal thermal_zone1", "temperature"), Channel("devfreq cooling_device1", "limit")


def sampled(clocks: tuple[float, ...], limit: float = 0, problem: str = "") -> LatencyReport:
    """A report of an engine on a Jetson's GPU, with samples of the device before, during and after it."""
    count = len(clocks)
    trace = DeviceTrace(
        names=("a",),
        starts_ns=tuple(range(0, 250_000_000 * count, 250_000_000)),
        candidates=(-1, *(0,) * (count - 2), -1),
        costs_ms=(0.6,) * count,
        series=(
            Series(CLOCK, clocks),
            Series(RAIL, (2.0, *(8.5,) * (count - 2), 2.0)),
            Series(ZONE, (40.0,) * (count - 1) + (48.0,)),
            Series(LIMIT, (0.0, *(limit,) * (count - 2), 0.0)),
        ),
        problem=problem,
    )
    return dataclasses.replace(samples.report([[1.0]] * 9), trace=trace, details={GPU: "Orin", CUDA_GRAPH: "yes"})


def test_the_device_is_named_as_it_was_while_the_engine_worked() -> None:
    report = sampled((306, 1300, 1300, 306))
    assert report.warnings == () and report.throttled is False and report.power_w == {"VDD_GPU_SOC": 8.5}
    assert str(latency_parts([report])[2]) == (
        "device: 17000000.gpu 1300 MHz, VDD_GPU_SOC 8.5 W, hottest sensor 40 C; sampled 4 times at 4.0 Hz, 0.6 ms "
        "each, never while a run was timed"
    )
    assert LatencyReport.from_json(json.loads(json.dumps(report.to_json()))) == report


def test_a_limit_that_is_active_only_while_the_engine_works_is_throttling() -> None:
    report = sampled((306, 1300, 1300, 306), limit=2)
    assert report.throttled and report.warnings == ("the machine throttled (devfreq cooling_device1 at 2)",)


def test_clocks_that_vary_and_sensors_that_fail_are_warned_of() -> None:
    assert sampled((306, 918, 1300, 306)).warnings == ("the clocks varied meanwhile: 17000000.gpu 918 to 1300 MHz",)
    (warning,) = sampled((306, 1300, 1300, 306), problem="a sensor failed").warnings
    assert warning == "the device was not sampled to the end: a sensor failed"


def test_an_engine_without_its_cuda_graph_is_warned_of() -> None:
    report = sampled((306, 1300, 1300, 306))
    without = dataclasses.replace(report, details={**report.details, CUDA_GRAPH: "a plugin allocates memory"})
    assert without.warnings == ("runs without a CUDA graph: a plugin allocates memory",)


def drop(name: str) -> Callable[[dict[str, Any]], object]:
    return lambda data: data.pop(name)


def put(name: str, value: object) -> Callable[[dict[str, Any]], object]:
    return lambda data: data.update({name: value})


def put_state(name: str, value: object) -> Callable[[dict[str, Any]], object]:
    """Replace a field of the machine's state, both before and after the measurement."""
    return lambda data: [state.update({name: value}) for state in (data["environment"]["state"], data["after"])]


@pytest.mark.parametrize(
    "damage",
    [
        drop("schema"),
        put("schema", 99),
        drop("samples_ms"),
        drop("environment"),
        put("environment", {"cpu": "A processor"}),
        put("plan", {"min_runs": 100, "unknown": 1}),
        put("probes", [1, 2]),
        put("samples_ms", []),
        lambda data: data.update(samples_ms=[], starts_ns=[], rounds=[]),
        put("samples_ms", [1.0]),
        put("samples_ms", ["fast"] * 4),
        put("samples_ms", [1.0, 2.0, -3.0, 4.0]),
        put("samples_ms", [1.0, 2.0, float("nan"), 4.0]),
        put("batch", 0),
        put("extra", 1),
        put("batch", "4"),
        put("batch", [1]),
        put("rounds", ["a", "b", "c", "d"]),
        put("rounds", [[0], [1], [2], [3]]),
        put("rounds", 5),
        put("samples_ms", [[1.0]] * 4),
        put("samples_ms", [10**400] * 4),
        put("probes", [{"start_ns": 0, "ms": "fast"}]),
        put("probes", [{"start_ns": 0, "ms": None}]),
        put("input_shapes", {"x": 5}),
        put("input_shapes", []),
        put("plan", {"min_runs": "many"}),
        put("plan", []),
        put("x" * 5000, 1),
        put_state("throttle_events", 5),
        put_state("limits", [1]),
        put_state("busy_cpu_s", "all"),
        put_state("own_cpu_s", None),
        put_state("load_average", 5),
        put("trace", {"names": ["a"]}),
        put("energy", {"sources": 5}),
    ],
)
def test_a_damaged_report_is_a_usage_error(damage: Callable[[dict[str, Any]], object]) -> None:
    data = json.loads(json.dumps(samples.report([[1, 2], [3, 4]]).to_json()))
    assert LatencyReport.from_json(data) == samples.report([[1, 2], [3, 4]])
    damage(data)
    with pytest.raises(UsageError) as caught:
        LatencyReport.from_json(data)
    assert len(str(caught.value)) < 300 and "\n" not in str(caught.value)


@pytest.mark.parametrize("data", [[], None, "report", {}])
def test_anything_but_a_report_is_a_usage_error(data: Any) -> None:
    with pytest.raises(UsageError, match="not a latency report"):
        LatencyReport.from_json(data)


def hot(environment: Environment) -> Environment:
    limits = {"cpufreq cooling_device0": 2}
    return dataclasses.replace(environment, state=dataclasses.replace(environment.state, limits=limits))


IDLE = samples.report([[1.0, 1.0]] * 10)


@pytest.mark.parametrize(
    ("report", "warning"),
    [
        (dataclasses.replace(IDLE, steady=False), "the warm-up did not settle"),
        (samples.report([[1.0]] * 10 + [[1.2]] * 10), "the second half took 1.20 times the first"),
        (
            dataclasses.replace(IDLE, probes=(Probe(0, 0.5),) * 5 + (Probe(1, 0.6),) * 5),
            "the machine's own speed varied by 20 %",
        ),
        (dataclasses.replace(IDLE, environment=hot(samples.BOARD)), "the machine throttled"),
        (dataclasses.replace(IDLE, after=samples.BUSY_AFTER), "other processes took 37 % of the cores"),
    ],
)
def test_a_report_warns_of_conditions_that_matter(report: LatencyReport, warning: str) -> None:
    assert IDLE.warnings == ()
    assert len(report.warnings) == 1 and report.warnings[0].startswith(warning)
