"""Latency reports of known samples, whose statistics are known in advance, and short measurements."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from edgevit.latency.clock import Probe
from edgevit.latency.environment import Environment, MachineState
from edgevit.latency.plan import MeasurePlan
from edgevit.latency.report import LatencyReport
from edgevit.latency.roofline import Roofline

OUTPUT = np.zeros(10, np.float32)
QUICK = MeasurePlan(
    min_runs=20, min_duration_s=0.1, max_duration_s=20, warmup_window_s=0.01, warmup_max_s=0.5, settle_s=0, turn_s=0.01
)

QUIET = MachineState(
    load_average=(0.1, 0.1, 0.1),
    memory_available_mb=4096.0,
    clocks_mhz={"cpu0": 1500.0},
    temperatures_c={"cpu-thermal thermal_zone0": 45.5},
    throttle_events={"oc1_event_cnt": 3},
    limits={"cpufreq cooling_device0": 0},
    own_cpu_s=1.0,
    busy_cpu_s=100.0,
    idle_cpu_s=900.0,
)
AFTER = dataclasses.replace(QUIET, own_cpu_s=5.0, busy_cpu_s=104.1, idle_cpu_s=904.0)
BUSY_AFTER = dataclasses.replace(AFTER, busy_cpu_s=107.0, idle_cpu_s=901.1)  # other processes used 3 of 8.1 seconds

BOARD = Environment(
    architecture="aarch64",
    board="A board",
    os="An OS 1.0",
    kernel="5.15",
    cpu="A processor",
    isa=("asimd", "asimddp"),
    physical_cores=4,
    logical_cores=4,
    affinity=(0, 1, 2, 3),
    cpu_limit=None,
    governor="performance",
    min_mhz=1500.0,
    max_mhz=1500.0,
    boost=None,
    power_mode="MAXN (0)",
    gpus=(),
    device_clocks={"17000000.gpu": "nvhost_podgov, 306 to 918 MHz"},
    jetson=None,
    container=None,
    memory_total_mb=7620.0,
    python="3.10.12",
    packages={"numpy": "1.26.4", "onnxruntime": "1.20.0"},
    state=QUIET,
)

ROOFLINE = Roofline(
    runtime="ONNX Runtime",
    threads=1,
    macs_per_s={"fp32": 2e9, "int8": 8e9},
    copy_bytes_per_s=1e9,
    macs={"fp32": 1_000_000, "int8": 2_000_000},
    moved_bytes=500_000,
    activation_bytes=100_000,
)


def report(
    turns: NDArray[np.float64] | Sequence[Sequence[float]],
    *,
    name: str = "a",
    run_id: str = "one run",
    batch: int = 1,
    threads: int | None = 1,
    probe_ms: float = 0.5,
    environment: Environment = BOARD,
    after: MachineState = AFTER,
) -> LatencyReport:
    """Return a report of `turns`, (rounds, runs per turn), in ms."""
    samples = [(number, float(sample)) for number, turn in enumerate(turns) for sample in turn]
    return LatencyReport(
        name=name,
        run_id=run_id,
        measured_with=(),
        samples_ms=tuple(sample for _, sample in samples),
        starts_ns=tuple(range(0, 1000 * len(samples), 1000)),
        rounds=tuple(number for number, _ in samples),
        batch=batch,
        input_shapes={"images": (batch, 3, 224, 224)},
        threads=threads,
        load_s=0.25,
        first_inference_ms=12.5,
        memory_rise_mb=30.0,
        peak_memory_mb=None,
        steady=True,
        warmup_runs=40,
        probes=(Probe(0, probe_ms), Probe(10_000, probe_ms)),
        clock_resolution_ns=40,
        plan=MeasurePlan(min_runs=1, min_duration_s=0),
        environment=environment,
        after=after,
        details={"precision": "fp16"},
    )


def noisy(median_ms: float, *, seed: int, rounds: int = 40, runs: int = 5, noise: float = 0.02) -> NDArray[np.float64]:
    """Return turns with a known median and a long tail, (rounds, runs), in ms."""
    random = np.random.default_rng(seed)
    return median_ms * np.exp(noise * random.standard_normal((rounds, runs)))


def work(units: int) -> Callable[[], object]:
    """Return an inference that takes time in proportion to `units`, and returns OUTPUT."""
    values = np.full(20_000, 0.5, np.float32)

    def infer() -> object:
        for _ in range(20 * units):
            values * values
        return OUTPUT

    return infer
