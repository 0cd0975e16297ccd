"""Layer times from OpenVINO's performance counters."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from edgevit.runtimes.layer_profile import UNKNOWN_MODULE, LayerProfile, LayerTime, layer_profile, node_module
from edgevit.runtimes.openvino_precision import LayerProducts, Operator, layer_products
from edgevit.types import Feeds

_EXECUTED, _REORDER = "EXECUTED", "Reorder"
_WINDOW_RUNS = 10  # fewer would make the whole microseconds of the counters coarse


def profile_layers(
    compiled: Any,
    feeds: Feeds,
    names: Mapping[str, str],
    operators: Mapping[str, Operator],
    *,
    runs: int,
    skip: int,
) -> LayerProfile:
    """Run a model just compiled with PERF_COUNT and return the times of its layers after the first `skip` runs.

    A time is the median over windows of ten runs and more, of the mean in each: one that was disturbed does not count.
    `names` are the names of the ONNX graph's nodes by their outputs: some layers are named after their output.
    `operators` are those of the model's source that multiply.
    """
    request, model = compiled.create_infer_request(), compiled.get_runtime_model()
    originals, products = _original_names(model), {each.layer: each for each in layer_products(model, operators)}
    for _ in range(skip):
        request.infer(dict(feeds), share_inputs=True, share_outputs=True)
    before_us = _counters_us(request.profiling_info) if skip else {}
    layers, runs_ms, done = [], [], skip
    for window in _window_lengths(runs):
        start = time.perf_counter()
        for _ in range(window):
            request.infer(dict(feeds), share_inputs=True, share_outputs=True)
        runs_ms.append(1e3 * (time.perf_counter() - start) / window)
        counters = [each for each in request.profiling_info if _ran(each)]
        after_us = _counters_us(counters)
        ms = mean_times_ms(before_us, after_us, skip=done, runs=window)
        layers.append(
            [_layer(each, ms[each.node_name], originals, names, products.get(each.node_name)) for each in counters]
        )
        before_us, done = after_us, done + window
    return replace(layer_profile(layers, runs_ms), runs=runs)


def _window_lengths(runs: int) -> list[int]:
    count = max(1, runs // _WINDOW_RUNS)
    return [runs // count + (index < runs % count) for index in range(count)]


def mean_times_ms(
    before_us: Mapping[str, float], after_us: Mapping[str, float], *, skip: int, runs: int
) -> dict[str, float]:
    """Return the mean time of each layer in `runs` runs, from its counters before and after them.

    A counter is itself the mean over all runs since the model was compiled, in whole microseconds. The very first run
    packs the weights, which may take a hundred times as long as another one. `skip` runs were before these.
    """
    return {
        name: max(0.0, after * (skip + runs) - before_us.get(name, 0.0) * skip) / runs / 1e3
        for name, after in after_us.items()
    }


def _counters_us(counters: Iterable[Any]) -> dict[str, float]:
    return {str(each.node_name): 1e6 * each.real_time.total_seconds() for each in counters}


def _ran(counter: Any) -> bool:
    return str(counter.status).rpartition(".")[2] == _EXECUTED


def _layer(
    counter: Any,
    ms: float,
    originals: Mapping[str, Sequence[str]],
    names: Mapping[str, str],
    products: LayerProducts | None,
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
        ms=ms,
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
