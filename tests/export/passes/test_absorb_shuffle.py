"""Channel shuffles between convolutions disappear into their weights; others stay."""

from __future__ import annotations

import pytest

from edgevit.export import passes
from edgevit.export.graph import OnnxGraph
from edgevit.export.macs import graph_macs, graph_work
from edgevit.export.passes.absorb_shuffle import absorb_shuffle
from edgevit.export.passes.cleanup import cleanup
from tests.helpers.graphs import HEADER, assert_same, noise, parse

SHAPES = "split = Constant <value_ints = [0, 4, 3, -1]> () whole = Constant <value_ints = [0, 12, 5, 6]> ()"
# Of 4 groups of 3 channels.
SHUFFLE = f"{SHAPES} pairs = Reshape (y, split) swapped = Transpose <perm = [0, 2, 1, 3]> (pairs)"
SHUFFLE += " z = Reshape (swapped, whole)"
MOVED = SHUFFLE.replace("[0, 2, 1, 3]", "[0, 2, 3, 1]")
GROUPED = "y = Conv <group = 4> (x, narrow, b)"  # 8 to 12 channels
RECTIFIED = f"{GROUPED.replace('y', 'r', 1)} y = Relu (r)"
DENSE = "y = Conv (x, wide, b)"
DEPTHWISE = "a = Conv <group = 12, kernel_shape = [3, 3], pads = [1, 1, 1, 1]> (z, each, b)"
DYNAMIC = (  # max(a1 x, a2 x) with slopes computed by a linear layer
    "h = Gemm <transB = T> (slopes, linear, hb) axes = Constant <value_ints = [2, 3]> () k = Unsqueeze (h, axes)"
    " k1, k2 = Split <axis = 1, num_outputs = 2> (k) c1 = Clip (k1, low, high) m1 = Mul (z, c1) m2 = Mul (k2, z)"
    " a = Max (m1, m2)"
)


def graph(body: str, *, outputs: int = 4, batch: str = "N", transposed: bool = False) -> OnnxGraph:
    """A graph of maps of 5 x 6 pixels, from 8 channels."""
    header = f"{HEADER} g (float[{batch}, 8, 5, 6] x, float[{batch}, 7] slopes) => "
    weights = {
        "narrow": noise(12, 2, 1, 1),
        "wide": noise(12, 8, 1, 1, seed=2),
        "b": noise(12, seed=3),
        "each": noise(12, 1, 3, 3, seed=4),
        "last": noise(4, 12, 1, 1, seed=5),
        "groups": noise(4, 3, 1, 1, seed=6),
        "many": noise(480, 3, 1, 1, seed=7),
        "linear": noise(24, 7, seed=8) if transposed else noise(7, 24, seed=8),
        "hb": noise(24, seed=9),
        "slope": noise(12, 1, 1),
        "low": noise(seed=10, offset=-1),
        "high": noise(seed=11, offset=1),
    }
    text = f"{header} (float[{batch}, {outputs}, 5, 6] out) {{ {body.replace('= T>', f'= {int(transposed)}>')} }}"
    return parse(text, **weights).apply("cleanup", cleanup)


def absorbed(before: OnnxGraph) -> OnnxGraph:
    return before.apply("absorb_shuffle", absorb_shuffle)


def groups_of(after: OnnxGraph) -> list[int | None]:
    return [node.attributes.get_int("group", 1) for node in after.model.graph if node.op_type == "Conv"]


@pytest.mark.parametrize("batch", ["2", "N"])
@pytest.mark.parametrize(
    ("body", "groups"),
    [
        pytest.param(f"{GROUPED} {SHUFFLE} out = Conv (z, last)", [4, 1], id="a dense reader"),
        pytest.param(f"{DENSE} {SHUFFLE} out = Conv <group = 4> (z, groups)", [1, 4], id="a dense convolution before"),
        pytest.param(f"{GROUPED} {SHUFFLE} out = Conv <group = 4> (z, groups)", [4, 1], id="a grouped reader"),
        pytest.param(
            f"{GROUPED} {SHUFFLE} {DEPTHWISE} out = Conv <group = 4> (a, groups)",
            [4, 12, 1],
            id="across a depthwise one",
        ),
        pytest.param(
            f"{GROUPED} {SHUFFLE} s = Mul (z, slope) a = Relu (s) p = Conv (a, last) q = Conv <group = 4> (z, groups)"
            " out = Add (p, q)",
            [4, 1, 1],
            id="several readers",
        ),
    ],
)
def test_a_shuffle_is_absorbed_by_the_weights(body: str, groups: list[int], batch: str) -> None:
    before = graph(body, batch=batch)
    after = absorbed(before)
    assert before.operators - after.operators == {"Reshape": 2, "Transpose": 1}
    assert groups_of(after) == groups
    assert_same(before, after)


