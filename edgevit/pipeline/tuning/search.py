"""Search for the fastest configuration: build variants, race them, then change one thing at a time.

The full product of runtimes, precisions, forms, threads and settings would take hours. So the standard variants race
first, with all cores. Then the number of threads, the session settings and the form of the graph are changed one after
the other, for the fastest variant of each runtime that is not far behind, and the layers that are int8; a change stays
only if it is shown to be faster.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import NamedTuple

from edgevit.bundles.bundle import Bundle
from edgevit.errors import EdgevitError
from edgevit.export.forms import other_forms
from edgevit.export.quantization.sensitivity import MIN_INT8_FRACTION
from edgevit.formats import get_format
from edgevit.latency.throughput import stream_counts
from edgevit.pipeline.tuning.bench import Bench
from edgevit.pipeline.tuning.builder import Builder
from edgevit.pipeline.tuning.deadline import Deadline, OutOfTimeError
from edgevit.pipeline.tuning.layer_groups import chosen_groups, trial_of
from edgevit.pipeline.tuning.racing import Race
from edgevit.pipeline.tuning.space import Configuration, Variant, combined, opened_like, single_changes
from edgevit.pipeline.tuning.workspace import Refusal, Workspace, advise_other_cache
from edgevit.precisions import get_policy
from edgevit.types import Precision

_LOWER_PRECISION_FRACTION = 0.55  # fraction of the time after which nothing is converted to fp16 or int8
_TRIALS_FRACTION = 0.6  # fraction of the time after which no engine is built to measure a group of layers
_MAX_BATCH = 64  # largest batch that is tried under full load
_WORTH_TUNING = 1.5  # ratio to the fastest up to which an engine is tuned: settings rarely gain more than that


class Lane(NamedTuple):
    """A runtime and a precision, whose best configuration is sought."""

    fmt: str
    precision: Precision

    @classmethod
    def of(cls, variant: Variant) -> Lane:
        return cls(variant.fmt, variant.precision)

    def __str__(self) -> str:
        return f"{self.fmt}-{self.precision}"


@dataclass(frozen=True, slots=True)
class Step:
    """One step of a search. It may append further steps, and raises OutOfTimeError if the time is up."""

    name: str
    run: Callable[[], object]


@dataclass(slots=True, kw_only=True)
class Search:
    """The state of one search. `best` has the fastest configuration of each runtime and precision so far."""

    builder: Builder  # for the batch that the search begins with
    workspace: Workspace
    bench: Bench
    deadline: Deadline
    variants: Sequence[Variant]
    threads: Sequence[int]  # to try; the first is the default
    throughput: bool  # whether images per second under full load count, not the latency
    on_step: Callable[[str], None]
    bundles: dict[str, Bundle]  # by name of the variant; shared with the bench
    refused: list[Refusal]
    races: list[tuple[str, Race]] = field(default_factory=list)
    not_tried: list[str] = field(default_factory=list)
    best: dict[Lane, Configuration] = field(default_factory=dict)
    interrupted: bool = False
    _steps: deque[Step] = field(default_factory=deque)
    _builders: dict[int, Builder] = field(default_factory=dict)  # for other batches, by batch

    def run(self) -> None:
        """Take all steps, or those for which there is time. Ctrl-C ends the search as if the time were up."""
        missing = [each for each in self.variants if self._take_kept(each) is None]
        self._steps.extend(Step(f"build {each.name}", partial(self._build_standard, each)) for each in missing)
        self._steps.append(Step("race of the variants", self._race_variants))
        while self._steps:
            step = self._steps.popleft()
            races = len(self.races)
            try:
                self.deadline.check()
                self.on_step(step.name)
                step.run()
            except OutOfTimeError:
                self.not_tried.append(self._rest_of(step, races))
            except EdgevitError as error:
                self.refused.append(Refusal.of(step.name, error))
            except KeyboardInterrupt:
                self.interrupted = True
                self.not_tried += [self._rest_of(step, races), *(each.name for each in self._steps)]
                break
        for variant in self.variants:
            if variant.name in self.bundles:  # it may not have raced, for lack of time
                self.best.setdefault(Lane.of(variant), self.start(variant))

    def _rest_of(self, step: Step, races: int) -> str:
        """Return what was not tried of a step that began after this many races: its races may have changed `best`."""
        return step.name if len(self.races) == races else f"the rest of {step.name}"

    def start(self, variant: Variant) -> Configuration:
        """Return the configuration that a standard variant races in: all cores, and under full load a stream a core."""
        streams = self.threads[0] if self.throughput else None
        return Configuration(variant=variant, threads=self.threads[0], streams=streams)

    def _build_standard(self, variant: Variant) -> None:
        """Build a standard variant; one whose graph is converted, which may take long, leaves time for races."""
        with self.deadline.until(_LOWER_PRECISION_FRACTION if get_policy(variant.precision).converts_graph else 1.0):
            self.deadline.check()
            self._build(variant)

    def _build(self, variant: Variant) -> bool:
        """Build a variant, or take the bundle of an earlier run; return False if that is not possible."""
        if (kept := self._take_kept(variant)) is not None:
            return kept
        folder = self.workspace.bundle_folder(variant)
        try:
            with advise_other_cache(folder):
                self.bundles[variant.name] = self._builder(variant.batch).build(variant, folder)
        except EdgevitError as error:
            refusal = Refusal.of(variant.name, error)
            self.workspace.refuse(refusal)
            self.refused.append(refusal)
            return False
        return True

    def _take_kept(self, variant: Variant) -> bool | None:
        """Take the bundle or the refusal of an earlier build, which needs no time; return whether it is a bundle.

        None if there is neither.
        """
        if (refusal := self.workspace.refused.get(variant.name)) is not None:
            self.refused.append(refusal)
            return False
        bundle = self.workspace.built(variant)
        if bundle is None:
            return None
        self.bundles[variant.name] = bundle
        return True

    def _builder(self, batch: int) -> Builder:
        if batch == self.builder.batch:
            return self.builder
        if batch not in self._builders:
            self._builders[batch] = self.builder.with_batch(batch)
        return self._builders[batch]

    def _race(self, title: str, configurations: Sequence[Configuration]) -> Race | None:
        outcome = self.bench.race(configurations)
        if outcome is not None:
            self.races.append((title, outcome))
        return outcome

    def _race_variants(self) -> None:
        """Race the standard variants, and plan what to try with the fastest of each runtime."""
        starts = [self.start(each) for each in self.variants if each.name in self.bundles]
        outcome = self._race("variants", starts) if starts else None
        if outcome is None:
            return
        by_name = {each.name: each for each in starts}
        raced = [by_name[standing.name] for standing in outcome.standings]
        self.best |= {Lane.of(start.variant): start for start in raced}
        self._plan([by_name[each.name] for each in outcome.standings if each.ratio <= _WORTH_TUNING])

    def _plan(self, worth_tuning: Sequence[Configuration]) -> None:
        """Plan what to try with engines that are not far behind, the fastest first."""
        leaders: dict[str, Configuration] = {}  # the fastest of each runtime
        for start in worth_tuning:
            leaders.setdefault(start.variant.fmt, start)
        self._plan_float_precisions({leader.name for leader in leaders.values()})
        lanes = [Lane.of(leader.variant) for leader in leaders.values()]
        for lane in lanes:
            self._plan_settings(lane)
        for lane in lanes:
            self._plan_forms(lane)
        in_int8 = [Lane.of(start.variant) for start in worth_tuning if start.variant.precision == "int8"]
        for lane in in_int8:
            self._steps.append(Step(f"int8 by layer groups of {lane.fmt}", partial(self._try_groups, lane)))
        if self.throughput:
            self._steps.extend(Step(f"batches of {lane.fmt}", partial(self._try_batches, lane)) for lane in lanes)

    def _plan_settings(self, lane: Lane) -> None:
        if self.throughput:
            self._steps.append(Step(f"streams of {lane.fmt}", partial(self._try_streams, lane)))
        if len(self.threads) > 1:
            self._steps.append(Step(f"threads of {lane.fmt}", partial(self._try_threads, lane)))
        self._steps.append(Step(f"session settings of {lane.fmt}", partial(self._try_settings, lane)))

    def _plan_float_precisions(self, leaders: Collection[str]) -> None:
        """Plan to lower the precision of the float operators of engines that do not lead.

        All settings of the leaders are tried. This one may change who leads: int8 with the rest in bf16 can pass the
        bf16 engine that is ahead of int8 with the rest in fp32.
        """
        for lane, start in self.best.items():
            if start.name not in leaders and any(single_changes(start, of_precision=True)):
                name = f"inference precision of {lane}"
                self._steps.append(Step(name, partial(self._try_float_precisions, lane)))

    def _compete(self, title: str, lane: Lane, candidates: Sequence[Configuration]) -> Race | None:
        """Race the best configuration of a runtime and precision with candidates; the winner replaces it."""
        incumbent = self.best[lane]
        outcome = self._race(title, [incumbent, *candidates])
        if outcome is not None:
            winner = outcome.winner(incumbent.name)
            self.best[lane] = next(each for each in (incumbent, *candidates) if each.name == winner)
        return outcome

    def _try_threads(self, lane: Lane) -> None:
        candidates = [replace(self.best[lane], threads=count) for count in self.threads[1:]]
        self._compete(f"threads, {lane}", lane, candidates)
        self._share(lane)

    def _try_streams(self, lane: Lane) -> None:
        incumbent = self.best[lane]
        counts = stream_counts(incumbent.threads, on_gpu=get_format(lane.fmt).runs_on_device)
        self._compete(f"streams, {lane}", lane, [replace(incumbent, streams=count) for count in counts])
        self._share(lane)

    def _try_batches(self, lane: Lane) -> None:
        """Double the batch as long as that is shown to be faster for each image."""
        while (batch := 2 * self.best[lane].variant.batch) <= _MAX_BATCH:
            incumbent = self.best[lane]
            candidate = replace(incumbent, variant=replace(incumbent.variant, batch=batch))
            if not self._build(candidate.variant):
                return
            self._compete(f"batch {batch}, {lane}", lane, [candidate])
            if self.best[lane] is incumbent:
                return

    def _try_settings(self, lane: Lane) -> None:
        """Change each setting alone; then combine the changes that are shown to be faster."""
        incumbent = self.best[lane]
        changes = list(single_changes(incumbent))
        title = f"settings, {lane}"
        outcome = self._compete(title, lane, changes) if changes else None
        if outcome is None or self.best[lane] is incumbent:
            return
        slower_start = outcome.standing(incumbent.name).ratio
        ordered = [each for standing in outcome.standings for each in changes if each.name == standing.name]
        gains = [each for each in ordered if outcome.standing(each.name).ratio < slower_start]
        together = combined(incumbent, gains)
        if together.name not in {each.name for each in changes}:
            self._compete(f"{title}, combined", lane, [together])
        self._share(lane)

    def _try_float_precisions(self, lane: Lane) -> None:
        changes = list(single_changes(self.best[lane], of_precision=True))
        self._compete(f"inference precision, {lane}", lane, changes)

    def _share(self, lane: Lane) -> None:
        """Open the other precisions of the runtime with the same threads and settings."""
        found = self.best[lane]
        for each, other in self.best.items():
            if each.fmt == lane.fmt and each.precision != lane.precision:
                self.best[each] = opened_like(other, found)

    def _plan_forms(self, lane: Lane) -> None:
        variant = self.best[lane].variant
        for form in other_forms(self.builder.graph, variant.fmt, precision=variant.precision):
            other = replace(variant, form=form)
            self._steps.append(Step(f"form {other.name}", partial(self._try_form, lane, other)))

    def _try_form(self, lane: Lane, other: Variant) -> None:
        if self._build(other):
            self._compete(f"form {other.name}", lane, [replace(self.best[lane], variant=other)])

    def _try_groups(self, lane: Lane) -> None:
        """Measure each group of layers in the other precision; combine the changes that are shown to be faster."""
        incumbent = self.best[lane]
        base = self.bundles[incumbent.variant.name].manifest
        int8_fraction = base.quantized_fraction or 0.0
        trials = {}
        for group in self.builder.groups(incumbent.variant):
            if group.in_int8 and int8_fraction - group.fraction < MIN_INT8_FRACTION:
                continue  # without it, the graph is not called int8
            if self._build_trial(trial := trial_of(incumbent.variant, group, base)):
                trials[replace(incumbent, variant=trial).name] = (group, trial)
        candidates = [replace(incumbent, variant=trial) for _, trial in trials.values()]
        outcome = self.bench.compare(incumbent, candidates) if candidates else None
        if outcome is None:
            return
        title = f"int8 by layer groups, {lane}"
        self.races.append((title, outcome))
        measured = [(trials[standing.name][0], standing) for standing in outcome.standings[1:]]
        choices = chosen_groups(measured, int8_fraction)
        if any(choice.moved for choice in choices):
            combination = replace(incumbent.variant, groups=choices)
            if self._build(combination):
                self._compete(f"{title}, combined", lane, [replace(incumbent, variant=combination)])

    def _build_trial(self, trial: Variant) -> bool:
        """Build an engine with one group changed, while there is time to measure it and build what follows from it."""
        if (kept := self._take_kept(trial)) is not None:
            return kept
        try:
            with self.deadline.until(_TRIALS_FRACTION):
                self.deadline.check()
                return self._build(trial)
        except OutOfTimeError:
            self.not_tried.append(trial.name)
            return False
