"""Folding the scale of a sum into its summands."""

from __future__ import annotations

import numpy as np
import pytest

from edgevit.export.graph import OnnxGraph
from edgevit.export.passes.fold_shortcut_scale import fold_shortcut_scale
from tests.helpers.graphs import HEADER, assert_same, noise, parse

_NORM = "normed = LayerNormalization <axis = -1, epsilon = 0.1> (y, gamma, beta)"
_SCALED = "again = Mul (y, d) out = Relu (again)"
_BRANCH = "h = MatMul (z, w) f = Add (h, b)"
_ROLLED = """h = MatMul (z, w) g = Add (h, b) t = Transpose <perm = [0, 2, 1]> (g)
    head = Slice (t, zero, two, axis) tail = Slice (t, two, five, axis)
    rolled = Concat <axis = 2> (tail, head) f = Transpose <perm = [0, 2, 1]> (rolled)"""


def _graph(body: str, *, scale: float = 0.3) -> OnnxGraph:
    return parse(
        f"{HEADER} g (float[N, 5, 4] x, float[N, 5, 3] z) => (float[N, 5, 4] normed, float[N, 5, 4] out) {{{body}}}",
        c=np.asarray(0.5, np.float32),
        d=np.asarray([scale], np.float32),
        w=noise(3, 4),
        b=noise(4),
        gamma=noise(4),
        beta=noise(4),
        zero=np.asarray([0]),
        two=np.asarray([2]),
        five=np.asarray([5]),
        axis=np.asarray([2]),
    )


@pytest.mark.parametrize("branch", [_BRANCH, _ROLLED, "h = MatMul (z, w) f = Add (b, h)", "f = MatMul (z, w)"])
@pytest.mark.parametrize("total", ["y = Add (scaled, f)", "y = Add (f, scaled)"])
@pytest.mark.parametrize("scale", [0.3, -2.0])
def test_the_scale_goes_into_the_shortcut_the_branch_and_the_norm(branch: str, total: str, scale: float) -> None:
    before = _graph(f"scaled = Mul (x, c) {branch} {total} {_NORM} {_SCALED}", scale=scale)
    after = before.apply("fold_shortcut_scale", fold_shortcut_scale)
    assert after.operators["Mul"] == 1 and len(after.model.graph) == len(before.model.graph) - 1
    assert_same(before, after)


_SUM = f"scaled = Mul (x, c) {_BRANCH} y = Add (scaled, f) {_NORM}"


@pytest.mark.parametrize(
    "body",
    [
        f"{_SUM} out = Relu (y)",  # no scale
        f"{_SUM} out = Mul (y, x)",  # not a constant
        f"{_SUM} out = Mul (y, d)",  # an output
        f"{_SUM} again = Mul (y, d) out = Add (again, y)",  # another reader of the sum
        f"{_SUM} again = Mul (y, d) out = Add (again, f)",  # of the branch
        f"{_SUM} again = Mul (y, d) out = Add (again, h)",  # of the product in the branch
        f"{_BRANCH} y = Add (x, f) {_NORM} {_SCALED}",  # nothing scales the shortcut
        f"scaled = Mul (x, b) {_BRANCH} y = Add (scaled, f) {_NORM} {_SCALED}",  # one scale per channel
        f"scaled = Mul (x, c) {_BRANCH} r = Relu (f) y = Add (scaled, r) {_NORM} {_SCALED}",  # not linear at its end
    ],
)
def test_other_sums_stay(body: str) -> None:
    before = _graph(body)
    after = before.apply("fold_shortcut_scale", fold_shortcut_scale)
    assert after.operators == before.operators
    assert_same(before, after, exact=True)


@pytest.mark.parametrize("scale", [0.0, -1e-4, 1e3, np.nan])
def test_scales_that_would_cost_accuracy_stay(scale: float) -> None:
    before = _graph(f"scaled = Mul (x, c) {_BRANCH} y = Add (scaled, f) {_NORM} {_SCALED}", scale=scale)
    after = before.apply("fold_shortcut_scale", fold_shortcut_scale)
    assert after.operators == before.operators