def test_the_outputs_are_reordered_if_a_reader_needs_its_order() -> None:
    before = graph(f"{GROUPED} {SHUFFLE} out = Softmax <axis = 1> (z)", outputs=12)
    after = absorbed(before)
    assert groups_of(after) == [1] and after.operators["Transpose"] == 0
    assert_same(before, after)


def test_one_dense_convolution_absorbs_the_shuffles_on_both_sides() -> None:
    between = "y2 = Conv <group = 4> (z, wide2)"
    second = SHUFFLE.partition("() pairs")[2].replace("y,", "y2,").replace("z =", "out =")
    second = "() pairs2" + second.replace("pairs,", "pairs2,").replace("(pairs)", "(pairs2)").replace(
        "swapped", "swapped2"
    )
    body = f"{GROUPED} {SHUFFLE} {between} {second.removeprefix('() ')}"
    before = parse(
        f"{HEADER} g (float[N, 8, 5, 6] x) => (float[N, 12, 5, 6] out) {{ {body} }}",
        narrow=noise(12, 2, 1, 1), b=noise(12, seed=3), wide2=noise(12, 3, 1, 1, seed=4),
    )  # fmt: skip
    after = absorbed(before)
    assert after.operators == {"Conv": 2} and groups_of(after) == [4, 1]
    assert_same(before, after)


@pytest.mark.parametrize("transposed", [False, True])
def test_the_slopes_of_a_dynamic_relu_follow_in_the_weights_of_their_linear_layer(transposed: bool) -> None:
    before = graph(f"{GROUPED} {SHUFFLE} {DYNAMIC} out = Conv (a, last)", transposed=transposed)
    after = absorbed(before)
    assert after.operators["Transpose"] == after.operators["Gather"] == 0
    assert_same(before, after)


@pytest.mark.parametrize(
    "shared",
    [
        "k1, k2 = Split <axis = 1, num_outputs = 2> (h) out2 = Relu (h)",
        "k1, k2 = Split <axis = 0, num_outputs = 2> (h)",
        "k1 = Relu (h) out2 = Relu (k1)",
    ],
)
def test_numbers_per_channel_that_others_read_are_gathered(shared: str) -> None:
    one = "axis0" if "axis = 0" in shared else "axis1"
    before = parse(
        f"{HEADER} g (float[{2 if one == 'axis0' else 1}, 7] slopes, float[1, 8, 5, 6] x) =>"
        f" (float[1, 4, 5, 6] out, float[1, R] out2) {{ {GROUPED} {SHUFFLE} h = Gemm (slopes, linear)"
        f" {shared if 'out2' in shared else shared + ' out2 = Relu (k2)'} axes = Constant <value_ints = [2, 3]> ()"
        " c = Unsqueeze (k1, axes) m = Mul (z, c) out = Conv (m, last) }",
        narrow=noise(12, 2, 1, 1), b=noise(12, seed=3), last=noise(4, 12, 1, 1, seed=5),
        linear=noise(7, 24 if "num_outputs" in shared and one == "axis1" else 12, seed=8),
    )  # fmt: skip
    after = absorbed(before)
    assert after.operators["Transpose"] == 0
    assert after.operators["Gather"] == 1
    assert_same(before, after)


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(f"{RECTIFIED} {SHUFFLE} out = Conv <group = 4> (z, many)", id="360 products more for each number"),
        pytest.param(f"{RECTIFIED} {SHUFFLE} a = Softmax <axis = 1> (z) out = Conv (a, last)", id="no convolution"),
        pytest.param(
            f"{DENSE} {SHUFFLE} a = Softmax <axis = 1> (z) p = Conv (a, last) q = Conv (y, last) out = Add (p, q)",
            id="another reader of the convolution",
        ),
        pytest.param(
            f"{DENSE} {MOVED} a = Softmax <axis = 1> (z) out = Conv (a, last)",
            id="another permutation",
        ),
    ],
)
def test_other_shuffles_stay(body: str) -> None:
    before = graph(body, outputs=480 if "many" in body else 4)
    after = absorbed(before)
    assert after.operators == before.operators
    assert_same(before, after, exact=True)


def test_zeros_between_the_groups_are_no_work_of_the_model() -> None:
    before = graph(f"{GROUPED} {SHUFFLE} out = Conv <group = 4> (z, groups)", batch="1")
    after = absorbed(before)
    assert graph_work(after, batch=1).macs == graph_work(before, batch=1).macs == 30 * (12 * 2 + 4 * 3)
    assert graph_macs(after) == 30 * (12 * 2 + 4 * 12)


@pytest.mark.parametrize(("fmt", "count"), [("openvino", 0), ("trt", 0), ("ort", 1), ("onnx", 1)])
def test_onnx_runtime_is_no_faster_without_shuffles(fmt: str, count: int) -> None:
    before = passes.optimize(graph(f"{GROUPED} {SHUFFLE} out = Conv (z, last)", batch="1"))
    assert passes.specialize(before, fmt).operators["Transpose"] == count
