"""`--fmt auto`: the engine that `edgevit tune` found for this model on this machine."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from edgevit.errors import UsageError
from edgevit.export import passes
from edgevit.export.graph import OnnxGraph
from edgevit.formats import Int8Range
from edgevit.models.description import ModelDescription
from edgevit.pipeline.config import ExportConfig
from edgevit.pipeline.export_run import Progress, StageTimer
from edgevit.pipeline.source import source_of
from edgevit.pipeline.tuning.device_cache import Choice, choose, device_key, read_choices
from edgevit.precisions import get_policy
from edgevit.runtimes.base import BuildOptions
from edgevit.types import Precision


@dataclass(frozen=True, slots=True, kw_only=True)
class TunedEngine:
    """The engine to export, and the graph that was captured to find it."""

    choice: Choice
    captured: OnnxGraph
    note: str  # about a faster engine that the options rule out, or another range of weights; empty if there is none

    @property
    def sentence(self) -> str:
        choice = self.choice
        return (
            f"auto: {choice.configuration.name}, found by edgevit tune on this machine "
            f"({choice.p50_ms:.2f} ms, {choice.accuracy})"
        )

    def config(
        self,
        of_any_engine: Callable[..., ExportConfig],
        options: BuildOptions,
        *,
        calib: Path | None,
        labeled: Path | None,
        max_drop: float | None,
        keep_float: tuple[str, ...] = (),
    ) -> ExportConfig:
        """Return the options of an export of this engine: `of_any_engine` with those that depend on the engine.

        Calibration images, labeled images, a bound and modules in float that the precision of the engine does not take
        are left out: the user gave them before the engine was known, and ExportConfig would refuse them.
        """
        found, policy = self.choice.configuration, get_policy(self.choice.configuration.variant.precision)
        lower, calibrated = policy.name != "fp32", policy.converts_graph
        return of_any_engine(
            formats=(found.variant.fmt,),
            options=self._options(options),
            form=found.variant.form,
            groups=found.variant.groups,
            tuned_threads=found.threads,
            calib=calib if calibrated else None,
            eval=labeled if lower else None,
            max_drop=max_drop if policy.needs_calibration or (lower and labeled is not None) else None,
            int8_range=self.choice.int8_range if policy.name == "int8" else "safe",
            keep_float=keep_float if calibrated else (),
        )

    def _options(self, options: BuildOptions) -> BuildOptions:
        """Return build options with the precision, threads and session settings of the engine."""
        found = self.choice.configuration
        return replace(options, precision=found.variant.precision, threads=found.threads, session=found.session)


def find_tuned(
    model: ModelDescription,
    *,
    precision: Precision | None,
    threads: int | None,
    calibrated: bool,
    int8_range: Int8Range | None = None,
    progress: Progress | None = None,
) -> TunedEngine:
    """Return the engine that was found for the model's graph, its batch included.

    `precision` and `threads` are those requested; None: any. `int8_range` replaces the range of an int8 engine's
    weights; None: that with which it was tuned. Raises UsageError if there is no engine, or none that fits.
    """
    captured = source_of(model).capture(StageTimer(progress), BuildOptions(batch=model.batch))
    choices = read_choices(device_key(passes.optimize(captured)))
    if not choices:
        raise UsageError(
            f"{model.name} was not tuned on this machine in this form (batch, image size, classes), so --fmt auto "
            f"knows no engine; run edgevit tune {model.origin.source or model.name} with the same options and weights "
            "(a factory may draw others each time), or name a format"
        )
    choice, note = choose(choices, precision=precision, threads=threads, calibrated=calibrated)
    if choice is None:
        known = ", ".join(each.configuration.name for each in choices)
        raise UsageError(f"no tuned engine of {model.name} fits --precision, --threads and --calib; found are: {known}")
    if choice.configuration.variant.precision == "int8" and int8_range not in (None, choice.int8_range):
        note = f"the time and accuracy are those of --int8-range {choice.int8_range}, with which it was tuned"
        choice = replace(choice, int8_range=int8_range)
    return TunedEngine(choice=choice, captured=captured, note=note)
