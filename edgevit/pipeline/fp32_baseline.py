"""Build the fp32 engine that a lower precision is compared with."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from edgevit.bundles import store
from edgevit.export.check import check
from edgevit.export.graph import OnnxGraph
from edgevit.files import MODEL_FILE
from edgevit.pipeline import engine_memory
from edgevit.pipeline.export_run import BuiltBundle, ExportRun
from edgevit.runtimes.base import BuildOptions
from edgevit.runtimes.build import BuildResult, build_engine, open_built
from edgevit.runtimes.session_settings import SessionSettings


@dataclass(frozen=True, slots=True, kw_only=True)
class Fp32Baseline:
    """fp32 for the same runtime as a bundle in lower precision."""

    graph: OnnxGraph
    built: BuildResult | None  # None if the engine of the bundle does not run here


def build_fp32_baselines(
    export: ExportRun, bundles: Sequence[BuiltBundle], specialize: Callable[[str], OnnxGraph], folder: Path
) -> dict[str, Fp32Baseline]:
    """Return the fp32 baseline of each bundle by format; `specialize` returns the fp32 graph for a format."""
    return {
        bundle.fmt: _build_baseline(export, bundle, check(specialize(bundle.fmt)), folder / bundle.fmt)
        for bundle in bundles
    }


def candidate_name(fmt: str) -> str:
    """Return the name of a format's fp32 baseline in measurements, such as "ort fp32"."""
    return f"{fmt} fp32"


def resume_baseline(baseline: Fp32Baseline, bundle: BuiltBundle) -> Fp32Baseline:
    """Load the engine again if it was closed for its size."""
    if baseline.built is None:
        return baseline
    return replace(baseline, built=engine_memory.resume(baseline.built, _options(bundle)))


def _options(bundle: BuiltBundle) -> BuildOptions:
    return replace(bundle.options, precision="fp32", session=SessionSettings())


def _build_baseline(export: ExportRun, bundle: BuiltBundle, graph: OnnxGraph, folder: Path) -> Fp32Baseline:
    if bundle.built.engine is None:
        return Fp32Baseline(graph=graph, built=None)
    options = _options(bundle)
    with export.timer.stage(f"{bundle.fmt}: fp32 baseline"), store.translate_write_errors(folder):
        folder.mkdir(parents=True)
        graph.save(folder / MODEL_FILE)
        built = open_built(build_engine(bundle.runtime, folder / MODEL_FILE, folder, options), options)
        return Fp32Baseline(
            graph=graph, built=engine_memory.close_if_unneeded(built, runs_later=export.config.compares_engines)
        )
