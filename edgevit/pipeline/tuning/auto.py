"""`--fmt auto`: the engine that `edgevit tune` found for this model on this machine."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from edgevit.errors import UsageError
from edgevit.export import passes
from edgevit.export.graph import OnnxGraph
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
    note: str  # about a faster engine that the options rule out; empty if there is none

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
    ) -> ExportConfig:
        """Return the options of an export of this engine: `of_any_engine` with those that depend on the engine.

        Calibration images, labeled images and a bound that the precision of the engine does not take are left out:
        the user gave them before the engine was known, and ExportConfig would refuse them.
        """
        found = self.choice.configuration
        lower, calibrated = found.variant.precision != "fp32", get_policy(found.variant.precision).converts_graph
        return of_any_engine(
            formats=(found.variant.fmt,),
            options=self._options(options),
            form=found.variant.form,
            groups=found.variant.groups,
            tuned_threads=found.threads,
            calib=calib if calibrated else None,
            eval=labeled if lower else None,
            max_drop=max_drop if lower else None,
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
    progress: Progress | None = None,
) -> TunedEngine:
    """Return the engine that was found for the model's graph, its batch included.

    `precision` and `threads` are those requested; None: any. Raises UsageError if there is none, or none that fits.
    """
    captured = source_of(model).capture(StageTimer(progress), BuildOptions(batch=model.batch))
    choices = read_choices(device_key(passes.optimize(captured)))
    if not choices:
        raise UsageError(
            f"{model.name} was not tuned on this machine in this form (batch, image size, classes), so --fmt auto "
            f"knows no engine; run edgevit tune {model.origin.source or model.name} with the same options, or name a "
            "format"
        )
    choice, note = choose(choices, precision=precision, threads=threads, calibrated=calibrated)
    if choice is None:
        known = ", ".join(each.configuration.name for each in choices)
        raise UsageError(f"no tuned engine of {model.name} fits --precision, --threads and --calib; found are: {known}")
    return TunedEngine(choice=choice, captured=captured, note=note)
