"""Build the bundle of one variant of a model."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

from edgevit.bundles import store
from edgevit.bundles.bundle import Bundle
from edgevit.export import forms
from edgevit.export.check import check
from edgevit.export.graph import OnnxGraph
from edgevit.export.quantization.groups import LayerGroup
from edgevit.export.quantization.int8 import find_groups
from edgevit.formats import get_format
from edgevit.pipeline import run as pipeline
from edgevit.pipeline.build_bundle import build_bundle
from edgevit.pipeline.bundle_writer import write_bundles
from edgevit.pipeline.config import ExportConfig
from edgevit.pipeline.export_run import ExportRun, LatencyOutcome, Progress, StageTimer
from edgevit.pipeline.tuning.space import Variant
from edgevit.precisions import get_policy
from edgevit.runtimes.parity import ParityReport
from edgevit.runtimes.registry import get_runtime


@dataclass(frozen=True, slots=True, kw_only=True)
class Builder:
    """Builds variants from one captured and optimized graph."""

    export: ExportRun
    graph: OnnxGraph
    graph_parity: ParityReport
    progress: Progress

    @property
    def batch(self) -> int:
        return self.export.config.checked_batch

    def build(self, variant: Variant, out: Path) -> Bundle:
        """Build, verify and write the bundle of `variant` into `out`. Raises the error of the stage that failed."""
        config = config_of(self.export.config, variant, out)
        timer = StageTimer(self.progress)
        timer.times = [*self.export.timer.times]
        export = replace(self.export, config=config, timer=timer)
        runtime = get_runtime(variant.fmt)
        runtime.require_precision(variant.precision)
        with store.staging(out) as folder:
            built = build_bundle(export, self.graph, runtime, folder)
            if built.built.engine is not None:
                built.built.engine.close()
            (self.graph_parity + built.parity).require()
            report = write_bundles(
                export, [built], graph_parity=self.graph_parity, latency=LatencyOutcome(), comparisons={}
            )
        return Bundle.open(report.bundles[0].path)

    def with_batch(self, batch: int) -> Builder:
        """Return a builder of the model with another batch, captured anew. Raises UsageError if its batch is fixed."""
        config = replace(self.export.config, options=replace(self.export.config.options, batch=batch))
        with tempfile.TemporaryDirectory(prefix="edgevit-") as scratch:
            export, graph, parity = pipeline.prepare(
                self.export.model.with_batch(batch), config, StageTimer(self.progress), Path(scratch)
            )
        parity.require()
        return replace(self, export=export, graph=graph, graph_parity=parity)

    def groups(self, variant: Variant) -> list[LayerGroup]:
        """Return the groups of layers that are int8 or float for their speed, those with the most work first."""
        graph = forms.specialize(self.graph, variant.fmt, variant.form, precision=variant.precision)
        return find_groups(check(graph), get_format(variant.fmt).require_int8())


def config_of(base: ExportConfig, variant: Variant, out: Path) -> ExportConfig:
    """Return the export configuration of one variant; `base` has the options of the most demanding precision.

    Trials are only timed; their outputs are not checked.
    """
    is_fp32, is_trial, policy = variant.precision == "fp32", variant.is_trial, get_policy(variant.precision)
    return replace(
        base,
        formats=(variant.fmt,),
        options=replace(base.options, precision=variant.precision),
        form=variant.form,
        out=out,
        calib=base.calib if policy.needs_calibration else None,
        groups=variant.groups,
        keep_float=variant.keep_float,
        verify=base.verify and not is_trial,
        eval=None if is_fp32 or is_trial else base.eval,
        max_drop=None if is_fp32 or is_trial or not (policy.needs_calibration or base.eval) else base.max_drop,
        int8_range=base.int8_range if variant.precision == "int8" else "safe",
    )
