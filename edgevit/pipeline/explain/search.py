"""Explain a failed parity check: run the failing stage and PyTorch side by side, module by module."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from edgevit.export.module_borders import ModuleBorders
from edgevit.export.subgraph import extract, with_outputs
from edgevit.models.loading import LoadedModel
from edgevit.models.recording import Recording
from edgevit.pipeline.explain import reproducer
from edgevit.pipeline.explain.bisection import bisect
from edgevit.pipeline.explain.explanation import Explanation
from edgevit.pipeline.explain.figures import Difference, difference
from edgevit.pipeline.explain.graph_tensors import GraphTensors
from edgevit.pipeline.explain.localize import MIN_OWN_ERROR, Finding, expected_outputs, find_first
from edgevit.pipeline.explain.ranking import choose_to_keep, rank_modules
from edgevit.pipeline.explain.stages import GRAPH, Stage
from edgevit.pipeline.explain.units import Tensorwise, Unit, candidate_tensors, find_units
from edgevit.runtimes.output_parity import OutputParity
from edgevit.types import Array, Reference

LIMIT_S = 60.0
_REMAINS = 0.3  # of the error of a smaller part, or with other outputs: below it the failure has vanished
_WRONG_OF_STD = 5e-5  # of a part of an engine against the same part of its graph
_MIXED_OF_STD = 1e-3  # between outputs for a batch and for single images; kernels for a batch differ by rounding
_MIXED = (
    "in PyTorch too, the result for an image depends on the others of its batch: forward() computes over the batch, "
    "as batch norm with training=True or mean(0) do; compute over single images, or export it with --batch 1"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """A stage that failed, and how."""

    stage: Stage
    result: OutputParity
    reference: Reference

    @property
    def feeds(self) -> dict[str, Array]:
        """The batch that begins with the worst row."""
        return self.reference.batch(self.result.batch, self._worst_row)

    @property
    def expected(self) -> list[Array]:
        """PyTorch's outputs for the images of that batch, each computed by itself."""
        rows = np.arange(self._worst_row, self._worst_row + self.result.batch) % self.reference.rows
        return [array[rows] for array in self.reference.outputs.values()]

    @property
    def _worst_row(self) -> int:
        errors = np.nan_to_num(np.asarray(self.result.max_abs), nan=np.inf)
        return int(errors.argmax())


def explain_failure(model: LoadedModel, failure: Failure, *, folder: Path, limit_s: float = LIMIT_S) -> Explanation:
    """Find the first module that differs and save the part of the graph that shows it in `folder`.

    A step that has begun after `limit_s` seconds is finished. It raises any error of the module or of a runtime.
    """
    start = time.monotonic()
    found = _Search(model, failure, folder, start + limit_s).explain()
    return replace(found, elapsed_s=time.monotonic() - start)


