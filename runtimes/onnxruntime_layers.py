"""Layer times from ONNX Runtime's profile."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from edgevit.errors import MeasureError
from edgevit.runtimes.layer_profile import LayerProfile, LayerTime, layer_profile, node_module
from edgevit.runtimes.onnxruntime_precision import CONVOLUTIONS, is_operator, operator_macs, operator_precision

_SUFFIXES, _PREFIX = ("_kernel_time", "_nchwc"), "fused "  # that ONNX Runtime adds to the name of a node
_TOKEN = re.compile(r"_token_\d+$")  # that it adds to the name of a node it made, another number in each session


def read_layers(
    events: Sequence[Mapping[str, Any]],
    names: Mapping[str, str],
    with_shapes: Sequence[Mapping[str, Any]] = (),
    *,
    skip: int,
) -> LayerProfile:
    """Return the layers of a session's profile, without its first `skip` runs. Times in it are in microseconds.

    `names` are the names of the graph's nodes by their outputs: some layers are named after their output. `with_shapes`
    is the profile of a session whose layouts show the shapes of all products. The nodes within a Loop or an If are left
    out, whose time contains theirs. Raises MeasureError if there are no layers.
    """
    timed = [event for event in events if "ts" in event and "dur" in event]
    runs = [event for event in timed if event.get("cat") == "Session" and event.get("name") == "model_run"][skip:]
    nodes = sorted(
        filter(is_operator, timed),
        key=lambda event: (event["ts"], -event["dur"]),
    )
    if not runs or not nodes:
        raise MeasureError("ONNX Runtime's profile has no layers; install another version of it, or leave --layers out")
    layers = [_layers(run, nodes, names) for run in runs]
    profile = layer_profile(layers, [run["dur"] / 1e3 for run in runs])
    return replace(profile, layers=_with_convolutions(profile.layers, with_shapes))


def _with_convolutions(layers: Sequence[LayerTime], with_shapes: Sequence[Mapping[str, Any]]) -> tuple[LayerTime, ...]:
    """Give the convolutions the multiply-adds of those of the other profile, whose shapes are not rounded up.

    They have the same name; those that were fused and renamed have the same place among the others. Without the same
    number of them the latter are unknown.
    """
    operators = [event for event in with_shapes if is_operator(event) and event["args"]["op_name"] in CONVOLUTIONS]
    counts = [(_plain_name(str(each["name"])), operator_macs(each["args"])) for each in operators]
    convolutions = {index: _plain_name(each.name) for index, each in enumerate(layers) if each.kind in CONVOLUTIONS}
    by_name = dict(counts) if len(dict(counts)) == len(counts) else {}
    exact = {index: by_name[name] for index, name in convolutions.items() if name in by_name}
    renamed = [index for index in convolutions if index not in exact]
    left = [count for name, count in counts if name not in by_name or name not in convolutions.values()]
    exact |= zip(renamed, left, strict=True) if len(left) == len(renamed) else dict.fromkeys(renamed)
    return tuple(replace(layer, macs=exact[index]) if index in exact else layer for index, layer in enumerate(layers))


def _plain_name(name: str) -> str:
    """Return the name of a node without what ONNX Runtime adds to it, which differs from session to session."""
    name = name.removeprefix(_PREFIX)
    for suffix in _SUFFIXES:
        name = name.removesuffix(suffix)
    return _TOKEN.sub("", name)


def _layers(run: Mapping[str, Any], nodes: Sequence[Mapping[str, Any]], names: Mapping[str, str]) -> list[LayerTime]:
    """Return the layers of one run."""
    found, end = [], run["ts"]
    for node in nodes:
        if not run["ts"] <= node["ts"] <= run["ts"] + run["dur"] or node["ts"] + node["dur"] < end:
            continue
        end = node["ts"] + node["dur"]
        name = _plain_name(str(node["name"]))
        name = names.get(name, name)
        kind = str(node["args"]["op_name"])
        macs = operator_macs(node["args"])
        found.append(
            LayerTime(
                name=name,
                kind=kind,
                module=node_module(name),
                ms=node["dur"] / 1e3,
                macs=macs,
                precision="" if macs is None else operator_precision(node["args"]),
            )
        )
    return found
