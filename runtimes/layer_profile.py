"""LayerProfile: the time of each layer of an engine, as its runtime's own profiler reports it."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

PROFILE_WARMUP = 3  # runs before those that count
UNKNOWN_MODULE = "(unknown)"  # of layers whose names the runtime made up
TOP_MODULE = "(top level)"  # of layers that belong to no submodule


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerTime:
    """One layer: a node of the ONNX graph, or several that the runtime fused."""

    name: str  # the runtime's name of the layer
    kind: str  # of operator, in the runtime's words
    module: str  # dotted path of its PyTorch module, or UNKNOWN_MODULE or TOP_MODULE
    ms: float  # median over the profiled runs; in OpenVINO, whose counters are means, over windows of runs
    macs: int | None = None  # multiply-adds of a run; None if it does not multiply, or if they are unknown
    precision: str = ""  # of its multiply-adds


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupTime:
    """Layers with a module or a kind of operator in common."""

    name: str
    layers: int
    ms: float
    fraction: float  # of the sum of all layers
    macs: int  # multiply-adds of a run, as far as they are known

    @property
    def macs_per_s(self) -> float | None:
        """The rate of its multiply-adds; None if it has none."""
        return 1e3 * self.macs / self.ms if self.macs and self.ms else None


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerProfile:
    """The layers of one engine in the order in which they run, profiled apart from the timed runs."""

    layers: tuple[LayerTime, ...]
    runs: int
    profiled_ms: float  # of a whole run while the profiler worked, from host arrays to host arrays; a median as `ms`

    @property
    def sum_ms(self) -> float:
        return sum(layer.ms for layer in self.layers)

    def by_kind(self) -> tuple[GroupTime, ...]:
        """Sum the layers by kind of operator, the longest first."""
        return self._grouped(lambda layer: layer.kind)

    def by_module(self, depth: int | None = None) -> tuple[GroupTime, ...]:
        """Sum the layers by module, the longest first; by the first `depth` parts of its path if given."""
        return self._grouped(lambda layer: ".".join(layer.module.split(".")[:depth]))

    def longest(self, count: int) -> tuple[LayerTime, ...]:
        return tuple(sorted(self.layers, key=lambda layer: -layer.ms)[:count])

    def to_json(self) -> dict[str, Any]:
        return {
            "runs": self.runs,
            "profiled_ms": self.profiled_ms,
            "sum_ms": self.sum_ms,
            "layers": [asdict(layer) for layer in self.layers],
            "by_kind": [asdict(group) for group in self.by_kind()],
            "by_module": [asdict(group) for group in self.by_module()],
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> LayerProfile:
        layers = tuple(
            LayerTime(
                name=str(each["name"]),
                kind=str(each["kind"]),
                module=str(each["module"]),
                ms=float(each["ms"]),
                macs=None if each.get("macs") is None else int(each["macs"]),
                precision=str(each.get("precision", "")),
            )
            for each in data["layers"]
        )
        return cls(layers=layers, runs=int(data["runs"]), profiled_ms=float(data["profiled_ms"]))

    def _grouped(self, key: Callable[[LayerTime], str]) -> tuple[GroupTime, ...]:
        groups: dict[str, list[LayerTime]] = {}
        for layer in self.layers:
            groups.setdefault(key(layer), []).append(layer)
        found = [self._group(name, layers) for name, layers in groups.items()]
        return tuple(sorted(found, key=lambda group: -group.ms))

    def _group(self, name: str, layers: Sequence[LayerTime]) -> GroupTime:
        ms = sum(layer.ms for layer in layers)
        macs = sum(layer.macs or 0 for layer in layers)
        return GroupTime(name=name, layers=len(layers), ms=ms, fraction=ms / (self.sum_ms or 1.0), macs=macs)


def joined(groups: Sequence[GroupTime]) -> GroupTime:
    """Return several groups as one, such as those that a table has no room for."""
    return GroupTime(
        name=f"{len(groups)} others",
        layers=sum(group.layers for group in groups),
        ms=sum(group.ms for group in groups),
        fraction=sum(group.fraction for group in groups),
        macs=sum(group.macs for group in groups),
    )


def layer_profile(runs: Sequence[Sequence[LayerTime]], runs_ms: Sequence[float]) -> LayerProfile:
    """Return the medians over runs, of which each has the same layers in the same order.

    A layer of an unknown module that runs between two layers of one module counts to that one.
    """
    first = runs[0]
    times = np.median([[layer.ms for layer in run] for run in runs if len(run) == len(first)], axis=0)
    layers = tuple(
        replace(layer, module=module, ms=float(ms))
        for layer, module, ms in zip(first, _filled([layer.module for layer in first]), times, strict=True)
    )
    return LayerProfile(layers=layers, runs=len(runs), profiled_ms=float(np.median(runs_ms)))


def _filled(modules: Sequence[str]) -> list[str]:
    """Return the modules with unknown ones between two of the same module filled in."""
    known = [index for index, module in enumerate(modules) if module != UNKNOWN_MODULE]
    filled = list(modules)
    for before, after in itertools.pairwise(known):
        if modules[before] == modules[after]:
            filled[before:after] = [modules[before]] * (after - before)
    return filled


def node_module(name: str) -> str:
    """Return the module in a node's name, `<module path>/<operator>`, to which the runtime may have added parts."""
    module, slash, _ = name.partition("/")  # ONNX Runtime appends /MatMulAddFusion, for example
    if not slash:
        return UNKNOWN_MODULE
    return module or TOP_MODULE
