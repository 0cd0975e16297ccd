"""Parity in fp32 tells a wrong graph from an ill-conditioned model: planted faults fail in both kinds of model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from edgevit.models.loading import from_module
from edgevit.models.reference import compute_references
from edgevit.runtimes.output_parity import OutputParity
from edgevit.runtimes.parity import compare
from edgevit.types import Array, Reference, Run

Step = Callable[[torch.Tensor], torch.Tensor]
WEIGHT = torch.randn(8, 8, generator=torch.Generator().manual_seed(1)) / 3


class Model(nn.Module):
    """Applies a step; an `offset` that is added and subtracted again costs float32 its last digits."""

    def __init__(self, step: Step, offset: float) -> None:
        super().__init__()
        self.step, self.offset = step, offset

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (self.step(x) + self.offset) - self.offset


WELL_CONDITIONED, ILL_CONDITIONED = 0.0, 2048.0


def mix(x: torch.Tensor) -> torch.Tensor:
    return x @ WEIGHT.to(x.dtype)


def residual(x: torch.Tensor) -> torch.Tensor:
    return x + 0.01 * torch.tanh(mix(x))


def norm(eps: float, std: float) -> Step:
    return lambda x: functional.layer_norm(std * x, (8,), eps=eps)


def resize(mode: str, align_corners: bool | None = None) -> Step:
    return lambda x: functional.interpolate(x, scale_factor=2, mode=mode, align_corners=align_corners)


# The right step and the wrong one.
FAULTS: dict[str, tuple[Step, Step]] = {
    "a transposed weight": (mix, lambda x: x @ WEIGHT.T.to(x.dtype)),
    "a dropped residual": (residual, lambda x: residual(x) - x),
    "a dropped branch of 1%": (residual, lambda x: x),
    "align_corners flipped": (resize("bilinear", False), resize("bilinear", True)),
    "nearest for bilinear": (resize("bilinear", False), resize("nearest")),
    "tanh GELU for erf": (functional.gelu, lambda x: functional.gelu(x, approximate="tanh")),
    "epsilon 1e-5 for 1e-6 at a standard deviation of 0.1": (norm(1e-6, 0.1), norm(1e-5, 0.1)),
    "epsilon 1e-5 for 1e-6 at a standard deviation of 1": (norm(1e-6, 1.0), norm(1e-5, 1.0)),
}
# Faults below what float32 allows. GELU's two forms differ by at most 5e-4, and an epsilon changes a normalized value
# by half its part of the variance: 5e-6 of it at a variance of 1.
TOO_SMALL = {
    ("epsilon 1e-5 for 1e-6 at a standard deviation of 1", WELL_CONDITIONED),
    ("epsilon 1e-5 for 1e-6 at a standard deviation of 1", ILL_CONDITIONED),
    ("tanh GELU for erf", ILL_CONDITIONED),
}


def reference_of(model: Model) -> Reference:
    (reference,) = compute_references(from_module(model, example_input=torch.zeros(1, 4, 8, 8)), ["y"])
    return reference


def in_float64(model: Model) -> Run:
    """An engine without rounding errors, which differs from PyTorch's float32 by all of PyTorch's error."""

    def run(feeds: Mapping[str, Array]) -> dict[str, Array]:
        return {"y": model(torch.from_numpy(feeds["x"]).double()).float().numpy()}

    return run


def result(engine: Run, reference: Reference) -> OutputParity:
    (found,) = compare("engine", engine, [reference], precision="fp32").results
    return found


@pytest.mark.parametrize("offset", [WELL_CONDITIONED, ILL_CONDITIONED])
@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_fails(fault: str, offset: float) -> None:
    right, wrong = FAULTS[fault]
    reference = reference_of(Model(right, offset))
    assert result(in_float64(Model(right, offset)), reference).passed
    failures = result(in_float64(Model(wrong, offset)), reference).failures
    assert bool(failures) == ((fault, offset) not in TOO_SMALL)


def test_an_ill_conditioned_model_passes_by_its_own_error_in_float32() -> None:
    model = Model(norm(1e-6, 1.0), ILL_CONDITIONED)
    reference = reference_of(model)
    found = result(in_float64(model), reference)
    own = found.float32_error_of_std
    assert found.passed and own is not None
    assert found.max_abs_of_std > 1e-4 and found.allowed_error_of_std == pytest.approx(4 * own)
    unknown = result(in_float64(model), replace(reference, float32_error={}))  # an older bundle
    assert unknown.failures == (f"max error {unknown.max_abs_of_std:.1e} std, allowed 0.0001",)


def test_both_figures_of_a_failure_are_named() -> None:
    model = Model(norm(1e-6, 1.0), ILL_CONDITIONED)
    found = result(lambda feeds: {"y": 1.003 * in_float64(model)(feeds)["y"]}, reference_of(model))
    assert "(the model's own float32 error is " in found.failures[0]


def test_a_large_float32_error_does_not_excuse_another_direction() -> None:
    """A model that branches on a rounded value may be off by anything in float32: the cosine still bounds it."""
    reference = replace(reference_of(Model(torch.tanh, 0.0)), float32_error={"y": 10.0})
    found = result(lambda feeds: {"y": np.tanh(feeds["x"]) + np.float32(0.5)}, reference)
    assert [failure.split()[0] for failure in found.failures] == ["cosine"]
