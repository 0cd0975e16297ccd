"""Open configurations of built engines and measure them side by side."""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace

from edgevit.bundles.bundle import Bundle
from edgevit.errors import EdgevitError, MeasureError
from edgevit.latency.candidate import Candidate, candidate_from_engine
from edgevit.latency.measure import measure
from edgevit.latency.plan import MeasurePlan
from edgevit.latency.report import LatencyReport
from edgevit.latency.throughput import in_streams
from edgevit.pipeline.tuning.racing import COMPARISON, RUNGS, Race, Standing, race, standings, too_slow
from edgevit.pipeline.tuning.space import Configuration
from edgevit.pipeline.tuning.workspace import Workspace
from edgevit.runtimes.base import Engine
from edgevit.runtimes.registry import get_runtime
from edgevit.types import Array

_MAX_OPEN = 8  # engines that are open at once
_OPEN_BYTES = 1 << 30  # size of their files together; a loaded engine takes two or three times its file


@dataclass(frozen=True, slots=True, kw_only=True)
class _Opened:
    """An engine that has run once."""

    configuration: Configuration
    engine: Engine
    feeds: Mapping[str, Array]
    candidate: Candidate  # runs one inference at a time


@dataclass(frozen=True, slots=True, kw_only=True)
class Bench:
    """Measures configurations on one batch of reference inputs, and remembers the outcomes."""

    workspace: Workspace
    bundles: Mapping[str, Bundle]  # by name of the variant
    feeds: Callable[[int], Mapping[str, Array]]  # a batch of so many images
    check_time: Callable[[], None]  # raises OutOfTimeError when the search has to end
    remaining_s: Callable[[], float]
    on_refused: Callable[[str, EdgevitError], None]  # the name of a configuration that does not run, and why

    def race(self, configurations: Sequence[Configuration]) -> Race | None:
        """Return the outcome of a race, from an earlier run if it had the same; None if no engine opens.

        More engines than may be open at once race in groups, each with the best of the groups before it.
        """
        distinct = list({each.name: each for each in configurations}.values())
        if known := self.workspace.race([each.name for each in distinct]):
            return known
        outcome: Race | None = None
        size = self._group_size(distinct)
        rest = distinct
        while rest:
            best = [each for each in distinct if outcome is not None and each.name == outcome.fastest]
            group, rest = [*best, *rest[: size - len(best)]], rest[size - len(best) :]
            found = self._race_group(group)
            outcome = _joined(outcome, found)
        if outcome is not None:
            self.workspace.keep_race([each.name for each in distinct], outcome)
        return outcome

    def compare(self, incumbent: Configuration, candidates: Sequence[Configuration]) -> Race | None:
        """Return the time of each candidate over that of the incumbent, which is the first of the standings.

        None if the incumbent or none of the candidates opens.
        """
        names = [incumbent.name, *(each.name for each in candidates)]
        if known := self.workspace.race(names):
            return known
        found: list[Standing] = []
        size = self._group_size([incumbent, *candidates]) - 1
        for start in range(0, len(candidates), size):
            with ExitStack() as stack:
                opened = self._open_all(stack, [incumbent, *candidates[start : start + size]])
                slow = {each.name for each in _too_slow(opened)} - {incumbent.name}
                ready = self._candidates(stack, opened, without=slow)
                if len(ready) < 2 or ready[0].name != incumbent.name:
                    continue
                plan = replace(COMPARISON, max_total_s=max(0.1, self.remaining_s() / 2))
                first, *others = standings(measure(ready, plan, lambda _: self.check_time()))
                found += others if found else [first, *others]
        if not found:
            return None
        outcome = Race(tuple(found))
        self.workspace.keep_race(names, outcome)
        return outcome

    def _group_size(self, configurations: Sequence[Configuration]) -> int:
        largest = max(sum(file.size_bytes for file in self._bundle(each).manifest.files) for each in configurations)
        return max(2, min(_MAX_OPEN, _OPEN_BYTES // max(1, largest)))

    def _bundle(self, configuration: Configuration) -> Bundle:
        return self.bundles[configuration.variant.name]

    def _race_group(self, configurations: Sequence[Configuration]) -> Race | None:
        with ExitStack() as stack:
            opened = self._open_all(stack, configurations)
            slow = _too_slow(opened)
            found = self._candidates(stack, opened, without={each.name for each in slow})
            candidates = {each.name: each for each in found}

            def run(names: Sequence[str], plan: MeasurePlan) -> Sequence[LatencyReport]:
                self.check_time()
                return measure([candidates[name] for name in names], plan, lambda _: self.check_time())

            if not candidates:
                return None
            outcome = race(list(candidates), run, rungs=RUNGS, remaining_s=self.remaining_s)
            return Race((*outcome.standings, *slow))

    def _open_all(self, stack: ExitStack, configurations: Sequence[Configuration]) -> list[_Opened]:
        found = (self._open(stack, each) for each in configurations)
        return [each for each in found if each is not None]

    def _open(self, stack: ExitStack, configuration: Configuration) -> _Opened | None:
        """Open an engine and run it once; None, and a note, if that fails."""
        self.check_time()
        bundle, runtime = self._bundle(configuration), get_runtime(configuration.variant.fmt)
        if bundle.engine_path is None:
            return None
        options = replace(bundle.options, threads=configuration.threads, session=configuration.session)
        try:
            stack.enter_context(runtime.session())
            engine = stack.enter_context(runtime.open(bundle.engine_path, options))
            feeds = self.feeds(bundle.options.batch)
            candidate = candidate_from_engine(configuration.name, engine, feeds, threads=configuration.threads)
        except EdgevitError as error:
            self.on_refused(configuration.name, error)
            return None
        return _Opened(configuration=configuration, engine=engine, feeds=feeds, candidate=candidate)

    def _candidates(self, stack: ExitStack, opened: Sequence[_Opened], *, without: Container[str]) -> list[Candidate]:
        """Return the engines as they are measured, without those of these names."""
        found = []
        for each in opened:
            if each.candidate.name in without:
                continue
            try:
                found.append(under_load(stack, each.candidate, each.engine, each.feeds, each.configuration))
            except EdgevitError as error:
                self.on_refused(each.candidate.name, error)
        return found


def _too_slow(opened: Sequence[_Opened]) -> tuple[Standing, ...]:
    """Return the standings of engines that their first inference shows to be far slower than the fastest of them."""
    candidates = [each.candidate for each in opened]
    first_ms = {each.name: each.first_inference_ms for each in candidates if each.first_inference_ms is not None}
    return too_slow(first_ms, {each.name: each.batch for each in candidates})


def under_load(
    stack: ExitStack, candidate: Candidate, engine: Engine, feeds: Mapping[str, Array], configuration: Configuration
) -> Candidate:
    """Return the candidate as it is measured: in the streams of the configuration, which `stack` closes, or as it is.

    Raises MeasureError if the runtime has no streams.
    """
    if configuration.streams is None:
        return candidate
    runner = engine.throughput_runner(configuration.streams)
    if runner is None:
        raise MeasureError(f"{configuration.variant.fmt} runs one inference at a time here; leave --throughput out")
    stack.callback(runner.close)
    return in_streams(candidate, runner, feeds)


def _joined(first: Race | None, second: Race | None) -> Race | None:
    """Return the standings of two races that share the fastest of the first; ratios are to the fastest of all."""
    if first is None or second is None:
        return first or second
    shared = second.standing(first.fastest)
    earlier = [
        replace(each, ratio=each.ratio * shared.ratio, interval=None, dropped=each.dropped or shared.dropped)
        for each in first.standings
        if each.name != first.fastest
    ]
    return Race(tuple(sorted((*second.standings, *earlier), key=lambda each: (each.dropped, each.ratio))))
