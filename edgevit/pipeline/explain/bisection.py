"""Find the wrong part of a graph by cuts, if the engine's failure vanishes as soon as inner tensors are outputs.

The reference computes the tensors at a cut, and the engine the rest. The rest fails if the wrong operators are in it:
about log2(n) engines tell where they begin, and as many where they end.
"""

from __future__ import annotations

import time
from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from edgevit.export.graph import OnnxGraph
from edgevit.export.module_borders import ModuleBorders, common_module
from edgevit.export.subgraph import extract, live_values, with_outputs
from edgevit.pipeline.explain.figures import Difference, difference
from edgevit.pipeline.explain.stages import Stage
from edgevit.types import Array, Feeds


@dataclass(frozen=True, slots=True, kw_only=True)
class Segment:
    """The smallest run of operators that fails in the engine."""

    module: str  # the innermost module that contains them
    operators: tuple[str, ...]
    graph: OnnxGraph
    feeds: Mapping[str, Array]
    expected: Mapping[str, Array]
    error: Difference
    builds: int


class _Bisection:
    def __init__(
        self, stage: Stage, feeds: Feeds, *, is_wrong: Callable[[Difference], bool], deadline_s: float
    ) -> None:
        self.stage, self.feeds, self._is_wrong, self._deadline_s = stage, feeds, is_wrong, deadline_s
        self.outputs = [spec.name for spec in stage.graph.outputs]
        self.builds = 0

    def reference(self, names: Sequence[str]) -> dict[str, Array]:
        values = dict(self.feeds) | dict(self.stage.run_graph(with_outputs(self.stage.graph, names))(self.feeds))
        return {name: values[name] for name in names}

    def part(self, start: int, end: int | None) -> tuple[OnnxGraph, dict[str, Array], dict[str, Array]]:
        """Return the nodes from `start` up to `end` as a graph, its inputs and the reference's outputs for them."""
        outputs = self.outputs if end is None else list(live_values(self.stage.graph, end))
        inputs = live_values(self.stage.graph, start)
        outputs = [name for name in outputs if name not in inputs]
        values = self.reference([*inputs, *outputs])
        graph = extract(self.stage.graph, inputs, outputs, shapes={name: array.shape for name, array in values.items()})
        read = {value.name for value in graph.model.graph.inputs}
        feeds = {name: values[name] for name in inputs if name in read}
        return graph, feeds, {name: values[name] for name in outputs}

    def error(self, start: int, end: int | None) -> Difference:
        if time.monotonic() > self._deadline_s:
            raise TimeoutError
        graph, feeds, expected = self.part(start, end)
        self.builds += 1
        with self.stage.open(graph) as run:
            actual = run(feeds)
            return difference([actual[name] for name in expected], list(expected.values()))

    def is_wrong(self, start: int, end: int | None) -> bool:
        return self._is_wrong(self.error(start, end))


def bisect(stage: Stage, feeds: Feeds, *, is_wrong: Callable[[Difference], bool], deadline_s: float) -> Segment | None:
    """Return the operators that the engine of `stage` computes differently from its graph; None if no cut shows it.

    Raises TimeoutError if time.monotonic() passes `deadline_s`.
    """
    search = _Bisection(stage, feeds, is_wrong=is_wrong, deadline_s=deadline_s)
    borders = ModuleBorders(stage.graph)
    count = len(borders.nodes)
    if not search.is_wrong(0, None):
        return None
    # The latest node at which a wrong part begins, and the most nodes that its end can be cut by.
    start = bisect_left(range(1, count), x=True, key=lambda first: not search.is_wrong(first, None))
    cut = bisect_left(range(1, count - start - 1), x=True, key=lambda less: not search.is_wrong(start, count - less))
    end = count - cut
    last = None if end == count else end
    graph, values, expected = search.part(start, last)
    kept = {str(node.name) for node in graph.model.graph}
    nodes = [node for node in borders.nodes[start:end] if str(node.name) in kept]
    return Segment(
        module=common_module(borders.module_of(node) for node in nodes),
        operators=tuple(str(node.name) for node in nodes),
        graph=graph,
        feeds=values,
        expected=expected,
        error=search.error(start, last),
        builds=search.builds,
    )
