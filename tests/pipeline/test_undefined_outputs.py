"""A model whose own outputs are NaN or infinite is no reference: nothing would be compared, and parity would pass."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import edgevit
from edgevit.bundles.verify import verify
from edgevit.errors import ExportError, ParityError
from edgevit.runtimes.parity import undefined_output
from edgevit.types import Reference
from tests.helpers.cli import last_line, status
from tests.helpers.graphs import HEADER, noise, parse

IMAGE = torch.zeros(1, 3, 2, 2)


class Classifier(nn.Module):
    """A linear classifier with one value of one parameter replaced."""

    def __init__(self, place: str = "", value: float = 0.0) -> None:
        super().__init__()
        self.f = nn.Linear(12, 4)
        self.divisor = 0 if place == "divisor" else 1
        if place in ("weight", "bias"):
            self.f.get_parameter(place).data.view(-1)[3] = value

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.f(x.flatten(1)) / self.divisor
        return y


class LogNoise(nn.Module):
    """Has a logarithm for all values of photos, but not of noise."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.log(x.flatten(1) + 3)


@pytest.mark.parametrize(
    ("module", "reason"),
    [
        (Classifier("weight", math.nan), "contains NaN on photos; f.weight holds NaN or infinity"),
        (Classifier("bias", math.nan), "contains NaN on photos; f.bias holds NaN or infinity"),
        (Classifier("bias", math.inf), "contains infinity on photos; f.bias holds NaN or infinity"),
        (Classifier("divisor"), "has no finite value on photos; look in forward"),
    ],
)
def test_an_export_names_the_weights_that_make_the_outputs_undefined(
    module: nn.Module, reason: str, tmp_path: Path
) -> None:
    """Parity passed with an error of 2e-07 over what was left."""
    with pytest.raises(ExportError, match=reason) as caught:
        edgevit.export(module, fmt="ort", example_input=IMAGE, latency=False, out=tmp_path)
    assert "no engine can be compared with the outputs of PyTorch" in str(caught.value)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("module", [Classifier("bias", -math.inf), LogNoise()])
def test_masks_and_noise_outside_a_domain_are_exported(module: nn.Module, tmp_path: Path) -> None:
    bundle = edgevit.export(module, fmt="ort", example_input=IMAGE, latency=False, out=tmp_path)
    assert verify(bundle).passed


def test_verify_has_nothing_to_compare_with_undefined_outputs(tmp_path: Path) -> None:
    module = Classifier("weight", math.nan)
    bundle = edgevit.export(module, fmt="ort", example_input=IMAGE, verify=False, out=tmp_path)
    with pytest.raises(ParityError, match="no engine can be compared with the reference outputs: output .* NaN"):
        verify(bundle)


@pytest.mark.parametrize("command", ["export", "optimize"])
def test_an_onnx_file_names_its_weights_too(command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    head = noise(5, 12)
    head[2, 3] = np.nan
    text = f"""{HEADER} g (float[batch, 3, 2, 2] images) => (float[batch, 5] logits) {{
        a = Flatten (images)
        logits = Gemm <transB = 1> (a, head)
    }}"""
    parse(text, head=head).save(tmp_path / "net.onnx")
    assert status(command, tmp_path / "net.onnx", "--fmt", "ort", "--out", tmp_path / "out") == 4
    assert "the outputs of the file: output logits contains NaN" in (line := last_line(capsys))
    assert "; head holds NaN or infinity" in line


def test_noise_alone_proves_something_with_single_finite_values() -> None:
    values = np.array([[1.0, np.nan, -np.inf]], np.float32)
    partly, nothing = (
        [Reference(kind="noise", inputs={"x": values}, outputs={"y": outputs})]
        for outputs in (values, np.full_like(values, -np.inf))
    )
    assert undefined_output(partly) == ""
    assert undefined_output(partly, strict=True) == "output y contains NaN on noise"
    assert undefined_output(nothing) == "output y has no finite value on noise"
