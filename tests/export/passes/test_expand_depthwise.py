"""Depthwise convolutions with several outputs per channel as depthwise convolutions with one."""

from __future__ import annotations

import pytest

from edgevit.export.passes.expand_depthwise import expand_depthwise
from tests.helpers.graphs import HEADER, assert_same, noise, parse

DEPTHWISE = "y = Conv <group = 4, kernel_shape = [3, 3], pads = [1, 1, 1, 1], strides = [S, S]> (x, w, b)"
WEIGHTS = {"w": noise(12, 1, 3, 3, seed=2), "b": noise(12, seed=3)}
POINTWISE = "out = Conv (z, last)"


def graph(body: str, *, stride: int = 1) -> str:
    body = body.replace("S, S", f"{stride}, {stride}")
    return f"{HEADER} g (float[N, 4, 6, 6] x, float[N, 12, 1, 1] slope) => (float[N, 5, H, W] out) {{ {body} }}"


@pytest.mark.parametrize(("stride", "convolutions"), [(1, 1), (2, 3)])
@pytest.mark.parametrize(
    "between",
    [
        "z = Relu (y)",
        "a = Mul (y, slope) b1 = Mul (y, each) z = Max (a, b1)",
        "a = Add (y, number) z = Conv <group = 12> (a, scale)",
        (
            "split = Constant <value_ints = [0, 4, 3, -1]> () whole = Constant <value_ints = [0, 12, H, H]> ()"
            " a = Reshape (y, split) t = Transpose <perm = [0, 2, 1, 3]> (a) z = Reshape (t, whole)"
        ),
    ],
)
def test_the_readers_take_the_channels_in_another_order(between: str, stride: int, convolutions: int) -> None:
    body = f"{DEPTHWISE} {between} {POINTWISE}".replace("H, H", "6, 6" if stride == 1 else "3, 3")
    before = parse(
        graph(body, stride=stride),
        each=noise(1, 12, 1, 1),
        number=noise(1),
        scale=noise(12, 1, 1, 1, seed=4),
        last=noise(5, 12, 1, 1, seed=5),
        **WEIGHTS,
    )
    after = before.apply("expand_depthwise", expand_depthwise)
    groups = [node.attributes.get_int("group", 1) for node in after.model.graph if node.op_type == "Conv"]
    assert after.operators["Concat"] == 1 and after.operators["Transpose"] == 0
    assert after.operators["Conv"] == before.operators["Conv"] + convolutions - 1
    assert groups[0] == 12 // convolutions
    assert_same(before, after)


@pytest.mark.parametrize(
    "body",
    [
        f"{DEPTHWISE} z = Softmax <axis = 1> (y) {POINTWISE}",  # a reader that may depend on the order
        f"{DEPTHWISE} a = Add (y, image) z = Relu (a) {POINTWISE}",  # another operand of full size, in the old order
        f"{DEPTHWISE} z = Conv <group = 6> (y, pairs) {POINTWISE}",  # groups of two channels
        f"{DEPTHWISE} out = Identity (y)",  # the output
    ],
)
def test_a_convolution_whose_readers_need_its_order_stays(body: str) -> None:
    text = graph(body.replace("image", "y2"), stride=1)
    if "y2" in text:
        text = text.replace("float[N, 12, 1, 1] slope", "float[N, 12, 6, 6] y2")
    if "Identity" in text:
        text = text.replace("float[N, 5, H, W]", "float[N, 12, H, W]")
    before = parse(text, pairs=noise(12, 2, 1, 1), last=noise(5, 12, 1, 1, seed=5), **WEIGHTS)
    after = before.apply("expand_depthwise", expand_depthwise)
    assert after.operators == before.operators
    assert_same(before, after, exact=True)


def test_one_output_per_channel_stays() -> None:
    text = graph(f"y = Conv <group = 4> (x, w) z = Relu (y) {POINTWISE}")
    before = parse(text, w=noise(4, 1, 1, 1), last=noise(5, 4, 1, 1))
    assert before.apply("expand_depthwise", expand_depthwise).operators == before.operators
