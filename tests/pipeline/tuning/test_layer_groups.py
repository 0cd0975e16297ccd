"""The precision of a group of layers: the other one only if it is shown to be faster, and half of the work in int8."""

from __future__ import annotations

from edgevit.export.quantization.groups import LayerGroup
from edgevit.pipeline.tuning.layer_groups import chosen_groups
from edgevit.pipeline.tuning.racing import Standing
from edgevit.types import Interval


def measured(low: float, high: float, *, in_int8: bool = True, fraction: float = 0.1) -> tuple[LayerGroup, Standing]:
    """Return a group, and the time of the engine with it in the other precision over the time of the engine."""
    name = f"conv-{low}-{high}"
    standing = Standing(
        name=name, p50_ms=1.0, images=1, ratio=(low + high) / 2, interval=Interval(low, high), runs=9, dropped=low > 1
    )
    return LayerGroup(name=name, in_int8=in_int8, fraction=fraction), standing


def test_a_group_moves_only_if_the_engine_is_shown_to_be_faster() -> None:
    groups = [measured(0.8, 0.9), measured(0.9, 1.1), measured(1.2, 1.3)]
    assert [choice.in_int8 for choice in chosen_groups(groups, 1.0)] == [False, True, True]


def test_a_group_that_the_rule_leaves_in_float_goes_to_int8_if_that_is_faster() -> None:
    groups = [measured(0.8, 0.9, in_int8=False), measured(0.9, 1.1, in_int8=False)]
    assert [(choice.in_int8, choice.moved) for choice in chosen_groups(groups, 0.8)] == [(True, True), (False, False)]


def test_the_ratio_is_that_of_int8_over_float() -> None:
    (to_float,) = chosen_groups([measured(0.5, 0.8)], 1.0)
    assert to_float.interval == Interval(1.25, 2.0)
    (to_int8,) = chosen_groups([measured(0.5, 0.8, in_int8=False)], 0.9)
    assert to_int8.interval == Interval(0.5, 0.8)


def test_the_groups_that_gain_most_leave_int8_until_half_of_the_work_is_left() -> None:
    groups = [measured(0.8, 0.9, fraction=0.3), measured(0.5, 0.6, fraction=0.4)]
    assert [choice.in_int8 for choice in chosen_groups(groups, 1.0)] == [True, False]
