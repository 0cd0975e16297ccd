"""A module that is no function of its input is named, with the submodule that makes it so."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from edgevit.errors import ExportError
from edgevit.models.loading import from_module
from edgevit.models.reference import compute_references


class DropoutLeftOn(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return functional.dropout(x)


class NumpyNoise(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + float(np.random.standard_normal()) + random.random()


class Counter(nn.Module):
    count: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("count", torch.zeros(1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.count += 1
        return x + self.count


class MovingAverage(nn.Module):
    """Keeps its state in an attribute."""

    mean: torch.Tensor | float = 0.0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.mean = 0.9 * self.mean + 0.1 * x.mean(1, keepdim=True)
        return x - self.mean


class CallCounter(nn.Module):
    """Keeps state that its output does not depend on."""

    calls = 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        return x.masked_fill(x > 1, float("nan"))


def network(part: nn.Module) -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 4), nn.ModuleDict({"inner": part})["inner"], nn.Linear(4, 4))


@pytest.mark.parametrize(
    ("part", "reason"),
    [
        (DropoutLeftOn(), r": 1 \(DropoutLeftOn\) draws random numbers in eval mode: use self.training"),
        (NumpyNoise(), r": 1 \(NumpyNoise\) draws random numbers"),
        (Counter(), r": 1 \(Counter\) keeps state, as in 1.count, from one call to the next"),
        (MovingAverage(), r": 1 \(MovingAverage\) keeps state from one call"),
        (network(DropoutLeftOn()), r": 1.1 \(DropoutLeftOn\) draws"),
    ],
)
def test_the_submodule_and_its_kind_are_named(part: nn.Module, reason: str) -> None:
    model = from_module(network(part), example_input=torch.zeros(2, 4))
    states = torch.random.get_rng_state(), random.getstate()
    with pytest.raises(ExportError, match=reason):
        compute_references(model, ["y"])
    if isinstance(part, Counter):
        assert (states[0] == torch.random.get_rng_state()).all() and states[1] == random.getstate()
    compute_references(model, ["y"], verify=False)


def test_the_module_itself_is_named_if_no_submodule_is_to_blame() -> None:
    message = r"^counter gives different outputs for the same input, .*: Counter\.forward\(\) keeps"
    with pytest.raises(ExportError, match=message):
        compute_references(from_module(Counter(), example_input=torch.zeros(1, 4)), ["y"])


@pytest.mark.parametrize("part", [nn.Dropout(), nn.BatchNorm1d(4), CallCounter()])
def test_modules_that_are_functions_of_their_input_pass(part: nn.Module) -> None:
    module = network(part).eval()
    (reference,) = compute_references(from_module(module, example_input=torch.zeros(1, 4)), ["y"])
    (x,) = reference.inputs.values()
    assert reference.outputs["y"] == pytest.approx(module(torch.from_numpy(x)).detach().numpy(), rel=1e-6, nan_ok=True)


@pytest.mark.parametrize("seed", range(8))
def test_two_runs_that_agree_by_chance_do_not_hide_dropout(seed: int) -> None:
    """One value is dropped in every second run, so that half of all pairs agree."""
    module = nn.Sequential(nn.Linear(4, 1, bias=False), DropoutLeftOn())
    model = from_module(module, example_input=torch.zeros(1, 4))
    with torch.random.fork_rng([]), pytest.raises(ExportError, match=r": 1 \(DropoutLeftOn\) draws random numbers"):
        torch.manual_seed(seed)
        compute_references(model, ["y"])
