"""Garbage is collected rarely while a module is captured and passes run, and as before afterwards."""

from __future__ import annotations

import gc

import onnx_ir as ir
import pytest
import torch
from torch import nn

from edgevit.export.capture import capture
from edgevit.export.garbage import rare_collection
from edgevit.export.graph import OnnxGraph
from tests.helpers.graphs import HEADER, parse


def test_thresholds_return_after_a_failure() -> None:
    before = gc.get_threshold()

    with pytest.raises(ValueError, match="broken"), rare_collection():
        assert gc.get_threshold() > before
        raise ValueError("broken")

    assert gc.get_threshold() == before


def test_capture_collects_rarely() -> None:
    seen = []

    class Model(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            seen.append(gc.get_threshold())
            return x + 1

    before = gc.get_threshold()
    capture(Model(), (torch.zeros(1, 2),))

    assert min(seen) > before
    assert gc.get_threshold() == before


def test_passes_collect_rarely() -> None:
    seen = []

    def look(model: ir.Model) -> None:
        seen.append((gc.get_threshold(), len(model.graph)))

    graph: OnnxGraph = parse(f"{HEADER} g (float[1] x) => (float[1] y) {{ y = Relu(x) }}")
    graph.apply("look", look)

    assert seen[0] > (gc.get_threshold(), 1)
