"""Build a bundle's engine on this machine."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

from edgevit.bundles import store
from edgevit.bundles.build_records import BuildRecord, PrecisionRecord, RuntimeRecord
from edgevit.bundles.bundle import Bundle, bundle_name
from edgevit.bundles.latency_file import artifact_details, write_latency
from edgevit.bundles.manifest import CLASSES_FILE, REFERENCE_FILE, WEIGHTS_FILE, Manifest, read_manifest
from edgevit.bundles.verify import engine_parity
from edgevit.cpu import require_vnni
from edgevit.errors import MeasureError, MissingError
from edgevit.files import MODEL_FILE
from edgevit.latency.candidate import candidate_from_engine
from edgevit.latency.compare import latency_figures
from edgevit.latency.environment import Environment
from edgevit.latency.measure import measure
from edgevit.latency.plan import MeasurePlan
from edgevit.latency.report import LatencyReport
from edgevit.runtimes.base import BuildOptions, OnPhase, Runtime
from edgevit.runtimes.build import BuildResult, build_engine, open_built
from edgevit.runtimes.parity import ParityReport
from edgevit.runtimes.registry import get_runtime
from edgevit.runtimes.session_settings import SessionSettings


@dataclass(frozen=True, slots=True)
class BuildOutcome:
    """A published bundle, with the parity and the latency of its engine."""

    bundle: Bundle
    parity: ParityReport
    latency: tuple[LatencyReport, ...] = ()  # empty if it was not measured
    latency_problem: str = ""  # why it was not


def build(
    bundle: Bundle,
    *,
    fmt: str | None = None,
    threads: int | None = None,
    workspace_mb: int | None = None,
    plan: MeasurePlan | None = None,
    on_phase: OnPhase | None = None,
) -> BuildOutcome:
    """Build an engine from the bundle's ONNX file, verify it, and publish a bundle that holds it.

    With a `plan` it is measured as well, and the bundle keeps the samples; a measurement that fails costs nothing else.

    The result replaces the bundle if the format is its own, and is written next to it otherwise. On any error the
    bundle on disk is unchanged.

    Raises MissingError if the runtime or its device is missing, BuildError if the build fails, PrecisionError if
    another precision runs than was requested, ParityError if the engine's outputs are wrong, ExportError if the bundle
    cannot be written.
    """
    runtime = get_runtime(fmt or bundle.fmt, on_phase)
    inherited = _options_for(bundle, runtime)
    options = replace(inherited, threads=inherited.threads if threads is None else threads, workspace_mb=workspace_mb)
    runtime.require_precision(options.precision)
    if bundle.needs_vnni(runtime.fmt):
        require_vnni(bundle.name)
    target = _target(bundle, runtime)
    store.require_replaceable(target)  # before the build, which can take minutes
    with store.staging(target.parent) as staging, ExitStack() as stack:
        folder = staging / target.name
        with _translate_write_errors(folder):
            _copy_sources(bundle, folder)
            built = build_engine(runtime, folder / MODEL_FILE, folder, options)
        built = open_built(
            built, options, expected_fraction=bundle.quantized_fraction, node_macs=bundle.manifest.node_macs
        )
        if built.engine is None:
            raise MissingError(str(built.missing))
        stack.enter_context(built.engine)
        parity = engine_parity(built.engine, bundle.references(), options)
        parity.require()
        reports, problem = _measure(built, bundle, options, plan)
        build_record = BuildRecord.of(built, options, threads=inherited.threads)
        manifest = _new_manifest(bundle, built, folder, build_record=build_record, parity=parity, reports=reports)
        with _translate_write_errors(folder):
            if reports:
                write_latency(folder, reports)
            store.write_manifest(folder, manifest)
        store.publish({folder: target})
        return BuildOutcome(Bundle(target, read_manifest(target)), parity, reports, problem)


def _options_for(bundle: Bundle, runtime: Runtime) -> BuildOptions:
    """Return the bundle's options, for another runtime without those that were found or meant for its own."""
    if runtime.fmt == bundle.fmt:
        return bundle.options
    return replace(bundle.options, compute_capabilities=None, threads=None, session=SessionSettings())


def _target(bundle: Bundle, runtime: Runtime) -> Path:
    """Return the folder of the new bundle: that of `bundle`, or one next to it for another runtime."""
    if runtime.fmt == bundle.fmt:
        return bundle.path.resolve()
    name = bundle_name(bundle.manifest.model.name, bundle.options.precision, runtime.fmt)
    return bundle.path.resolve().with_name(name)


def _translate_write_errors(folder: Path) -> AbstractContextManager[None]:
    """Raise ExportError for a full disk; the folder of a build is not chosen."""
    return store.translate_write_errors(folder, advice="free some space")


def _copy_sources(bundle: Bundle, folder: Path) -> None:
    """Copy the files that do not depend on the engine into a new folder."""
    folder.mkdir()
    for file in (MODEL_FILE, WEIGHTS_FILE, REFERENCE_FILE, CLASSES_FILE):
        if (bundle.path / file).exists():
            shutil.copyfile(bundle.path / file, folder / file)


def _new_manifest(
    bundle: Bundle,
    built: BuildResult,
    folder: Path,
    *,
    build_record: BuildRecord,
    parity: ParityReport,
    reports: Sequence[LatencyReport],
) -> Manifest:
    """Return the bundle's manifest with the engine in `folder` in place of its own, and nothing measured on that."""
    return replace(
        bundle.manifest,
        build=build_record,
        runtime=RuntimeRecord.of(built, folder),
        precision=PrecisionRecord(requested=bundle.options.precision, executed=built.precision),
        parity=parity.to_json(),
        latency=tuple(latency_figures(report) for report in reports) or None,
        comparison=None,
        environment=Environment.capture().to_json(),
    )


def _measure(
    built: BuildResult, bundle: Bundle, options: BuildOptions, plan: MeasurePlan | None
) -> tuple[tuple[LatencyReport, ...], str]:
    """Measure a built engine alone; return the report, or none and the reason."""
    if plan is None or built.engine is None or built.artifact is None or built.precision is None:
        return (), ""
    engine = built.artifact.path
    try:
        candidate = candidate_from_engine(
            built.runtime.fmt,
            built.engine,
            bundle.references()[0].batch(options.batch_to_measure),
            threads=options.threads,
            loading=built.loading,
            details=artifact_details(engine, engine.with_name(MODEL_FILE), precision=built.precision.actual),
        )
        return measure([candidate], plan), ""
    except MeasureError as error:
        return (), str(error)
