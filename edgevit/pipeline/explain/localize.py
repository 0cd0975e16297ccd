"""Find the first module whose error its inputs do not explain.

A module's own error is the difference between its outputs in the graph and those that PyTorch computes from the same
inputs. A pass may move work over the border of a module, such as a scale from attention into the projection of its
queries; then the module differs by itself although nothing is wrong. So a module is only blamed if its outputs explain
the error of the module around it, or of the whole model: PyTorch run with these outputs in place of its own comes
closer to the graph. The first of these modules is the answer, in the order in which they end: submodules before the
module that contains them. Errors that hardly change the model's outputs are left out.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from edgevit.arrays import differences
from edgevit.models.recording import Call, Tensors
from edgevit.pipeline.explain.figures import Difference
from edgevit.pipeline.explain.graph_tensors import compare_tensors
from edgevit.pipeline.explain.units import Tensorwise, Unit

if TYPE_CHECKING:
    from numpy.typing import NDArray

MIN_OWN_ERROR = 1e-5  # standard deviations: ten times the rounding errors of a module in float32
MIN_OWN_PART = 0.1  # of the noise of its outputs; most of the rest is inherited
MAX_CANCELLED = 4.0  # times the noise of its outputs: a module that seems worse reads other tensors than in PyTorch
MIN_EFFECT = 0.01  # of the noise of the model's outputs, that a module's own error makes there
EXPLAINED = 0.9  # of the noise of the model's outputs, that one wrong module explains
MIN_PART = 0.2  # of the noise of the module around it: others inside that may be wrong too


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """A module that differs by itself."""

    unit: Unit
    inputs: Difference  # the graph's from PyTorch's
    outputs: Difference
    own: Difference  # the graph's outputs from PyTorch's for the graph's inputs
    explained: float  # the fraction of the noise of the model's outputs that it explains


def find_first(run: Tensorwise, units: Sequence[Unit], *, deadline_s: float) -> Finding | None:
    """Return the first module that is wrong; None if there is none, or time.monotonic() is late.

    `units` are in the order in which they end; the last is the whole model. A module into which a pass has moved work
    from before it reads other tensors than in PyTorch. It is blamed instead of the module around it if what comes
    before it is right.
    """
    moved: Finding | None = None
    for index, unit in enumerate(units):
        if time.monotonic() > deadline_s:
            return None
        finding = _finding(run, unit, units)
        if finding is None:
            continue
        if finding.own.noise_to_signal <= MAX_CANCELLED * finding.outputs.noise_to_signal:
            is_inner = moved is not None and moved.unit.call.is_in(unit.call)
            return moved if is_inner else finding
        if moved is None and index and _begins_right(run, units[index - 1]):
            moved = replace(finding, own=finding.outputs)
    return moved


def _finding(run: Tensorwise, unit: Unit, units: Sequence[Unit]) -> Finding | None:
    """Return the finding for a module that differs by itself and explains the error; None for others."""
    outputs = run.output_difference(unit)
    if outputs.max_of_std <= MIN_OWN_ERROR:
        return None
    own = own_difference(run, unit)
    if own.max_of_std <= MIN_OWN_ERROR or own.noise_to_signal < MIN_OWN_PART * outputs.noise_to_signal:
        return None
    effect, explained = _effect_on_model(run, unit, units[-1])
    if effect < MIN_EFFECT or (explained < EXPLAINED and _explained_around(run, unit, units) < MIN_PART):
        return None
    inputs = run.input_difference(unit)
    return Finding(unit=unit, inputs=inputs, outputs=outputs, own=own, explained=max(explained, 0.0))


def _begins_right(run: Tensorwise, unit: Unit) -> bool:
    return min(run.input_difference(unit).max_of_std, run.output_difference(unit).max_of_std) <= MIN_OWN_ERROR


def _effect_on_model(run: Tensorwise, unit: Unit, whole: Unit) -> tuple[float, float]:
    """Return the noise that a unit's outputs in the graph make at PyTorch's outputs, and the noise that they explain.

    Both are fractions of the noise of the graph's outputs.
    """
    if unit is whole:
        return 1.0, 1.0
    replaced = run.recording.repeat(whole.call, results={unit.last: run.outputs(unit)})
    return _fractions(run.outputs(whole), whole.call.outputs, replaced)


def _explained_around(run: Tensorwise, unit: Unit, units: Sequence[Unit]) -> float:
    """Return the fraction of the own noise of the module around a unit that the unit's outputs explain."""
    around = next(each for each in units if unit.call.is_in(each.call) and unit.last.is_in(each.call))
    replaced = expected_outputs(run, around, results={unit.last: run.outputs(unit)})
    results = (run.outputs(around), expected_outputs(run, around), replaced)
    _, explained = _fractions(*(run.computed(around, each) for each in results))
    return explained


def _fractions(actual: Tensors, expected: Tensors, replaced: Tensors) -> tuple[float, float]:
    """Return the fractions of the noise of `actual` that `replaced` has, and that it explains.

    An infinite noise has no fractions: then the values are counted that are NaN or infinite in one of both alone.
    """
    noise = compare_tensors(actual, expected).noise_to_signal
    broken, caused = _infinite_differences(actual, expected), _infinite_differences(replaced, expected)
    if broken.any():
        return float(caused.sum() / broken.sum()), float((broken & caused).sum() / broken.sum())
    effect = compare_tensors(replaced, expected).noise_to_signal
    left = compare_tensors(actual, replaced).noise_to_signal
    return (effect / noise, 1 - left / noise) if noise > 0 else (0.0, 0.0)


def _infinite_differences(actual: Tensors, expected: Tensors) -> NDArray[np.bool_]:
    """Return a mask of the values that are NaN or infinite in only one of the two, or of another kind or sign."""
    pairs = zip(actual, expected, strict=True)
    return np.concatenate([np.isinf(differences(a.double().numpy(), b.double().numpy())).ravel() for a, b in pairs])


def own_difference(run: Tensorwise, unit: Unit) -> Difference:
    """Return a unit's own error."""
    return run.compare(unit, run.outputs(unit), expected_outputs(run, unit))


def expected_outputs(run: Tensorwise, unit: Unit, *, results: Mapping[Call, Tensors] | None = None) -> Tensors:
    """Return PyTorch's outputs for the graph's inputs of a unit, and for `results` of its submodules if given."""
    tensors = run.recording.repeat(unit.call, inputs=run.inputs(unit), results=results)
    for call in unit.folded:
        tensors = run.recording.repeat(call, inputs=dict(enumerate(tensors)))
    return tensors
