"""The shift of a feature map as a depthwise convolution."""

from __future__ import annotations

import numpy as np
import pytest

from edgevit.export.check import check
from edgevit.export.forms import other_forms, specialize
from edgevit.export.graph import OnnxGraph
from edgevit.export.macs import graph_macs, graph_work
from edgevit.export.passes.shift_to_depthwise import shift_to_depthwise
from tests.helpers.graphs import HEADER, assert_same, parse

C, H, W = 10, 6, 8
MOVES = ((0, 1), (0, -1), (2, 0), (-1, 0))  # down and right, of two channels each; two stay


def part(start: int, down: int, right: int, *, count: int = 2, name: str, source: str = "x") -> str:
    """Text that moves channels of a map by slices and pads."""
    rows, columns = (max(0, -down), H - max(0, down)), (max(0, -right), W - max(0, right))
    pads = [0, 0, max(0, down), max(0, right), 0, 0, max(0, -down), max(0, -right)]
    constants = {
        "s": [start, rows[0], columns[0]],
        "e": [start + count, rows[1], columns[1]],
        "a": [1, 2, 3],
        "p": pads,
    }
    lines = [f"{name}{key} = Constant <value_ints = {values}> ()" for key, values in constants.items()]
    sliced = f"{name}c = Slice ({source}, {name}s, {name}e, {name}a)"
    return " ".join([*lines, sliced, f"{name} = Pad ({name}c, {name}p)"])


def shift(*parts: str, names: str = "k, l, m, n, o", axis: int = 1, channels: int = C) -> OnnxGraph:
    body = " ".join(parts)
    return parse(
        f"{HEADER} g (float[batch, {C}, {H}, {W}] x) => (float[batch, {channels}, {H}, {W}] y) {{"
        f" {body} y = Concat <axis = {axis}> ({names}) }}"
    )


MOVED = [part(2 * index, *move, name=name) for index, (move, name) in enumerate(zip(MOVES, "klmn", strict=True))]
REST = part(8, 0, 0, name="o")


def rewritten(graph: OnnxGraph) -> OnnxGraph:
    return check(graph).apply("shift_to_depthwise", shift_to_depthwise)


def test_a_shift_becomes_one_convolution() -> None:
    before = check(shift(*MOVED, REST))
    after = rewritten(before)
    assert dict(after.operators) == {"Conv": 1}
    assert_same(before, after, exact=True)


def test_moving_channels_is_no_work_of_the_model() -> None:
    after = rewritten(shift(*MOVED, REST))
    assert graph_macs(after) > 0  # as executed
    assert graph_work(after, batch=1).macs == 0


FIRST, OTHERS = MOVED[0], [*MOVED[1:], REST]
ONE = "one = Constant <value_float = 1.0> ()"
UNMOVED_ROW = ("[0, 0, 0]", "[0, 1, 0]"), ("[0, 0, 0, 1, 0, 0, 0, 0]", "[0, 0, 1, 1, 0, 0, 0, 0]")
OTHER_PARTS: dict[str, tuple[list[str], str]] = {
    "nothing moves": ([part(0, 0, 0, count=4, name="k"), part(4, 0, 0, count=6, name="l")], "k, l"),
    "two channels are missing": (MOVED, "k, l, m, n"),
    "another order": ([MOVED[0], MOVED[1], REST], "l, k, o"),
    "too far": ([part(0, 0, 4, count=C, name="k")], "k"),
    "the edge comes in": ([FIRST.replace("Pad (", 'Pad <mode = "edge"> ('), *OTHERS], "k, l, m, n, o"),
    "ones come in": ([ONE, FIRST.replace("kp)", "kp, one)"), *OTHERS], "k, l, m, n, o"),
    "a row is zero": ([FIRST.replace(*UNMOVED_ROW[0]).replace(*UNMOVED_ROW[1]), *OTHERS], "k, l, m, n, o"),
    "two maps": (["z = Relu (x)", FIRST.replace("(x,", "(z,"), *OTHERS], "k, l, m, n, o"),
}


@pytest.mark.parametrize("reason", OTHER_PARTS)
def test_other_concatenations_stay(reason: str) -> None:
    parts, names = OTHER_PARTS[reason]
    widths = {"nothing moves": C, "too far": C}
    before = check(shift(*parts, names=names, channels=widths.get(reason, 2 * len(names.split(",")))))
    assert rewritten(before).operators == before.operators


def test_a_concatenation_along_another_axis_stays() -> None:
    text = f"{HEADER} g (float[batch, {C}, {H}, {W}] x) => (float[batch, 2, 30, {W}] y) {{ "
    before = check(parse(f"{text} {' '.join([*MOVED, REST])} y = Concat <axis = 2> (k, l, m, n, o) }}"))
    assert rewritten(before).operators == before.operators


@pytest.mark.parametrize("fmt", ["ort", "openvino"])
def test_tune_tries_it_for_a_shift(fmt: str) -> None:
    graph = check(shift(*MOVED, REST))
    assert "depthwise-shift" in other_forms(graph, fmt)
    assert specialize(graph, fmt, "depthwise-shift").operators["Conv"] == 1
    assert np.prod([specialize(graph, fmt).operators[name] for name in ("Slice", "Pad", "Concat")]) > 0
