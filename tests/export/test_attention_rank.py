"""Attention of any rank is translated, with the same values."""

from __future__ import annotations

from pathlib import Path

import openvino
import pytest
import torch
from torch import nn
from torch.nn import functional

from edgevit.export import passes
from edgevit.export.attention_rank import reshape_attention_to_4d
from edgevit.export.capture import capture
from edgevit.export.check import check

ATTENTION = torch.ops.aten.scaled_dot_product_attention.default


class Attention(nn.Module):
    """Self-attention with a mask of a fixed shape; a query of `query_shape` replaces the input as the query."""

    def __init__(self, mask_shape: tuple[int, ...] | None, query_shape: tuple[int, ...] | None = None) -> None:
        super().__init__()
        self.mask = None if mask_shape is None else nn.Parameter(torch.randn(mask_shape))
        self.query = None if query_shape is None else nn.Parameter(torch.randn(query_shape))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        query = x if self.query is None else self.query
        return functional.scaled_dot_product_attention(query, x, x, attn_mask=self.mask, scale=0.5)


class Heads(nn.Module):
    """Attention alone."""

    def forward(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        return functional.scaled_dot_product_attention(query, key, value)


CASES = {
    "3D": (Attention(None), (2, 5, 8)),
    "3D with a mask": (Attention((5, 5)), (2, 5, 8)),
    "5D": (Attention(None), (2, 3, 4, 5, 8)),
    "5D with a mask of each head": (Attention((4, 5, 5)), (2, 3, 4, 5, 8)),
    "5D with a mask of each window": (Attention((3, 1, 5, 5)), (2, 3, 4, 5, 8)),
    "5D with one query": (Attention((1, 3, 1, 5, 5), (1, 3, 4, 5, 8)), (2, 3, 4, 5, 8)),
    "6D": (Attention((1, 2, 1, 5, 5)), (2, 3, 2, 4, 5, 8)),
}


@pytest.mark.parametrize("case", CASES)
def test_attention_that_is_not_4d_is_reshaped_exactly(case: str) -> None:
    module, shape = CASES[case]
    module.double()  # a 4D call may run another kernel, which rounds differently
    x = torch.randn(shape, dtype=torch.float64)
    with torch.no_grad():
        program = torch.export.export(module, (x,), dynamic_shapes=({0: torch.export.Dim("batch")},))
        reshape_attention_to_4d(program)
        calls = program.graph_module.graph.find_nodes(op="call_function", target=ATTENTION)
        assert [value.meta["val"].ndim for node in calls for value in node.args[:3]] == [4, 4, 4]
        torch.testing.assert_close(program.graph_module(*module.parameters(), x)[0], module(x))


@pytest.mark.parametrize("shape", [(1, 4, 16, 8), (1, 3, 4, 16, 8)], ids=["4D", "5D"])
def test_openvino_computes_attention_of_any_rank_in_one_layer(shape: tuple[int, ...], tmp_path: Path) -> None:
    example = [torch.randn(shape) for _ in range(3)]
    graph = passes.specialize(passes.optimize(capture(Heads(), example).graph), "openvino")
    check(graph).save(tmp_path / "model.onnx")
    layers = openvino.Core().compile_model(tmp_path / "model.onnx", "CPU").get_runtime_model().get_ops()
    operators = [str(layer.get_rt_info()["originalLayersNames"].astype(str)) for layer in layers]
    (fused,) = [names.strip(",").split(",") for names in operators if "Softmax" in names]
    assert len(fused) == 3  # the two matmuls and the softmax between them


def test_attention_that_is_4d_is_left_alone() -> None:
    program = torch.export.export(Attention(None), (torch.randn(2, 4, 5, 8),))
    before = str(program.graph_module.graph)
    reshape_attention_to_4d(program)
    assert str(program.graph_module.graph) == before


class LearnedBias(nn.Module):
    """Windowed attention with a relative position bias, as in BEiT and Swin."""

    index: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(32, 96)
        self.table = nn.Parameter(torch.randn(9, 4))
        self.register_buffer("index", torch.arange(25) % 9)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        bias = self.table[self.index].view(5, 5, 4).permute(2, 0, 1)[None]
        query, key, value = self.qkv(x).reshape(-1, 5, 3, 4, 8).permute(2, 0, 3, 1, 4).unbind(0)
        mixed = functional.scaled_dot_product_attention(query, key, value, attn_mask=bias)
        x = mixed.transpose(1, 2).reshape(-1, 5, 32)
        return functional.scaled_dot_product_attention(x, x, x)


def test_attention_with_a_learned_bias_and_attention_of_three_axes_are_translated() -> None:
    """With gradients enabled, PyTorch decomposes the learned bias into a view that does not fit."""
    graph = capture(LearnedBias(), [torch.randn(1, 5, 32)]).graph
    assert [node.op_type for node in graph.model.graph].count("Softmax") == 2
