"""Every kind of third-party architecture is exported, with a dynamic batch, and equals PyTorch at each stage."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

import edgevit
from edgevit.models.initialization import randomize
from tests.helpers.kinds import KINDS, SIDE


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_a_kind_of_architecture_is_exported(kind: Callable[[], nn.Module], tmp_path: Path) -> None:
    module = kind().eval()
    randomize(module, seed=0)
    bundle = edgevit.export(
        module, fmt="ort", example_input=torch.zeros(1, 3, SIDE, SIDE), dynamic_batch=(1, 2, 3), out=tmp_path
    )
    parity = bundle.manifest.parity
    assert parity is not None and parity["passed"]
    expected = {"UNet": ["out", "aux"], "Detr": ["logits", "pred_boxes"]}.get(type(module).__name__)
    if expected is not None:
        assert [spec.name for spec in bundle.manifest.outputs] == expected
