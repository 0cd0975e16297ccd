"""Measure the engines of an export and the model itself side by side."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager

from edgevit.bundles.latency_file import artifact_details
from edgevit.errors import BuildError, InferenceError, MeasureError, MissingError
from edgevit.files import MODEL_FILE
from edgevit.latency.candidate import PYTORCH_MODEL, Candidate, candidate_from_engine
from edgevit.latency.measure import measure
from edgevit.latency.progress import MeasureProgress, OnMeasure
from edgevit.latency.report import LatencyReport
from edgevit.pipeline.export_run import ExportRun, LatencyOutcome, StageTimer
from edgevit.runtimes.base import Engine
from edgevit.runtimes.build import BuildResult
from edgevit.runtimes.loading import Loading


def measure_side_by_side(export: ExportRun, engines: Mapping[str, BuildResult]) -> LatencyOutcome:
    """Measure the model itself and all engines side by side, in one interleaved run.

    A candidate that cannot be measured is left out with a reason: the bundles are built and verified by now.
    """
    if not engines:
        return LatencyOutcome()
    options = export.config.options
    feeds = export.references.outputs[0].batch(options.batch_to_measure)
    loaded: dict[str, tuple[Engine, Loading | None]] = {}
    candidates: list[Candidate] = []
    problems: list[str] = []
    reports: Sequence[LatencyReport] = ()
    with export.timer.stage("latency", timed_calls=True), ExitStack() as stack:
        with _collect_problem(problems):
            baseline = stack.enter_context(export.source.engine(export.captured, threads=options.threads))
            loaded[export.source.baseline] = baseline, None
        loaded |= {name: (built.engine, built.loading) for name, built in engines.items() if built.engine is not None}
        for name, (engine, loading) in loaded.items():
            with _collect_problem(problems):
                details = _measured_files(engines.get(name)) or _named_model(export)
                candidates.append(
                    candidate_from_engine(
                        name, engine, feeds, threads=options.threads, loading=loading, details=details
                    )
                )
        with _collect_problem(problems):
            reports = measure(candidates, export.config.measure_plan, _show_latency(export.timer)) if candidates else ()
    return LatencyOutcome(reports={report.name: report for report in reports}, problems=tuple(problems))


def _measured_files(built: BuildResult | None) -> dict[str, str]:
    """Return the details that tie a measurement to an engine; empty for the model itself."""
    if built is None or built.artifact is None or built.precision is None:
        return {}
    engine = built.artifact.path
    return artifact_details(engine, engine.with_name(MODEL_FILE), precision=built.precision.actual)


def _named_model(export: ExportRun) -> dict[str, str]:
    """Return the options that name the model itself, for the command that repeats the measurement."""
    options = export.model.origin.torch_options
    return {PYTORCH_MODEL: options} if options else {}


@contextmanager
def _collect_problem(problems: list[str]) -> Iterator[None]:
    """Add the message of an engine that cannot be opened or measured to `problems` instead of raising it."""
    try:
        yield
    except (MeasureError, MissingError, BuildError, InferenceError) as error:
        problems.append(str(error))


def _show_latency(timer: StageTimer) -> OnMeasure:
    """Show the progress of a latency measurement as the state of its stage."""

    def on_progress(progress: MeasureProgress) -> None:
        timer.update(f"latency: {progress}")

    return on_progress
