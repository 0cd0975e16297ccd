"""`tune`: the stages of a search, from the model to the published bundle."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from itertools import takewhile
from pathlib import Path

from edgevit.bundles import store
from edgevit.bundles.bundle import Bundle, bundle_name
from edgevit.errors import MissingError
from edgevit.models.description import ModelDescription
from edgevit.pipeline import run as pipeline
from edgevit.pipeline.config import ExportConfig
from edgevit.pipeline.export_run import Progress, StageTimer
from edgevit.pipeline.source import source_of
from edgevit.pipeline.tuning.bench import Bench
from edgevit.pipeline.tuning.builder import Builder
from edgevit.pipeline.tuning.config import TuneConfig, search_key
from edgevit.pipeline.tuning.deadline import Deadline
from edgevit.pipeline.tuning.device_cache import device_key
from edgevit.pipeline.tuning.examiner import require_readable
from edgevit.pipeline.tuning.outcome import keep_for_auto, measure_and_check
from edgevit.pipeline.tuning.report import TuningReport
from edgevit.pipeline.tuning.search import Search
from edgevit.pipeline.tuning.space import Variant, usable_formats, usable_threads, variants
from edgevit.pipeline.tuning.workspace import Refusal, Workspace, discard, open_workspace
from edgevit.runtimes.base import BuildOptions

_RESERVE_FRACTION, _RESERVE_S = 0.3, 120.0  # of the time, for the finals: a fraction, and at most so many seconds
_INTERRUPTED_S = 20.0  # for the finals after Ctrl-C


def tune(model: ModelDescription, config: TuneConfig, progress: Progress | None = None) -> TuningReport:
    """Find the fastest engine of `model` on this machine, check it, and publish its bundle.

    Ends within `config.limit_s`, or at Ctrl-C, with the best so far; the next call goes on from there. Raises
    MissingError if no runtime is installed, MeasureError if the time allows no measurement, ParityError if no engine
    passes its checks, and if none can be built, the error that all have in common, else BuildError.
    """
    reserve_s = min(_RESERVE_S, _RESERVE_FRACTION * config.limit_s)
    deadline = Deadline(config.limit_s, reserve_s=reserve_s, start_s=config.start_s)
    formats, not_installed = usable_formats(config.formats)
    if not formats:
        raise MissingError(f"no runtime runs here: {'; '.join(not_installed.values())}")
    tried = variants(formats, calibrated=config.calib is not None, batch=model.batch)
    _require_writable(config.out, [bundle_name(model.name, each.precision, each.fmt) for each in tried])
    timer = StageTimer(progress)
    base = _export_config(config, formats, batch=model.batch)
    captured = None
    if config.calib is None:  # an ONNX file with int8 layers is tried as it is
        captured = source_of(model).capture(timer, BuildOptions(batch=model.batch))
    with tempfile.TemporaryDirectory(prefix="edgevit-") as scratch:
        export, graph, graph_parity = pipeline.prepare(model, base, timer, Path(scratch), captured=captured)
        graph_parity.require()
        require_readable(export.references.eval_dataset)
        key = device_key(graph)
        with open_workspace(search_key(key, model, config), fresh=config.fresh) as workspace:
            limited = _limited(progress, deadline)
            builder = Builder(export=export, graph=graph, graph_parity=graph_parity, progress=limited)
            search = _search(builder, workspace, deadline, config, tried, timer)
            search.run()
            if search.interrupted:
                deadline.shorten(_INTERRUPTED_S)
            timer.update("final measurement")
            outcome = measure_and_check(search, config, Path(scratch) / "finalists", timer)
            report = outcome.report(config, not_installed=not_installed)
            report = replace(report, cached=not config.throughput and keep_for_auto(report, key))
            outcome.publish(report)
            if report.complete:
                discard(workspace)
    return report


def _require_writable(out: Path, names: Sequence[str]) -> None:
    """Raise ExportError before the search if no bundle can be written in `out`, or one of them would replace a file.

    Leaves no folder behind: a search may end without a bundle.
    """
    created = list(takewhile(lambda folder: not os.path.lexists(folder), (out, *out.parents)))
    try:
        with store.staging(out):
            for name in names:
                store.require_replaceable(out / name)
    finally:
        with contextlib.suppress(OSError):
            for folder in created:
                folder.rmdir()


def _export_config(config: TuneConfig, formats: Sequence[str], *, batch: int) -> ExportConfig:
    """Return the options of the export that all variants share: those of the most demanding precision."""
    return pipeline.target_this_machine(
        ExportConfig(
            formats=tuple(formats),
            options=BuildOptions(precision="fp16" if config.calib is None else "int8", batch=batch),
            images=config.images,
            calib=config.calib,
            eval=config.eval,
            int8_range="safe" if config.calib is None else config.weight_range,
            max_drop=config.max_drop,
            strict=config.strict,
        )
    )


def _limited(progress: Progress | None, deadline: Deadline) -> Progress:
    """Return a progress function that also ends a build whose time is up."""

    def on_stage(name: str, elapsed_s: float | None) -> None:
        if progress is not None:
            progress(name, elapsed_s)
        deadline.check()

    return on_stage


def _search(
    builder: Builder,
    workspace: Workspace,
    deadline: Deadline,
    config: TuneConfig,
    tried: Sequence[Variant],
    timer: StageTimer,
) -> Search:
    bundles: dict[str, Bundle] = {}
    refused: list[Refusal] = []
    bench = Bench(
        workspace=workspace,
        bundles=bundles,
        feeds=builder.export.references.outputs[0].batch,
        check_time=deadline.check,
        remaining_s=lambda: deadline.search_s,
        on_refused=lambda name, error: refused.append(Refusal.of(name, error)),
    )
    return Search(
        builder=builder,
        workspace=workspace,
        bench=bench,
        deadline=deadline,
        variants=tried,
        threads=usable_threads(config.threads),
        throughput=config.throughput,
        on_step=timer.update,
        bundles=bundles,
        refused=refused,
    )
