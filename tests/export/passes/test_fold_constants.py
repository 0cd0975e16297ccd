"""Constant folding."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir
import pytest
import torch

import edgevit
from edgevit.export.capture import capture
from edgevit.export.check import check
from edgevit.export.graph import OnnxGraph
from edgevit.export.ir_helpers import constant
from edgevit.export.passes import optimize, specialize
from edgevit.export.passes.cleanup import cleanup
from edgevit.export.passes.fold_constants import fold_constants
from tests.helpers.graphs import HEADER, assert_same, noise, parse


def test_shape_arithmetic_is_folded() -> None:
    before = parse(
        f"""{HEADER} g (float[2, 4, 3] x) => (float[2, 12] y) {{
            shape = Shape (x)
            zero = Constant <value_ints = [0]> ()
            batch = Gather (shape, zero)
            rest = Constant <value_ints = [12]> ()
            target = Concat <axis = 0> (batch, rest)
            y = Reshape (x, target)
        }}"""
    )
    after = before.apply("fold_constants", fold_constants)
    assert dict(after.operators) == {"Reshape": 1}
    assert_same(before, after, exact=True)


def test_a_tiny_epsilon_stays() -> None:
    """onnxscript's default rules replace `x + 1e-8` by `x`; linear attention divides by it."""
    text = f"{HEADER} g (float[N, 4] x) => (float[N, 4] y) {{ y = Add (x, epsilon) }}"
    before = parse(text, epsilon=np.asarray(1e-8, np.float32))
    assert dict(before.apply("fold_constants", fold_constants).operators) == {"Add": 1}


def test_a_constant_that_is_split_is_no_message(caplog: pytest.LogCaptureFixture) -> None:
    graph = parse(
        f"""{HEADER} g (float[2] x) => (float[2] y) {{
            a, b = Split <num_outputs = 2> (w)
            c = Add (a, x)
            y = Add (b, c)
        }}""",
        w=noise(4),
    )
    folded = graph.apply("fold_constants", fold_constants)
    assert folded.operators["Split"] == 1
    assert caplog.records == []


@pytest.mark.parametrize("rewrite", [cleanup, fold_constants])
def test_a_branch_may_return_a_value_of_the_graph_around_it(rewrite: Callable[[ir.Model], None]) -> None:
    """Without its Identity it would have an output that none of its nodes produces."""
    before = parse(
        f"""{HEADER} g (float[N, 4] x) => (float[N, 4] y) {{
            r = Relu (x)
            first = Identity (r)
            total = ReduceSum <keepdims = 0> (first)
            condition = Cast <to = 9> (total)
            y = If (condition) <
                then_branch = then () => (float[N, 4] a) {{ a = Identity (r) }},
                else_branch = other () => (float[N, 4] b) {{ b = Neg (r) }}
            >
        }}"""
    )
    after = before.apply("rewrite", rewrite)
    assert after.operators["Identity"] == 1
    assert_same(before, after, exact=True)


@pytest.mark.parametrize("fmt", ["ort", "openvino", "trt"])
def test_projections_of_learned_tokens_are_computed_once(fmt: str) -> None:
    """Mobile-Former's first block projects tokens that do not depend on the photo."""
    module = edgevit.create_model("mobileformer_26m", img_size=64).eval()
    captured = check(capture(module, (torch.zeros(1, 3, 64, 64),)).graph)
    assert _reads_constants_only(captured)
    assert not _reads_constants_only(specialize(optimize(captured), fmt, precision="fp32"))


def _reads_constants_only(graph: OnnxGraph) -> list[str]:
    """Return the nodes with constant inputs alone, without those that are constants themselves."""
    inputs = {str(node.name): [value for value in node.inputs if value is not None] for node in graph.model.graph}
    return [name for name, values in inputs.items() if values and all(constant(value) is not None for value in values)]
