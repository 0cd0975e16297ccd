"""The lines that `edgevit latency` prints of its studies."""

from __future__ import annotations

import dataclasses

from edgevit.cli.latency_output import latency_parts
from edgevit.cli.latency_studies import study_parts
from edgevit.latency.sustained import SustainedRun
from edgevit.latency.throughput import Throughput, ThroughputPoint
from edgevit.types import Interval
from tests.helpers import samples

PLAIN = samples.report([[2.0]] * 9)


def test_the_limit_is_one_line_for_each_engine_and_the_rates_one_for_each_runtime() -> None:
    reports = [
        dataclasses.replace(PLAIN, name=name, roofline=dataclasses.replace(samples.ROOFLINE, runtime="ORT"))
        for name in ("a", "b")
    ]
    assert study_parts(reports) == [
        "limit: a 0.75 ms, compute bound, 38% reached (multiply-adds 0.001 G fp32, 0.002 G int8, 0.5 MB)",
        "limit: b 0.75 ms, compute bound, 38% reached (multiply-adds 0.001 G fp32, 0.002 G int8, 0.5 MB)",
        "best rates: ORT multiply-adds fp32 2 G/s, int8 8 G/s; copies 1 GB/s",
    ]


def test_a_study_without_a_result_says_why() -> None:
    report = dataclasses.replace(PLAIN, study_problems={"roofline": "cuBLAS was not found", "layers": "no memory"})
    assert study_parts([report]) == ["note: a: no roofline (cuBLAS was not found)", "note: a: no layers (no memory)"]
    report = dataclasses.replace(PLAIN, study_problems={"sustained": "too slow"})
    assert study_parts([report]) == ["note: a: no sustained run (too slow)"]


def test_throughput_and_a_sustained_run_are_one_line_each() -> None:
    points = tuple(
        ThroughputPoint(batch=1, streams=streams, images_per_s=rate, inferences=9, elapsed_s=1.0)
        for streams, rate in ((1, 100.0), (2, 180.0))
    )
    run = SustainedRun(
        batch=1,
        images_per_s=(100.0,) * 20 + (80.0,) * 10,
        first_clock_mhz=Interval(1900, 2000),
        last_clock_mhz=Interval(1500, 1600),
        hottest_c=91.0,
    )
    report = dataclasses.replace(PLAIN, throughput=Throughput(points=points), sustained=run)
    assert study_parts([report]) == [
        "throughput: a 180.0 images/s with batch 1 and 2 at once (batch x streams: 1x1: 100.0, 1x2: 180.0)",
        (
            "sustained: a 100.0 images/s in the first 10 s, 80.0 in the last of 30 s (-20.0%): NOT steady; "
            "clock 1900 to 2000, then 1500 to 1600 MHz; hottest sensor 91 C"
        ),
    ]


def test_details_have_percentiles_of_both_times_with_intervals() -> None:
    report = dataclasses.replace(samples.report([[2.0] * 8] * 9), compute_ms=(1.0,) * 72)
    lines = [str(part) for part in latency_parts([report], detailed=True)]
    assert (
        "percentiles: a p50 2 (2 to 2), p90 2 (2 to 2), p99 - ms; p50 1 (1 to 1), p90 1 (1 to 1), p99 - ms on the GPU"
    ) in lines
