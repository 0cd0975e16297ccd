"""NVIDIA's compiler accepts the graphs of each kind of detector and segmenter, for both of its runtimes."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import nn

from edgevit.export import passes
from edgevit.export.capture import capture
from edgevit.export.lint.findings import has_errors
from edgevit.export.lint.rules import lint
from edgevit.export.lint.targets import parse_target
from edgevit.runtimes.tensorrt_rtx.kernels import plan
from tests.helpers.dense_models import SIZE, small_retinanet, small_semantic_fpn, small_upernet, small_vt_fpn
from tests.helpers.skips import needs_rtx

KINDS: dict[str, Callable[[], nn.Module]] = {
    "boxes": small_retinanet,
    "topk": partial(small_retinanet, topk=20),
    "nms": partial(small_retinanet, outputs="nms", max_detections=2),
    "classes": partial(small_semantic_fpn, outputs="classes"),
    "upernet": small_upernet,
    "vt_fpn": small_vt_fpn,
}


@needs_rtx
@pytest.mark.parametrize(
    "kind", [pytest.param(kind, marks=() if kind == "classes" else pytest.mark.large) for kind in KINDS]
)
def test_the_compiler_accepts_the_graphs(kind: str, tmp_path: Path) -> None:
    graph = passes.optimize(capture(KINDS[kind](), (torch.randn(1, 3, *SIZE),), input_names=["images"]).graph)
    for fmt in ("trt", "trt-rtx"):
        lowered = passes.specialize(graph, fmt)
        lowered.save(tmp_path / f"{fmt}.onnx")
        assert plan(tmp_path / f"{fmt}.onnx").totals.kernels
    assert not has_errors(lint(passes.specialize(graph, "trt"), parse_target("trt")))
