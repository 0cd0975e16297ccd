"""Choose the layers that run in int8 by the time of the engine with each group of layers in the other precision."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from edgevit.bundles.manifest import Manifest
from edgevit.export.quantization.groups import GroupChoice, LayerGroup
from edgevit.export.quantization.sensitivity import COSTS_ACCURACY, MIN_INT8_FRACTION
from edgevit.node_names import module_of_name
from edgevit.pipeline.tuning.racing import Standing
from edgevit.pipeline.tuning.space import Variant
from edgevit.types import Interval


def trial_of(variant: Variant, group: LayerGroup, base: Manifest) -> Variant:
    """Return `variant` with one group in the other precision.

    The layers that its bundle, `base`, has in float for their accuracy stay there, so that the group is the only
    difference.
    """
    kept = (base.precision_plan or {}).get("kept", ())
    inaccurate = (node["name"] for node in kept if node["reason"].startswith(COSTS_ACCURACY))
    modules = dict.fromkeys(module for name in inaccurate if (module := module_of_name(name)))
    choice = GroupChoice(group=group.name, in_int8=not group.in_int8, moved=True)
    return replace(variant, groups=(choice,), keep_float=tuple(modules))


def chosen_groups(measured: Sequence[tuple[LayerGroup, Standing]], int8_fraction: float) -> tuple[GroupChoice, ...]:
    """Return the precision of each group: the other one if the engine is shown to be faster with it.

    A standing is that of the engine with the group in the other precision. `int8_fraction` of the MACs are int8 by the
    rule; the groups that gain most leave it, as long as the graph can still be called int8.
    """
    changed: set[str] = set()
    for group, standing in sorted(measured, key=lambda pair: pair[1].ratio):
        left = int8_fraction + (-group.fraction if group.in_int8 else group.fraction)
        if standing.is_faster and (left >= MIN_INT8_FRACTION or not group.in_int8):
            changed.add(group.name)
            int8_fraction = left
    return tuple(
        GroupChoice(
            group=group.name,
            in_int8=group.in_int8 != (group.name in changed),
            moved=group.name in changed,
            ratio=1 / standing.ratio if group.in_int8 else standing.ratio,
            interval=_inverse(standing.interval) if group.in_int8 else standing.interval,
        )
        for group, standing in measured
    )


def _inverse(interval: Interval | None) -> Interval | None:
    return None if interval is None else Interval(1 / interval.high, 1 / interval.low)
