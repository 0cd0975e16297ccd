"""Moving the scale of attention to the query."""

from __future__ import annotations

import numpy as np
import pytest

from edgevit.export.passes.cleanup import cleanup
from edgevit.export.passes.push_scale_to_query import push_scale_to_query
from tests.helpers.graphs import HEADER, assert_same, noise, parse


@pytest.mark.parametrize("scaling", ["Mul (scores, c)", "Mul (c, scores)", "Div (scores, c)"])
@pytest.mark.parametrize("mask", ["Identity (scaled)", "Add (scaled, bias)", "Add (bias, scaled)"])
def test_the_query_is_scaled_before_the_product(scaling: str, mask: str) -> None:
    before = parse(
        f"""{HEADER} g (float[N, 2, 5, 4] q, float[N, 2, 4, 5] k) => (float[N, 2, 5, 5] y) {{
            scores = MatMul (q, k)
            scaled = {scaling}
            masked = {mask}
            y = Softmax <axis = -1> (masked)
        }}""",
        c=np.asarray(0.3, np.float32),
        bias=noise(5, 5),
    ).apply("cleanup", cleanup)
    after = before.apply("push_scale_to_query", push_scale_to_query)
    names = [node.op_type for node in after.model.graph]
    assert names.index("Mul") < names.index("MatMul") and names.count("Mul") == 1 and "Div" not in names
    assert_same(before, after)


@pytest.mark.parametrize(
    "body",
    [
        "scores = MatMul (q, k) scaled = Mul (scores, c) y = Relu (scaled)",  # not attention
        "scores = MatMul (q, k) scaled = Div (c, scores) y = Softmax (scaled)",  # not linear
        "scores = MatMul (q, k) scaled = Mul (scores, each) y = Softmax (scaled)",  # not a scalar
        "scores = MatMul (q, k) scaled = Mul (scores, c) s = Softmax (scaled) y = Add (s, scores)",  # other consumers
        "scores = MatMul (q, w) scaled = Mul (scores, c) y = Softmax (scaled)",  # constant weights
    ],
)
def test_other_scaled_products_stay(body: str) -> None:
    before = parse(
        f"{HEADER} g (float[N, 5, 4] q, float[N, 4, 5] k) => (float[N, 5, 5] y) {{ {body} }}",
        c=np.asarray(0.3, np.float32),
        each=noise(5),
        w=noise(4, 5),
    )
    after = before.apply("push_scale_to_query", push_scale_to_query)
    assert after.operators == before.operators
    assert [node.op_type for node in after.model.graph] == [node.op_type for node in before.model.graph]
