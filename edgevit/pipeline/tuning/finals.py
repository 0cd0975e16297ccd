"""The final measurement: the finalists are staged as bundles and measured in one run."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

from edgevit.bundles import store
from edgevit.bundles.benchmark import peak_memory_mb
from edgevit.bundles.bundle import Bundle
from edgevit.bundles.engine import load_engine, require_precision
from edgevit.bundles.latency_file import bundle_details
from edgevit.bundles.manifest import MANIFEST_FILE, read_manifest
from edgevit.errors import EdgevitError
from edgevit.files import link_or_copy
from edgevit.latency.candidate import Candidate, candidate_from_engine
from edgevit.latency.measure import measure
from edgevit.latency.plan import MeasurePlan
from edgevit.latency.report import LatencyReport
from edgevit.pipeline.tuning.bench import under_load
from edgevit.pipeline.tuning.space import Configuration
from edgevit.pipeline.tuning.workspace import Refusal
from edgevit.runtimes.loading import timed_load
from edgevit.runtimes.registry import get_runtime


@dataclass(frozen=True, slots=True, kw_only=True)
class Finalist:
    """A configuration as the bundle that would be recommended: its settings stand in the manifest."""

    configuration: Configuration
    bundle: Bundle

    @property
    def size_bytes(self) -> int:
        """The size of the engine's files."""
        return sum(record.size_bytes for record in self.bundle.manifest.engine_records)


def stage(configuration: Configuration, bundle: Bundle, folder: Path) -> Finalist:
    """Create the bundle of a configuration in `folder`: the files of `bundle`, and a manifest with the settings."""
    target = folder / f"{len(list(folder.iterdir()))}-{bundle.name}"
    store.copy_folder(bundle.path, target, copy=link_or_copy, left_out=(MANIFEST_FILE,))
    build = replace(bundle.manifest.build, threads=configuration.threads, session=configuration.session.to_json())
    store.save_manifest(target, replace(bundle.manifest, build=build))
    return Finalist(configuration=configuration, bundle=Bundle(target, read_manifest(target)))


def measure_finalists(
    finalists: Sequence[Finalist], *, limit_s: float, duration_s: float
) -> tuple[tuple[LatencyReport, ...], tuple[Refusal, ...]]:
    """Measure the bundles in one interleaved run of `duration_s` seconds each, or of `limit_s` in all.

    Returns the reports, and why others were not measured.
    """
    failed: list[Refusal] = []
    with ExitStack() as stack:
        candidates = []
        for finalist in finalists:
            name = finalist.configuration.name
            try:
                candidates.append(_candidate(stack, finalist))
            except EdgevitError as error:
                failed.append(Refusal.of(name, error))
        if not candidates:
            return (), tuple(failed)
        plan = MeasurePlan(
            min_runs=64,
            min_duration_s=duration_s,
            max_duration_s=10 * duration_s,
            turn_s=duration_s / 20,
            warmup_max_s=3.0,
            idle_s=0.2,
            clock_settle_s=1.0,
            max_total_s=max(0.2, limit_s),
        )
        return measure(candidates, plan), tuple(failed)


def _candidate(stack: ExitStack, finalist: Finalist) -> Candidate:
    """Open the bundle of a finalist as its user will; `stack` closes it."""
    bundle, configuration = finalist.bundle, finalist.configuration
    stack.enter_context(get_runtime(bundle.fmt).session())
    engine, loading = timed_load(lambda: load_engine(bundle))
    stack.enter_context(engine)
    feeds = bundle.references()[0].batch(bundle.options.batch)
    candidate = candidate_from_engine(
        configuration.name,
        engine,
        feeds,
        threads=configuration.threads,
        loading=loading,
        details=bundle_details(bundle, precision=require_precision(bundle, engine).actual),
    )
    return under_load(stack, candidate, engine, feeds, configuration)


def with_peak_memory(report: LatencyReport, finalist: Finalist) -> LatencyReport:
    """Return a report with the peak memory of a process that opens the bundle, and its streams, and runs it once."""
    configuration = finalist.configuration
    peak_mb = peak_memory_mb(finalist.bundle, configuration.threads, streams=configuration.streams)
    return replace(report, peak_memory_mb=peak_mb)
