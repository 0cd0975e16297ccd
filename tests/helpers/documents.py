"""Documents of known content: a certified measurement of two engines, and changes to it."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from edgevit.latency.clock import Probe
from edgevit.latency.document.content import Document, Session, session_of
from edgevit.latency.document.product import EngineParity, Product
from edgevit.latency.plan import MeasurePlan
from edgevit.latency.report import LatencyReport
from edgevit.latency.sampling.channel import Channel
from edgevit.latency.sampling.trace import DeviceTrace, Series
from tests.helpers import samples

NAMES = ("vit-fp32-ort", "vit-int8-ort")


def trace(*, clock: tuple[float, ...] = (2000.0, 2000.0, 1990.0, 2000.0), limit: float = 0.0) -> DeviceTrace:
    """Return four samples a second apart, during which the two engines took turns at work."""
    count = 2 * len(clock)
    series = (
        Series(Channel("cpu0", "clock"), tuple(value for value in clock for _ in NAMES)),
        Series(Channel("cpu-thermal", "temperature"), tuple(50.0 + index for index in range(count))),
        Series(Channel("cpufreq cooling_device0", "limit"), (limit,) * count),
    )
    return DeviceTrace(
        names=NAMES,
        starts_ns=tuple(index * 10**9 for index in range(count)),
        candidates=tuple(index % 2 for index in range(count)),
        costs_ms=(0.5,) * count,
        series=series,
    )


def report(name: str = NAMES[0], ms: float = 60.0, **changes: Any) -> LatencyReport:
    """Return a report that meets every condition: 1100 runs of about `ms` milliseconds in 50 rounds."""
    turns = samples.noisy(ms, seed=len(name), rounds=50, runs=22)
    starts = np.concatenate([[0.0], np.cumsum(turns)[:-1]]) * 1e6
    fields: dict[str, Any] = {
        "starts_ns": tuple(int(start) for start in starts),
        "trace": trace(),
        "details": {"precision": name.split("-")[1], "engine_sha256": f"{name} engine", "onnx_sha256": f"{name} onnx"},
        "probes": (Probe(0, 0.5), Probe(10_000, 0.5)),
        "plan": MeasurePlan(min_runs=100, min_duration_s=60.0),
        "measured_at": "2026-11-26T10:00:00+00:00",
        "peak_memory_mb": 80.0,
    }
    return dataclasses.replace(samples.report(turns, name=name), **{**fields, **changes})


def product(of: str = NAMES[0], **changes: Any) -> Product:
    """Return the bundle of one of the engines; `changes` are its fields."""
    name = of
    fields: dict[str, Any] = {
        "name": name,
        "path": f"bundles/{name}",
        "model": "vit",
        "weights": "included vit.pth",
        "fmt": "ort",
        "runtime": "ONNX Runtime 1.20.0",
        "requested": name.split("-")[1],
        "executed": "all layers",
        "engine_sha256": f"{name} engine",
        "onnx_sha256": f"{name} onnx",
        "engine_bytes": 5_000_000 if "fp32" in name else 1_500_000,
        "edgevit_version": "0.1.0",
        "parity": EngineParity(passed=True, snr_db=120.0 if "fp32" in name else 30.0),
    }
    return Product(**{**fields, **changes})


def session(**changes: Any) -> Session:
    """Return a session of both engines; `changes` are those of every report."""
    reports = [report(NAMES[0], 60.0, **changes), report(NAMES[1], 56.0, **changes)]
    return session_of(reports, {name: product(name) for name in NAMES})


def document(*sessions: Session) -> Document:
    return Document(sessions=sessions or (session(),), edgevit_version="0.1.0")
