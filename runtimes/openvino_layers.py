"""Layer times from OpenVINO's performance counters."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

from edgevit.runtimes.layer_profile import UNKNOWN_MODULE, LayerProfile, LayerTime, layer_profile, node_module
from edgevit.runtimes.openvino_precision import LayerProducts, Operator, layer_products
from edgevit.types import Feeds

_EXECUTED, _REORDER = "EXECUTED", "Reorder"


def profile_layers(
    compiled: Any,
    feeds: Feeds,
    names: Mapping[str, str],
    operators: Mapping[str, Operator],
    *,
    runs: int,
    skip: int,
) -> LayerProfile:
    """Run a model that was compiled with PERF_COUNT and return its layers, without those of the first `skip` runs.

    `names` are the names of the ONNX graph's nodes by their outputs: some layers are named after their output.
    `operators` are those of the model's source that multiply.
    """
    request, model = compiled.create_infer_request(), compiled.get_runtime_model()
    originals, products = _original_names(model), {each.layer: each for each in layer_products(model, operators)}
    layers, runs_ms = [], []
    for number in range(skip + runs):
        start = time.perf_counter()
        request.infer(dict(feeds), share_inputs=True, share_outputs=True)
        elapsed_ms = 1e3 * (time.perf_counter() - start)
        if number >= skip:
            ran = [each for each in request.profiling_info if _ran(each)]
            layers.append([_layer(each, originals, names, products.get(each.node_name)) for each in ran])
            runs_ms.append(elapsed_ms)
    return layer_profile(layers, runs_ms)


def _ran(counter: Any) -> bool:
    return str(counter.status).rpartition(".")[2] == _EXECUTED


def _layer(
    counter: Any, originals: Mapping[str, Sequence[str]], names: Mapping[str, str], products: LayerProducts | None
) -> LayerTime:
    name, kind = str(counter.node_name), str(counter.node_type)
    known = [names.get(each, each) for each in (name, *originals.get(name, ()))]
    # The name of a Reorder begins with that of a tensor and of layouts, and not with a module.
    modules = [node_module(each) for each in known if kind != _REORDER]
    module = next((each for each in modules if each != UNKNOWN_MODULE), UNKNOWN_MODULE)
    return LayerTime(
        name=known[0],
        kind=kind,
        module=module,
        ms=1e3 * counter.real_time.total_seconds(),
        macs=None if products is None else products.macs,
        precision="" if products is None else products.precision,
    )


def _original_names(model: Any) -> dict[str, list[str]]:
    """Return the names of the operators that were compiled into each layer."""
    found = {}
    for node in model.get_ops():
        info = node.get_rt_info()
        if "originalLayersNames" in info:
            found[node.get_friendly_name()] = str(info["originalLayersNames"].astype(str)).split(",")
    return found