class _Search:
    def __init__(self, model: LoadedModel, failure: Failure, folder: Path, deadline_s: float) -> None:
        self._model, self._stage, self._result = model, failure.stage, failure.result
        self._folder, self._deadline_s = folder, deadline_s
        self._feeds, self._expected = failure.feeds, failure.expected
        self._borders = ModuleBorders(self._stage.graph)
        self._empty = Explanation(stage=self._stage.name, precision=self._stage.precision)

    def explain(self) -> Explanation:
        tensors = [torch.from_numpy(self._feeds[name]) for name in self._model.input_names]
        recording = Recording(self._model.module, tensors)
        if self._mixes_batch(recording):
            return replace(self._empty, problem=_MIXED)
        found = GraphTensors.of(self._stage.graph, self._inner_values())
        outputs = [spec.name for spec in self._stage.graph.outputs]
        units, unmapped = find_units(recording, self._borders, found, outputs)
        run = Tensorwise(recording, found)
        if self._has_vanished(run.output_difference(units[-1])):
            return self._by_cuts()
        if self._stage.precision == "fp32":
            return self._by_modules(run, units, unmapped)
        return self._by_noise(run, units, unmapped)

    def _mixes_batch(self, recording: Recording) -> bool:
        """Whether PyTorch's own outputs for a batch differ from those for its images one at a time."""
        if self._result.batch == 1:
            return False
        outputs = [tensor.float().numpy() for tensor in recording.whole.outputs]
        return not difference(outputs, self._expected).max_of_std < _MIXED_OF_STD

    def _inner_values(self) -> Mapping[str, Array]:
        """Return the tensors at the borders of the modules, from one run of the failing stage."""
        graph = with_outputs(self._stage.graph, candidate_tensors(self._borders))
        with self._stage.open(graph) as run:
            return {**self._feeds, **run(self._feeds)}

    def _has_vanished(self, error: Difference) -> bool:
        if self._stage.fmt == GRAPH or not self._result.finite:
            return False
        if self._stage.precision == "fp32":
            return error.max_of_std < _REMAINS * self._result.max_abs_of_std
        return error.noise_to_signal < _REMAINS * self._result.noise_power / self._result.mean_square

    def _by_modules(self, run: Tensorwise, units: Sequence[Unit], unmapped: tuple[str, ...]) -> Explanation:
        finding = find_first(run, units, deadline_s=self._deadline_s)
        if finding is None:
            return replace(self._empty, unmapped=unmapped, problem=self._nothing_found())
        return replace(
            self._empty,
            finding=finding,
            operators=tuple(name for path in finding.unit.paths for name in self._borders.operators(path)),
            reproducer=self._save_module(run, units, finding),
            unmapped=unmapped,
        )

    def _by_noise(self, run: Tensorwise, units: Sequence[Unit], unmapped: tuple[str, ...]) -> Explanation:
        ranked = rank_modules(run, units, deadline_s=self._deadline_s)
        return replace(
            self._empty,
            ranked=ranked,
            keep_float=choose_to_keep(ranked, self._stage.precision),
            unmapped=unmapped,
            problem="" if ranked else self._nothing_found(),
        )

    def _by_cuts(self) -> Explanation:
        """Search by cuts, since the failure vanishes with inner tensors as outputs."""
        try:
            segment = bisect(self._stage, self._feeds, is_wrong=self._is_wrong, deadline_s=self._deadline_s)
        except TimeoutError:
            segment = None
        if segment is None:
            problem = f"the failure vanishes with inner tensors as outputs, and {self._nothing_found()}"
            return replace(self._empty, problem=problem)
        saved = reproducer.save(
            self._stage,
            segment.graph,
            segment.feeds,
            segment.expected,
            path=self._path(segment.module),
        )
        return replace(self._empty, segment=segment, reproducer=saved)

    def _is_wrong(self, error: Difference) -> bool:
        """Whether a part of the engine differs from the same part of the graph by more than rounding."""
        if self._stage.precision == "fp32":
            return not error.max_of_std <= _WRONG_OF_STD
        return not error.noise_to_signal <= _REMAINS * self._result.noise_power / self._result.mean_square

    def _save_module(self, run: Tensorwise, units: Sequence[Unit], finding: Finding) -> reproducer.Reproducer:
        """Save the module, or only its own last operators: from the results of its submodules that are right on."""
        unit, values = finding.unit, run.tensors.values
        right = [
            other
            for other in units
            if other.last.is_in(unit.call) and run.output_difference(other).max_of_std <= MIN_OWN_ERROR
        ]
        results = {other.last: run.outputs(other) for other in right}
        expected = expected_outputs(run, unit, results=results)
        if run.compare(unit, run.outputs(unit), expected).max_of_std < _REMAINS * finding.own.max_of_std:
            right, expected = [], expected_outputs(run, unit)
        wanted: dict[str, Array] = {}
        for name, part in zip(unit.outputs, run.computed(unit, expected), strict=True):
            wanted |= run.tensors.split(name, part)
        inner = [each for other in right for name in other.outputs for each in run.tensors.computed(name)]
        borders = [*self._borders.inputs(unit.paths, wanted), *inner]
        shapes = {name: array.shape for name, array in values.items()}
        return reproducer.save(
            self._stage,
            extract(self._stage.graph, dict.fromkeys(borders), tuple(wanted), shapes=shapes),
            values,
            wanted,
            path=self._path(unit.call.path),
        )

    def _path(self, module: str) -> Path:
        """Return the path of the saved part."""
        return self._folder / reproducer.file_name(self._model.name, module, self._stage)

    def _nothing_found(self) -> str:
        if time.monotonic() > self._deadline_s:
            return "no module was found in the time"
        return "no module differs by itself"
