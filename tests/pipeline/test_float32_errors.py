"""A row near the tolerance is run in float64 too; one on which float32 determines nothing is left out."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import edgevit
from edgevit.models.loading import LoadedModel, from_module
from edgevit.models.reference import compute_references, float32_errors
from edgevit.models.reference_inputs import noise_inputs
from edgevit.pipeline.float32_errors import with_refined_errors
from edgevit.runtimes.parity import ParityReport, compare
from edgevit.types import Array, Reference, Run

SHAPE = (1, 8, 512)


class IllConditioned(nn.Module):
    """Adds a large number and subtracts it again, except for the first row of noise."""

    def __init__(self, offset: float) -> None:
        super().__init__()
        self.offset = offset
        self.first = float(noise_inputs([torch.zeros(SHAPE).numpy()])[0][0, 0, 0])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        offset = self.offset * (x[:, :1, :1] != self.first).to(x.dtype)
        return (x + offset).mean(2) - offset[:, :, 0]


def references_of(model: LoadedModel) -> tuple[Reference, ...]:
    return compute_references(model, ["y"])


def in_float64(offset: float, factor: float = 1.0) -> Run:
    """An engine without rounding errors; `factor` makes it wrong."""
    module = IllConditioned(offset)

    def run(feeds: Mapping[str, Array]) -> dict[str, Array]:
        return {"y": factor * module(torch.from_numpy(feeds["x"]).double()).float().numpy()}

    return run


def judged(run: Run, references: tuple[Reference, ...]) -> ParityReport:
    return compare("engine", run, references, precision="fp32")


def refined(model: LoadedModel, run: Run) -> tuple[Reference, ...]:
    references = references_of(model)
    return with_refined_errors(
        references, judged(run, references), lambda reference, rows: float32_errors(model, reference, rows)
    )


def test_an_ill_conditioned_row_after_the_first_passes_by_its_own_error() -> None:
    model, run = from_module(IllConditioned(512.0), example_input=torch.zeros(SHAPE)), in_float64(512.0)
    assert not judged(run, references_of(model)).passed
    references = refined(model, run)
    assert references[0].rows == 2 and judged(run, references).passed
    assert not judged(in_float64(512.0, factor=1.01), refined(model, in_float64(512.0, factor=1.01))).passed


def test_a_row_that_float32_does_not_determine_is_left_out(caplog: pytest.LogCaptureFixture) -> None:
    model, run = from_module(IllConditioned(2.0**17), example_input=torch.zeros(SHAPE)), in_float64(2.0**17)
    with caplog.at_level(logging.WARNING):
        (reference,) = refined(model, run)
    assert reference.rows == 1 and judged(run, (reference,)).passed
    assert "row 2 of noise is left out of the comparison: float32 does not determine its result" in caplog.text


def test_a_well_conditioned_model_is_not_run_again() -> None:
    model, run = from_module(IllConditioned(0.0), example_input=torch.zeros(SHAPE)), in_float64(0.0)
    references = references_of(model)

    def unexpected(*asked: object) -> dict[int, dict[str, float]]:
        raise AssertionError(asked)

    assert with_refined_errors(references, judged(run, references), unexpected) == references


def test_an_export_measures_the_rows_that_need_it(tmp_path: Path) -> None:
    """The graph sums in another order than PyTorch, so that the second row is off by more than the tolerance."""
    bundle = edgevit.export(
        IllConditioned(512.0), fmt="onnx", example_input=torch.zeros(SHAPE), out=tmp_path, latency=False
    )
    (reference,) = bundle.references()
    assert reference.float32_error["output"] > 1e-6


class Offset(nn.Module):
    """Keeps about one digit of its signal in float32."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (0.1 * x).mean(2) + 1e4


def test_a_model_of_which_float32_determines_no_row_stays_with_a_warning() -> None:
    model = from_module(Offset(), example_input=torch.zeros(SHAPE))

    def rounded_otherwise(feeds: Mapping[str, Array]) -> dict[str, Array]:
        return {"y": Offset()(torch.from_numpy(feeds["x"])).numpy() + np.float32(2**-10)}

    references = refined(model, rounded_otherwise)
    report = judged(rounded_otherwise, references)
    assert references[0].rows == 2 and report.passed
    assert any("float32 does not determine output y" in warning for warning in report.warnings)
