"""Build the fp32 engine that a lower precision is compared with."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from edgevit.bundles.manifest import MODEL_FILE
from edgevit.export.check import check
from edgevit.export.graph import OnnxGraph
from edgevit.pipeline.export_run import BuiltBundle, StageTimer, translate_write_errors
from edgevit.runtimes.build import BuildResult, build_engine, open_built


@dataclass(frozen=True, slots=True, kw_only=True)
class Fp32Baseline:
    """fp32 for the same runtime as a bundle in lower precision."""

    graph: OnnxGraph
    built: BuildResult | None  # None if the engine of the bundle does not run here


def build_fp32_baselines(
    bundles: Sequence[BuiltBundle], specialize: Callable[[str], OnnxGraph], folder: Path, timer: StageTimer
) -> dict[str, Fp32Baseline]:
    """Return the fp32 baseline of each bundle by format; `specialize` returns the fp32 graph for a format."""
    return {
        bundle.fmt: _build_baseline(bundle, check(specialize(bundle.fmt)), folder / bundle.fmt, timer)
        for bundle in bundles
    }


def candidate_name(fmt: str) -> str:
    """Return the name of a format's fp32 baseline in measurements, such as "ort fp32"."""
    return f"{fmt} fp32"


def _build_baseline(bundle: BuiltBundle, graph: OnnxGraph, folder: Path, timer: StageTimer) -> Fp32Baseline:
    if bundle.built.engine is None:
        return Fp32Baseline(graph=graph, built=None)
    options = replace(bundle.options, precision="fp32")
    with timer.stage(f"{bundle.fmt}: fp32 baseline"), translate_write_errors(folder):
        folder.mkdir(parents=True)
        graph.save(folder / MODEL_FILE)
        built = build_engine(bundle.runtime, folder / MODEL_FILE, folder, options)
        return Fp32Baseline(graph=graph, built=open_built(built, options))
