"""Find the tensors of a graph for each call of a PyTorch module.

A call is one unit with the calls after it whose operators a pass has folded into its own, as those of a BatchNorm into
a convolution: the graph has the result of the last one only. The BatchNorm may have a submodule that is still there,
such as an activation: then the unit ends with that. Tensors are found by the names of the operators (see
`export.module_borders`) and told apart by their shapes and, if several fit, by their values.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch

from edgevit.export.module_borders import ModuleBorders
from edgevit.models.recording import Call, Recording, Tensors
from edgevit.pipeline.explain.figures import Difference
from edgevit.pipeline.explain.graph_tensors import GraphTensors, compare_tensors


@dataclass(frozen=True, slots=True, kw_only=True)
class Unit:
    """A call of a module, and the names of its tensors in a graph."""

    call: Call
    folded: tuple[Call, ...]  # calls after it that have no operators of their own
    inputs: Mapping[int, str]  # by the position among the call's tensors; those that could be found
    outputs: tuple[str, ...]  # one for each tensor of the last call

    @property
    def last(self) -> Call:
        """The call that returns the tensors in `outputs`."""
        return self.folded[-1] if self.folded else self.call

    @property
    def paths(self) -> tuple[str, ...]:
        """The modules that it consists of."""
        return (self.call.path, *(call.path for call in self.folded))

    @property
    def name(self) -> str:
        """The module in words: its path and class, and what is folded into it."""
        name = f"{self.call.path} ({self.call.kind})" if self.call.path else f"the model ({self.call.kind})"
        inner = [call for call in self.folded if call.kind not in ("Identity", "Dropout")]
        more = [f"{call.path} ({call.kind})" for call in inner]
        repeated = f", call {self.call.index + 1}" if self.call.index else ""
        return name + (f" with {' and '.join(more)} folded in" if more else "") + repeated


@dataclass(frozen=True, slots=True)
class Tensorwise:
    """The tensors of a graph or engine, and PyTorch's, of one run each."""

    recording: Recording
    tensors: GraphTensors

    def outputs(self, unit: Unit) -> Tensors:
        """Return a unit's outputs in the graph, in the shapes and types that PyTorch gives them."""
        pairs = zip(unit.outputs, unit.last.outputs, strict=True)
        return tuple(self.tensors.like(name, tensor) for name, tensor in pairs)

    def computed(self, unit: Unit, outputs: Tensors) -> Tensors:
        """Return the parts of a unit's outputs that the graph computes."""
        pairs = zip(unit.outputs, outputs, strict=True)
        return tuple(self.tensors.part(name, tensor) for name, tensor in pairs)

    def compare(self, unit: Unit, actual: Tensors, expected: Tensors) -> Difference:
        """Compare two results of a unit in the parts that the graph computes."""
        return compare_tensors(self.computed(unit, actual), self.computed(unit, expected))

    def inputs(self, unit: Unit) -> dict[int, torch.Tensor]:
        return {position: self.tensors.like(name, unit.call.inputs[position]) for position, name in unit.inputs.items()}

    def output_difference(self, unit: Unit) -> Difference:
        return self.compare(unit, self.outputs(unit), unit.last.outputs)

    def input_difference(self, unit: Unit) -> Difference:
        """Return how the inputs that could be found differ from PyTorch's."""
        own, part = self.inputs(unit), self.tensors.part
        return compare_tensors(
            [part(unit.inputs[position], tensor) for position, tensor in own.items()],
            [part(unit.inputs[position], unit.call.inputs[position]) for position in own],
        )


def candidate_tensors(borders: ModuleBorders) -> tuple[str, ...]:
    """Return the tensors of a graph at the borders of all its modules."""
    found: dict[str, None] = {}
    for path in sorted(borders.paths):
        outputs = borders.outputs(path)
        found |= dict.fromkeys(outputs)
        found |= dict.fromkeys(borders.inputs([path], outputs))
    return tuple(found)


def find_units(
    recording: Recording, borders: ModuleBorders, tensors: GraphTensors, whole: Sequence[str]
) -> tuple[tuple[Unit, ...], tuple[str, ...]]:
    """Return the units whose outputs the graph has, in the order in which they end, and the modules without one.

    `whole` are the names of the graph's outputs in the order of the model's. Modules without operators, such as those
    that a pass removed, are in neither.
    """
    units: list[Unit] = []
    missing: dict[str, None] = {}
    after = {call: tuple(_folded_after(call, recording.calls, borders)) for call in recording.calls}
    parts = {each for call, folded in after.items() if call.path in borders.paths for each in folded}
    for call, folded in after.items():
        if call.path not in borders.paths or not call.outputs or call in parts:
            continue
        last = folded[-1] if folded else call
        outputs = _outputs(call, last, recording, borders, tensors) if call is not recording.whole else tuple(whole)
        if outputs is None:
            missing[call.path] = None
            continue
        computed = [each for name in outputs for each in tensors.computed(name)]
        names = borders.inputs((call.path, *(each.path for each in folded)), computed)
        units.append(Unit(call=call, folded=folded, inputs=_inputs(call, names, tensors), outputs=outputs))
    return tuple(sorted(units, key=lambda unit: unit.last.end)), tuple(missing)


def _folded_after(call: Call, calls: Sequence[Call], borders: ModuleBorders) -> Iterator[Call]:
    """Yield the calls whose own operators are not in the graph and that process the result of `call`, one by one."""
    in_order = sorted(calls, key=lambda other: other.start)
    while len(call.written) == 1:
        readers = (other for other in in_order if other.start > call.end and call.written[0] in other.read)
        reader = next(readers, None)
        if reader is None or len(reader.read) != 1 or len(reader.written) != 1 or borders.operators(reader.path):
            return
        if reader.path in borders.paths and not reader.has_weights:  # such as a Sequential
            return
        yield reader
        if reader.path in borders.paths:
            return
        call = reader


def _outputs(
    call: Call, last: Call, recording: Recording, borders: ModuleBorders, tensors: GraphTensors
) -> tuple[str, ...] | None:
    """Return the graph's tensor for each tensor of the last call; None if one is not found."""
    path = last.path if last.path in borders.paths else call.path
    names = [name for name in tensors.with_joined(borders.outputs(path)) if name in tensors.values]
    repeats = sum(other.path == path for other in recording.calls)
    if repeats > 1:
        index = last.index if path == last.path else call.index
        fitting = names if len(last.outputs) == 1 and len(names) == repeats else []
        return (fitting[index],) if fitting and tensors.fits(fitting[index], last.outputs[0]) else None
    found = [tensors.closest(tensor, names) for tensor in last.outputs]
    return None if None in found else tuple(name for name in found if name is not None)


def _inputs(call: Call, names: Sequence[str], tensors: GraphTensors) -> dict[int, str]:
    names = tensors.with_joined(names)
    found = {position: tensors.closest(tensor, names) for position, tensor in enumerate(call.inputs)}
    return {position: name for position, name in found.items() if name is not None}
