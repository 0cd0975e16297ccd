"""The options of an export of a tuned engine."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any, cast

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
        ("fp32", (None, None, None, (), "safe")),
        ("bf16", (None, LABELED, 0.02, (), "safe")),
        ("fp16", (CALIB, LABELED, 0.02, ("conv",), "safe")),
        ("int8", (CALIB, LABELED, 0.02, ("conv",), "full")),
    ],
)
def test_options_that_the_precision_does_not_take_are_left_out(
    precision: Precision, expected: tuple[object, ...]
) -> None:
    configuration = Configuration(variant=Variant(fmt="openvino", precision=precision), threads=3)
    choice = Choice(configuration=configuration, p50_ms=1.0, accuracy="", int8_range="full")
    tuned = TunedEngine(choice=choice, captured=cast(OnnxGraph, None), note="")
    export = partial(ExportConfig, onnxsim=True)
    given: dict[str, Any] = {"calib": CALIB, "max_drop": 0.02, "keep_float": ("conv",)}
    config = tuned.config(export, BuildOptions(batch=2), labeled=LABELED, **given)
    assert (config.calib, config.eval, config.max_drop, config.keep_float, config.int8_range) == expected
    assert (config.formats, config.options.precision, config.options.batch) == (("openvino",), precision, 2)
    assert (config.options.threads, config.tuned_threads, config.onnxsim) == (3, 3, True)
    without_labels = tuned.config(export, BuildOptions(), labeled=None, **given)
    assert without_labels.max_drop == (0.02 if precision == "int8" else None)
