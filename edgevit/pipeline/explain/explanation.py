"""Explanation: why an engine differs from PyTorch, in words and as JSON."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from edgevit.files import class_and_first_line
from edgevit.pipeline.explain.bisection import Segment
from edgevit.pipeline.explain.localize import Finding
from edgevit.pipeline.explain.ranking import Ranked
from edgevit.pipeline.explain.reproducer import Reproducer
from edgevit.runtimes.output_parity import OutputParity
from edgevit.types import Precision

_SHOWN = 5  # modules or operators in a line


@dataclass(frozen=True, slots=True, kw_only=True)
class Explanation:
    """The first module that differs at the stage that failed, as far as it was found."""

    stage: str
    precision: Precision
    finding: Finding | None = None
    segment: Segment | None = None  # found by cuts, if the failure vanished with inner tensors as outputs
    operators: tuple[str, ...] = ()  # of the module itself, outside its submodules
    ranked: tuple[Ranked, ...] = ()  # the modules with the most noise, in fp16 and int8
    keep_float: tuple[str, ...] = ()  # those that have to stay in float, by their noise
    reproducer: Reproducer | None = None
    unmapped: tuple[str, ...] = ()  # modules whose tensors are not in the graph
    problem: str = ""  # why nothing was found
    elapsed_s: float = 0.0

    @property
    def module(self) -> str | None:
        """The path of the module in PyTorch, "" for the model itself; None if none was found."""
        if self.segment is not None:
            return self.segment.module
        return None if self.finding is None else self.finding.unit.call.path

    @property
    def sentence(self) -> str:
        """The answer in a few words, for the end of an error message."""
        if self.segment is not None:
            return f"the first module that differs is {self.segment.module or 'the model itself'}"
        if self.finding is not None:
            return f"the first module that differs is {self.finding.unit.name}"
        if self.ranked:
            return f"the module that costs the most accuracy is {self.ranked[0].unit.name}"
        return self.problem

    def lines(self) -> Iterator[str]:
        """Yield the explanation in lines."""
        yield f"explanation of {self.stage!r}, in {self.elapsed_s:.0f} s: {self.sentence}"
        if self.finding is not None:
            yield from self._finding_lines(self.finding)
        if self.segment is not None:
            yield from self._segment_lines(self.segment)
        for each in self.ranked[:_SHOWN]:
            yield f"  {each}"
        if self.keep_float:
            yield f"  keep in float: --keep-float {','.join(self.keep_float)}"
        if self.reproducer is not None:
            fails = "" if self.reproducer.fails else " (by itself it is within the tolerance)"
            yield f"  reproduce{fails}: {self.reproducer.command}"
        if self.unmapped:
            yield f"  modules whose tensors are not in the graph: {_listed(self.unmapped)}"

    def _finding_lines(self, finding: Finding) -> Iterator[str]:
        yield f"  its inputs against PyTorch's: {finding.inputs}"
        yield f"  its outputs against PyTorch's: {finding.outputs}"
        yield f"  its outputs against PyTorch's for the same inputs: {finding.own}"
        others = "" if finding.explained > 0.9 else "; later modules differ by themselves too"
        yield f"  it explains {finding.explained:.0%} of the error of the model's outputs{others}"
        if self.operators:
            yield f"  the operators of its own forward() in the graph: {_listed(self.operators)}"

    def _segment_lines(self, segment: Segment) -> Iterator[str]:
        yield "  the failure vanishes if inner tensors are outputs; it was found by cuts of the graph"
        yield f"  operators that fail together: {_listed(segment.operators)}"
        yield f"  their outputs against the graph's, for the same inputs: {segment.error} ({segment.builds} builds)"

    def to_json(self) -> dict[str, Any]:
        return {
            "stage": self.stage,
            "module": self.module,
            "sentence": self.sentence,
            "operators": list(self.segment.operators if self.segment is not None else self.operators),
            "keep_float": list(self.keep_float),
            "command": None if self.reproducer is None else self.reproducer.command,
            "unmapped": list(self.unmapped),
            "lines": list(self.lines()),
            "elapsed_s": self.elapsed_s,
        }


def explain_if_possible(failed: OutputParity, explain: Callable[[], Explanation]) -> Explanation:
    """Return the explanation of a failed result; an error in it becomes the reason why nothing was found."""
    try:
        return explain()
    except Exception as error:  # of the user's module, of a runtime, or of a graph that cannot be cut
        problem = f"the first module that differs was not found: {class_and_first_line(error)}"
        return Explanation(stage=failed.stage, precision=failed.precision, problem=problem)


def _listed(names: tuple[str, ...]) -> str:
    more = len(names) - _SHOWN
    return ", ".join(names[:_SHOWN]) + (f" and {more} more" if more > 0 else "")
