"""Additive masks of attention: masked weights are zero and never denormal; all else stays bit for bit."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from edgevit.export.graph import OnnxGraph
from edgevit.export.ir_helpers import constant
from edgevit.export.passes import specialize
from edgevit.export.passes.underflow_masks import underflow_masks
from edgevit.types import Array
from tests.helpers.graphs import HEADER, noise, parse, run


def windows(masked: float) -> Array:
    """Return a mask (2, 1, 4, 4) that separates the tokens of the second window into two halves."""
    mask = np.zeros((2, 1, 4, 4), np.float32)
    mask[1, 0, :2, 2:] = mask[1, 0, 2:, :2] = masked
    return mask


def graph(body: str, *, mask: Array | None = None) -> OnnxGraph:
    return parse(
        f"{HEADER} g (float[2, 3, 4, 4] s) => (y) {{ {body} }}",
        mask=windows(-100.0) if mask is None else mask,
        bias=noise(1, 3, 4, 4),
        merged=np.asarray([6, 4, 4]),
        apart=np.asarray([2, 3, 4, 4]),
    )


def lowered(before: OnnxGraph) -> OnnxGraph:
    return before.apply("underflow_masks", underflow_masks)


MASKED = "m = Add (s, mask) y = Softmax <axis = -1> (m)"


@pytest.mark.parametrize(
    "body",
    [
        MASKED,
        "m = Add (mask, s) y = Softmax <axis = 3> (m)",
        "m = Add (s, mask) b = Add (m, bias) y = Softmax (b)",
        "b = Add (s, bias) m = Add (b, mask) r = Reshape (m, merged) y = Softmax (r)",
        "r = Reshape (s, merged) a = Reshape (r, apart) m = Add (a, mask) y = Softmax (m)",
    ],
)
def test_masked_weights_are_zero_and_the_others_are_the_same(body: str) -> None:
    before = graph(body)
    after = lowered(before)
    weights, old = (run(each)["y"] for each in (after, before))
    masked = np.broadcast_to(windows(-100.0) < 0, (2, 3, 4, 4)).reshape(weights.shape)
    assert 0 < np.exp(np.float64(-100)) < np.finfo(np.float32).tiny  # a denormal number, unless it is flushed to zero
    assert (weights[masked] == 0).all()
    np.testing.assert_array_equal(weights[~masked], old[~masked])
    assert after.operators == before.operators
    assert _constants(after) != _constants(before)


def test_a_mask_that_several_attentions_share_is_stored_once() -> None:
    after = lowered(graph("m = Add (s, mask) t = Softmax (m) n = Add (t, mask) y = Softmax (n)"))
    adds = [node for node in after.model.graph if node.op_type == "Add"]
    first, second = (next(value for value in node.inputs if constant(value) is not None) for node in adds)
    assert first is second


@pytest.mark.parametrize(
    ("body", "mask"),
    [
        (MASKED, windows(-79.0)),  # may be a bias that was learned
        (MASKED, windows(-1e4)),  # underflows as it is
        (MASKED, windows(-np.inf)),
        (MASKED, np.full((2, 1, 4, 4), -100, np.float32)),  # all tokens alike
        (MASKED, np.linspace(-100, 0, 8, dtype=np.float32).reshape(2, 1, 4, 1)),  # one number for a whole row
        ("m = Add (s, mask) y = Softmax <axis = 2> (m)", windows(-100.0)),
        ("m = Mul (s, mask) y = Softmax (m)", windows(-100.0)),
        ("m = Add (s, mask) t = Softmax (m) y = Add (t, m)", windows(-100.0)),  # the scores have another reader
        ("m = Add (s, mask) r = Relu (m) y = Softmax (r)", windows(-100.0)),
    ],
)
def test_others_stay(body: str, mask: Array) -> None:
    before = graph(body, mask=mask)
    after = lowered(before)
    assert _constants(after) == _constants(before)


def _constants(graph: OnnxGraph) -> set[str]:
    return {str(name) for name in graph.model.graph.initializers}


def test_a_reader_that_is_no_attention_keeps_the_mask() -> None:
    before = graph("m = Add (s, mask) t = Softmax (m) y = Add (t, mask)")
    after = lowered(before)
    assert run(after)["y"].min() == pytest.approx(-100.0)


@pytest.mark.parametrize(("fmt", "runs"), [("ort", True), ("onnx", True), ("openvino", False), ("trt", False)])
def test_the_formats_of_onnx_runtime_have_the_pass(fmt: str, runs: bool) -> None:
    found = specialize(graph(MASKED), fmt)
    values = [array for value in found.model.graph.initializers.values() if (array := _array(value)) is not None]
    assert any(array.min(initial=0) < -1000 for array in values) == runs


def _array(value: ir.Value) -> Array | None:
    return None if value.const_value is None else value.const_value.numpy()
