"""Constant folding."""

from __future__ import annotations

import numpy as np
import pytest

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
