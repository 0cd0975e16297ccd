"""The options of an export of a tuned engine."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import cast

import pytest

from edgevit.export.graph import OnnxGraph
from edgevit.pipeline.config import ExportConfig
from edgevit.pipeline.tuning.auto import TunedEngine
from edgevit.pipeline.tuning.device_cache import Choice
from edgevit.pipeline.tuning.space import Configuration, Variant
from edgevit.runtimes.base import BuildOptions
from edgevit.types import Precision

CALIB, LABELED = Path("calib"), Path("labeled")


@pytest.mark.parametrize(
    ("precision", "expected"),
    [
        ("fp32", (None, None, None)),
        ("bf16", (None, LABELED, 0.02)),
        ("fp16", (CALIB, LABELED, 0.02)),
        ("int8", (CALIB, LABELED, 0.02)),
    ],
)
def test_options_that_the_precision_does_not_take_are_left_out(
    precision: Precision, expected: tuple[Path | None, Path | None, float | None]
) -> None:
    configuration = Configuration(variant=Variant(fmt="openvino", precision=precision), threads=3)
    choice = Choice(configuration=configuration, p50_ms=1.0, accuracy="")
    tuned = TunedEngine(choice=choice, captured=cast(OnnxGraph, None), note="")
    config = tuned.config(
        partial(ExportConfig, onnxsim=True), BuildOptions(batch=2), calib=CALIB, labeled=LABELED, max_drop=0.02
    )
    assert (config.calib, config.eval, config.max_drop) == expected
    assert (config.formats, config.options.precision, config.options.batch) == (("openvino",), precision, 2)
    assert (config.options.threads, config.tuned_threads, config.onnxsim) == (3, 3, True)
