"""Calls of submodules are recorded with their tensors, and repeated with others."""

from __future__ import annotations

import torch
from torch import nn

from edgevit.models.recording import Recording


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.twice, self.relu = Times(2.0), nn.ReLU(inplace=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.twice(self.relu(self.twice(x, extra={"shift": x})), extra={"shift": -x})
        return found + 1


class Times(nn.Module):
    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, x: torch.Tensor, *, extra: dict[str, torch.Tensor]) -> torch.Tensor:
        return self.factor * x + extra["shift"]


X = torch.tensor([[1.0, -1.0]])


def test_calls_are_recorded_in_the_order_in_which_they_end() -> None:
    calls = Recording(Net(), [X]).calls
    assert [(call.path, call.index, call.kind) for call in calls] == [
        ("twice", 0, "Times"), ("relu", 0, "ReLU"), ("twice", 1, "Times"), ("", 0, "Net"),
    ]  # fmt: skip
    assert all(call.is_in(calls[-1]) for call in calls[:-1]) and not calls[0].is_in(calls[1])


def test_tensors_are_those_before_a_later_module_changes_them_in_place() -> None:
    first, relu, *_ = Recording(Net(), [X]).calls
    assert first.outputs[0].tolist() == relu.inputs[0].tolist() == [[3.0, -3.0]]
    assert relu.outputs[0].tolist() == [[3.0, 0.0]]
    assert first.written == relu.read == relu.written


def test_a_call_is_repeated_with_other_inputs() -> None:
    recording = Recording(Net(), [X])
    (result,) = recording.repeat(recording.calls[0], inputs={1: torch.zeros(1, 2)})
    assert result.tolist() == [[2.0, -2.0]]
    assert recording.repeat(recording.calls[0])[0].tolist() == [[3.0, -3.0]]


def test_one_call_of_several_is_replaced() -> None:
    recording = Recording(Net(), [X])
    (result,) = recording.repeat(recording.whole, results={recording.calls[2]: (torch.full((1, 2), 5.0),)})
    assert result.tolist() == [[6.0, 6.0]]
    (result,) = recording.repeat(recording.whole, results={recording.calls[0]: (torch.full((1, 2), 5.0),)})
    assert result.tolist() == [[10.0, 12.0]]
    assert recording.repeat(recording.whole)[0].tolist() == [[6.0, 2.0]]
