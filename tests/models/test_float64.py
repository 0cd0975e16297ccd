"""PyTorch's own float32 error: any module runs in float64, or the run says why not."""

from __future__ import annotations

import logging

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from edgevit.models.float64 import run_in_float64
from edgevit.models.loading import from_module
from edgevit.models.reference import compute_references


class Everything(nn.Module):
    """Weights, a constant that is no buffer, a cast to float32, an assignment in place, attention and recurrence."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.recurrent = nn.LSTM(8, 8, batch_first=True)
        self.linear = nn.Linear(8, 8)
        self.constant = torch.rand(8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.depthwise(self.norm(self.conv(x))).flatten(2).transpose(1, 2)
        x = self.recurrent(self.attention(x, x, x)[0] + x)[0]
        x = functional.layer_norm(self.linear(x).float() * self.constant, (8,))
        out = torch.zeros(x.shape[:1].numel(), *x.shape[1:])  # a torch.Size stays one
        out[:, 1:] = functional.scaled_dot_product_attention(x, x, x)[:, :-1]
        return out + torch.arange(8, dtype=torch.float32)


class WritesToItsInput(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x[:, 0] = 3 * x[:, 0]
        x[:, 1] -= 0.3
        x.mul_(2)
        return x


class WritesToABuffer(nn.Module):
    scratch: torch.Tensor
    total: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("scratch", torch.zeros(2, 4, 5, 5))
        self.register_buffer("total", torch.zeros(2, 4, 5, 5))
        self.plain = torch.zeros(2, 4, 5, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.scratch.copy_(x)
        self.scratch[:, 0] = x[:, 1]
        self.scratch[:, 2].add_(1)
        self.total *= 0
        self.total += self.scratch
        self.plain *= 0
        self.plain += self.total
        return self.plain.flatten(1).relu()


def tensors_of(module: nn.Module) -> list[torch.Tensor]:
    return [*module.buffers(), *(value for value in vars(module).values() if isinstance(value, torch.Tensor))]


class Cancel(nn.Module):
    """Adds a large number and subtracts it again."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (x + 4096.0) - 4096.0


class NeedsFloat32(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.mul(1).dtype != torch.float32:
            raise TypeError("only float32 here")
        return x


@pytest.mark.parametrize("exported", [False, True])
def test_the_result_is_that_of_a_converted_module(exported: bool) -> None:
    module = nn.Sequential(nn.Conv2d(4, 8, 3), nn.BatchNorm2d(8), nn.Conv2d(8, 8, 3, groups=2), nn.Linear(9, 5)).eval()
    x = torch.rand(2, 4, 13, 13)
    run = torch.export.export(module, (x,)).module() if exported else module
    found = run_in_float64(run, [x], limit_s=60)
    torch.testing.assert_close(found, module.double()(x.double()), rtol=1e-12, atol=1e-12)


def test_any_module_runs_in_float64_and_keeps_its_weights() -> None:
    module, x = Everything().eval(), torch.randn(2, 4, 5, 5)
    found = run_in_float64(module, [x], limit_s=60)
    assert found.dtype == torch.float64
    assert 0 < (found - module(x)).abs().max() < 1e-4
    assert module.linear.weight.dtype == module.constant.dtype == torch.float32


@pytest.mark.parametrize("module", [WritesToItsInput(), WritesToABuffer()])
def test_writes_in_place_last_as_long_as_the_run(module: nn.Module) -> None:
    x = torch.randn(2, 4, 5, 5)
    expected = module(x.clone())
    given, state = x.clone(), tensors_of(module)
    contents = [value.clone() for value in state]
    found = run_in_float64(module, [given], limit_s=60)
    assert found.dtype == torch.float64
    torch.testing.assert_close(found, expected.double(), rtol=1e-6, atol=1e-6)
    assert torch.equal(given, x)
    assert all(value is same for value, same in zip(tensors_of(module), state, strict=True))
    assert all(torch.equal(value, content) for value, content in zip(state, contents, strict=True))


@pytest.mark.parametrize("module", [WritesToItsInput(), WritesToABuffer()])
def test_a_module_that_writes_in_place_has_the_float32_error_of_any_other(module: nn.Module) -> None:
    model = from_module(module, example_input=torch.zeros(2, 4, 5, 5))
    (reference,) = compute_references(model, ["y"])
    assert reference.float32_error["y"] < 1e-5


def test_the_float32_error_is_measured_for_each_kind_of_input() -> None:
    model = from_module(Cancel(), example_input=torch.zeros(1, 3, 8, 8))
    for reference in compute_references(model, ["y"]):
        assert 1e-4 < reference.float32_error["y"] <= 4096 * np.finfo(np.float32).eps
        assert reference.outputs["y"].dtype == np.float32


def test_the_error_of_finite_values_alone_counts() -> None:
    module = nn.Sequential(Cancel(), nn.Threshold(0.0, -float("inf")))
    (reference,) = compute_references(from_module(module, example_input=torch.zeros(1, 64)), ["y"])
    assert 0 < reference.float32_error["y"] < 1e-3


def test_a_module_that_needs_float32_is_judged_without_its_error_and_says_so(caplog: pytest.LogCaptureFixture) -> None:
    model = from_module(NeedsFloat32(), example_input=torch.zeros(1, 8))
    with caplog.at_level(logging.WARNING):
        (reference,) = compute_references(model, ["y"])
    assert reference.float32_error == {}
    (message,) = caplog.messages
    assert message.startswith("edgevit: needsfloat32 was not run in float64 (TypeError: only float32 here): ")


def test_the_time_in_float64_is_limited() -> None:
    with pytest.raises(TimeoutError):
        run_in_float64(nn.Linear(4, 4), [torch.zeros(1, 4)], limit_s=0)
