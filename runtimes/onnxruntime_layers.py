"""Layer times from ONNX Runtime's profile."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from edgevit.errors import MeasureError
from edgevit.runtimes.layer_profile import LayerProfile, LayerTime, layer_profile, module_of_name

_SUFFIXES, _PREFIX = ("_kernel_time", "_nchwc"), "fused "  # that ONNX Runtime adds to the name of a node


def read_layers(events: Sequence[Mapping[str, Any]], names: Mapping[str, str], *, skip: int) -> LayerProfile:
    """Return the layers of a session's profile, without its first `skip` runs. Times in it are in microseconds.

    `names` are the names of the graph's nodes by their outputs: some layers are named after their output. The nodes
    within a Loop or an If are left out, whose time contains theirs. Raises MeasureError if there are no layers.
    """
    timed = [event for event in events if "ts" in event and "dur" in event]
    runs = [event for event in timed if event.get("cat") == "Session" and event.get("name") == "model_run"][skip:]
    nodes = sorted(
        (event for event in timed if event.get("cat") == "Node" and "op_name" in event.get("args", {})),
        key=lambda event: (event["ts"], -event["dur"]),
    )
    if not runs or not nodes:
        raise MeasureError("ONNX Runtime's profile has no layers; install another version of it, or leave --layers out")
    layers = [_layers(run, nodes, names) for run in runs]
    return layer_profile(layers, [run["dur"] / 1e3 for run in runs])


def _layers(run: Mapping[str, Any], nodes: Sequence[Mapping[str, Any]], names: Mapping[str, str]) -> list[LayerTime]:
    """Return the layers of one run."""
    found, end = [], run["ts"]
    for node in nodes:
        if not run["ts"] <= node["ts"] <= run["ts"] + run["dur"] or node["ts"] + node["dur"] < end:
            continue
        end = node["ts"] + node["dur"]
        name = str(node["name"]).removeprefix(_PREFIX)
        for suffix in _SUFFIXES:
            name = name.removesuffix(suffix)
        name = names.get(name, name)
        kind = str(node["args"]["op_name"])
        found.append(LayerTime(name=name, kind=kind, module=module_of_name(name), ms=node["dur"] / 1e3))
    return found
