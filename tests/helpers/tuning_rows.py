"""Engines of a final measurement whose times and checks are known in advance."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from edgevit.metrics import Evaluation
from edgevit.pipeline.tuning.examiner import Verification
from edgevit.pipeline.tuning.report import Row
from edgevit.pipeline.tuning.space import Configuration, Variant
from edgevit.runtimes.parity import compare
from edgevit.types import Precision, Reference
from tests.helpers.samples import noisy, report

OUTPUT = np.random.default_rng(0).standard_normal((4, 10)).astype(np.float32)


def verified(error: float, *, correct: int | None = None, failure: str = "") -> Verification:
    """Outputs that are off by `error` of the standard deviation, and `correct` of 100 labeled images."""
    reference = Reference(kind="photos", inputs={"x": OUTPUT}, outputs={"y": OUTPUT})
    off = np.float32(error * OUTPUT.std())
    parity = compare("engine", lambda feeds: {"y": feeds["x"] + off}, [reference], precision="int8")
    evaluation = None
    if correct is not None:
        ranks = tuple(int(index >= correct) for index in range(100))
        evaluation = Evaluation(name="a", class_count=10, labels=(0,) * 100, predictions=ranks, ranks=ranks)
    return Verification(parity=parity, evaluation=evaluation, failure=failure)


def row(
    name: str, time_ms: float, *, precision: Precision = "fp32", size: int = 10, found: Verification | None = None
) -> Row:
    configuration = Configuration(variant=Variant(fmt=name, precision=precision), threads=1)
    latency = replace(report(noisy(time_ms, seed=int(1e3 * time_ms)), name=configuration.name), peak_memory_mb=50.0)
    return Row(
        configuration=configuration,
        latency=latency,
        ratio=None,
        verification=found or verified(1e-6),
        size_bytes=size,
    )
