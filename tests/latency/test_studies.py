"""Studies of an engine: the limit, or why it is unknown."""

from __future__ import annotations

import time
from collections.abc import Mapping
from functools import partial

import pytest

from edgevit.errors import BuildError, MissingError
from edgevit.latency import clock, roofline
from edgevit.latency.candidate import Candidate
from edgevit.latency.report import LatencyReport
from edgevit.latency.studies import Studies, Subject, study
from edgevit.latency.throughput import stream_counts
from edgevit.macs import ModelWork
from edgevit.runtimes.base import Engine, Operations, ThroughputRunner
from edgevit.runtimes.precision import ExecutedPrecision
from edgevit.types import Array
from tests.helpers import samples

WORK = ModelWork(batch=1, macs=1_000_000, weight_bytes=4_000_000, io_bytes=100_000, activation_bytes=50_000)
FP16 = ExecutedPrecision({"fp16": 3}, {"fp16": 1_000_000})


class _GpuEngine(Engine):
    """An engine whose device multiplies and copies in a known time."""

    product_library = "cuBLAS"

    def __init__(self, *, problem: str = "", precisions: tuple[str, ...] = ("fp32", "fp16")) -> None:
        self._problem, self._precisions = problem, precisions

    def matmul(self, shape: tuple[int, int, int], precision: str) -> Operations | None:
        if self._problem:
            raise MissingError(self._problem)
        seconds = {"fp32": 4e-3, "fp16": 1e-3}.get(precision, 1.0)
        return Operations(run=_nothing, count=10, device_s=lambda: seconds) if precision in self._precisions else None

    def copy(self, size_bytes: int) -> Operations:
        return Operations(run=_nothing, count=10, device_s=lambda: 1e-3)

    def _infer(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        raise NotImplementedError

    def executed_precision(self) -> ExecutedPrecision:
        return FP16


def _nothing() -> None:
    """Take no time by the host's clock: the device's counts."""


def studied(
    engine: Engine,
    *,
    work: ModelWork | None = WORK,
    executed: ExecutedPrecision = FP16,
    studies: Studies = Studies(roofline=True),  # noqa: B008  # immutable
) -> LatencyReport:
    candidate = Candidate(name="a", infer=_nothing)
    subject = Subject(
        candidate=candidate, engine=engine, runtime="TensorRT", feeds={1: {}}, executed=executed, work=work
    )
    return study(studies, [subject], [samples.report([[2.0]] * 9)])[0]


@pytest.fixture(autouse=True)
def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(roofline, "_SHAPE_S", 0.0)


def test_the_limit_of_an_engine_on_a_gpu_is_that_of_its_device_by_its_own_clock() -> None:
    found = studied(_GpuEngine()).roofline
    assert found is not None and found.runtime == "cuBLAS"
    assert found.macs_per_s == pytest.approx({"fp32": 10 * 1024**3 / 4e-3, "fp16": 10 * 1024**3 / 1e-3})
    assert found.copy_bytes_per_s == pytest.approx(10 * (1 << 22) / 1e-3)
    assert found.macs == {"fp16": 1_000_000} and found.moved_bytes == 4_100_000


def test_multiply_adds_of_unknown_precision_stay_unknown() -> None:
    found = studied(_GpuEngine(), executed=ExecutedPrecision()).roofline
    assert found is not None and found.macs == {"unknown": 1_000_000}
    assert found.compute_ms == pytest.approx(1e3 * 1_000_000 / found.macs_per_s["fp16"])


@pytest.mark.parametrize(
    ("engine", "work", "reason"),
    [
        (_GpuEngine(problem="cuBLAS was not found"), WORK, "cuBLAS was not found"),
        (_GpuEngine(precisions=()), WORK, "cuBLAS multiplies no matrix by itself here"),
        (_GpuEngine(), None, "the bundle is of an earlier version and has no multiply-adds; export it again"),
    ],
)
def test_a_limit_that_is_unknown_says_why_and_keeps_the_measurement(
    engine: Engine, work: ModelWork | None, reason: str
) -> None:
    report = studied(engine, work=work)
    assert report.roofline is None and report.study_problems == {"roofline": reason}
    assert LatencyReport.from_json(report.to_json()) == report


def test_a_study_that_fails_or_does_not_exist_keeps_the_measurement_too() -> None:
    class Broken(_GpuEngine):
        def throughput_runner(self, streams: int) -> ThroughputRunner:
            raise BuildError("not enough memory for another context")

    report = studied(Broken(), studies=Studies(throughput=True, layers=True))
    assert report.study_problems == {
        "throughput": "not enough memory for another context",
        "layers": "TensorRT has no such mode here",
    }
    assert report.layers is None and report.throughput is None


def test_an_engine_too_slow_for_a_sustained_run_keeps_the_measurement_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first engine's problem may not cost the second one's run either."""
    now = [0]
    monkeypatch.setattr(clock, "now_ns", lambda: now[0])

    def infer(ms: int) -> None:
        now[0] += 1_000_000 * ms

    subjects = [
        Subject(
            candidate=Candidate(name=name, infer=partial(infer, ms)),
            engine=_GpuEngine(),
            runtime="TensorRT",
            feeds={1: {}},
            executed=FP16,
            work=WORK,
        )
        for name, ms in (("slow", 2500), ("fast", 100))
    ]
    reports = [samples.report([[2.0]] * 9, name=subject.candidate.name) for subject in subjects]
    slow, fast = study(Studies(sustained_s=3.0), subjects, reports)
    reason = "slow ran less than once a second; --sustained needs a faster engine"
    assert slow.sustained is None and slow.study_problems == {"sustained": reason}
    assert slow.samples_ms == reports[0].samples_ms
    assert fast.study_problems == {} and fast.sustained is not None and fast.sustained.duration_s == 3


def test_twice_as_many_streams_as_threads_are_tried_and_sixteen_on_a_gpu() -> None:
    assert stream_counts(3) == (1, 2, 4)
    assert stream_counts(3, on_gpu=True) == (1, 2, 4, 8, 16)


def test_operations_are_released_after_their_time_was_taken() -> None:
    events: list[str] = []
    operations = Operations(run=lambda: events.append("run"))
    operations.resources.callback(events.append, "released")
    assert roofline._shortest_s(operations) >= 0
    assert events == ["run"] * 6 + ["released"]


def test_the_time_of_one_operation_is_its_share_of_a_run() -> None:
    one, ten = (Operations(run=lambda: time.sleep(2e-3), count=count) for count in (1, 10))
    assert roofline._shortest_s(one) >= 2e-3 > roofline._shortest_s(ten) >= 2e-4
