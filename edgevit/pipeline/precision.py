"""Convert the graph to the requested precision: calibration, choice of layers, acceptance checks."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import numpy as np

from edgevit.errors import MissingError, PrecisionError, UsageError
from edgevit.export.check import check
from edgevit.export.graph import OnnxGraph
from edgevit.export.passes.slice_wide_maps import slice_wide_maps
from edgevit.export.quantization.bias_correction import BiasCorrection
from edgevit.export.quantization.calibration import ValueRange, cached_ranges
from edgevit.export.quantization.equalization import equalize
from edgevit.export.quantization.fold_zero_points import fold_zero_points
from edgevit.export.quantization.fp16 import PrecisionPlan, to_fp16
from edgevit.export.quantization.groups import GroupChoice
from edgevit.export.quantization.int8 import find_layers, find_operators, find_sums
from edgevit.export.quantization.linear_as_conv import faster_ranks, linear_as_conv
from edgevit.export.quantization.sensitivity import (
    AcceptanceCheck,
    LayerChoice,
    NoiseMeasurement,
    QuantizationPlan,
    quantize_with_fallback,
)
from edgevit.export.quantization.smoothing import channel_axes
from edgevit.export.quantization.smoothing_choice import SmoothedGraph, choose_smoothing, norms_of
from edgevit.files import cache_folder
from edgevit.formats import Int8Range, Int8Scheme, get_format
from edgevit.metrics import ROUNDING, find_logits
from edgevit.pipeline.accuracy import AnyEvaluation, LabeledSet, lost
from edgevit.pipeline.evaluators import graph_evaluator
from edgevit.pipeline.export_run import StageTimer
from edgevit.pipeline.references import ReferenceData
from edgevit.precisions import get_policy
from edgevit.runtimes.parity import ParityReport, compare, references_for
from edgevit.types import Array, Feeds, Precision, Run

MAX_FP16_ROWS = 64  # of the calibration inputs: fp16 only needs orders of magnitude
MAX_EQUALIZATION_ROWS = 64  # of the calibration inputs, from which the magnitudes of channels are taken
# Of the calibration inputs, over which the errors of biases are averaged: with fewer, biases stay as they are.
MIN_BIAS_ROWS, MAX_BIAS_ROWS = 16, 32
MAX_SMOOTHING_ROWS = 8  # of the calibration inputs, on which smoothed channels have to lower the noise
SENSITIVITY_ROWS = 4  # reference rows that the sensitivity of layers is measured on
MAX_SELECTION_IMAGES = 512  # labeled images while layers are chosen; the engine is evaluated on all of them
MARGIN = 0.8  # fraction of the allowed loss that a graph may use: the engine rounds slightly differently
_FP16_SCALES_OPSET = 19  # the first opset whose QuantizeLinear takes fp16 scales


@dataclass(slots=True, kw_only=True)
class PrecisionConverter:
    """Converts the graph of one format to the precision of one export, and remembers what it has measured of it."""

    graph: OnnxGraph  # in fp32, specialized for the format
    fmt: str
    precision: Precision
    references: ReferenceData
    batch: int
    threads: int | None
    check_parity: bool
    max_drop: float | None  # the fraction of top-1 that may be lost; None: no bound
    timer: StageTimer
    int8_range: Int8Range = "safe"  # "full" replaces the range of the format's scheme
    keep_float: tuple[str, ...] = ()  # PyTorch modules that stay in float
    groups: tuple[GroupChoice, ...] = ()  # of layers, whose precision was chosen by measuring
    _measurement: NoiseMeasurement | None = field(default=None, init=False)  # of the layers of `graph`
    _smoothed: SmoothedGraph | None = field(default=None, init=False)  # `graph`, smoothed if that helps int8
    _bias_correction: BiasCorrection | None = field(default=None, init=False)  # of the layers of `_smoothed`
    _equalized: PrecisionConverter | None = field(default=None, init=False)  # of equalized channels, if int8 needs them

    def convert(self) -> tuple[OnnxGraph, PrecisionPlan | QuantizationPlan | None]:
        """Return the graph in the requested precision, and the plan that lists the nodes kept out of it.

        In fp32 and bf16 the graph stays as it is, without a plan: the runtime decides what runs in bf16.

        Raises UsageError if the calibration inputs are unusable, PrecisionError if no layer can run in fp16 or if int8
        does not keep the outputs.
        """
        if self.precision == "fp16":
            converted, plan = self._to_fp16(self.graph)
            plan.require_fp16()
            return converted, plan
        if self.precision == "int8":
            return self._to_int8()
        assert not get_policy(self.precision).converts_graph
        return self.graph, None

    def revert_more(self, plan: QuantizationPlan) -> tuple[OnnxGraph, QuantizationPlan] | None:
        """Return the graph with more layers in float than `plan` has, whose engine misses parity.

        At least one layer of twenty goes back, or twice as many as before. None if too little would stay in int8.
        """
        count = max(2 * len(plan.reverted), -(-plan.layers // 20))
        try:
            return self._to_int8(min_reverted=count)
        except PrecisionError:
            return None

    def acceptance_check(self, feeds: Sequence[Feeds]) -> AcceptanceCheck:
        """Return a function that compares a quantized graph with `graph`, and returns why it is rejected, or "".

        It checks the parity tolerance on the reference photos and, if `max_drop` is set, the loss of top-1: on
        labeled images, or else as the fraction of `feeds` that change class.
        """
        bound, dataset = self.max_drop, self.references.eval_dataset
        dataset = dataset.subset(MAX_SELECTION_IMAGES) if dataset is not None else None
        count = dataset.count if dataset is not None else len(feeds) * self.batch
        photos = references_for(self.references.outputs, "int8")
        measure_drop = None if bound is None else self._drop_measurement(feeds, dataset)

        def rejection_reason(candidate: OnnxGraph) -> str:
            run = self._load(candidate)
            if self.check_parity:
                found = compare("int8", run, photos, precision="int8", batches=(self.batch,))
                if reason := _parity_reason(found):
                    return reason
            if measure_drop is None or bound is None or (drop := measure_drop(run)) <= tolerance(bound, count):
                return ""
            if dataset is not None:
                return f"{dataset.metric} drops by {drop:.2%}, and {bound:.2%} are allowed"
            return f"{drop:.2%} of the calibration inputs change class, and {bound:.2%} are allowed"

        return rejection_reason

    def _to_fp16(self, graph: OnnxGraph) -> tuple[OnnxGraph, PrecisionPlan]:
        feeds = self._feeds(self.references.calibration, MAX_FP16_ROWS)
        with self.timer.stage(f"{self.fmt}: convert to fp16"):
            converted, plan = to_fp16(graph, feeds, load=self._load, keep_float=self.keep_float)
            return check(converted), plan

    def _to_int8(self, *, min_reverted: int = 0) -> tuple[OnnxGraph, QuantizationPlan]:
        """Quantize the graph; if that costs too much, the graph with equalized channels, which computes the same."""
        if self._equalized is not None:
            return self._equalized._quantize(min_reverted)
        try:
            return self._quantize(min_reverted)
        except PrecisionError:
            equalized = self._equalize() if min_reverted == 0 else None
            if equalized is None:
                raise
        self._equalized = replace(self, graph=equalized)
        return self._equalized._quantize(min_reverted)

    def _equalize(self) -> OnnxGraph | None:
        feeds = self._feeds(self.references.calibration, MAX_EQUALIZATION_ROWS)
        with self.timer.stage(f"{self.fmt}: equalize channels"):
            equalized = equalize(self.graph, feeds, scheme=get_format(self.fmt).require_int8(), load=self._load)
            return None if equalized is None else check(equalized)

    def _quantize(self, min_reverted: int) -> tuple[OnnxGraph, QuantizationPlan]:
        scheme, feeds = get_format(self.fmt).require_int8(), self._feeds(self.references.calibration)
        if self.int8_range == "full":
            scheme = replace(scheme, weight_range="full")
        smoothed = self._smooth(scheme, feeds)
        with self.timer.stage(f"{self.fmt}: quantize"):
            quantized, plan = quantize_with_fallback(
                smoothed.graph,
                smoothed.ranges,
                scheme=scheme,
                acceptance_check=self.acceptance_check(feeds),
                measurement=self._noise_measurement(),
                bias_correction=self._correction(smoothed),
                choice=LayerChoice(modules=self.keep_float, min_reverted=min_reverted, groups=self.groups),
            )
            plan = replace(plan, smoothed_layers=smoothed.count_layers(plan.kept))
            if scheme.linear_as_conv and (ranks := faster_ranks()):
                quantized = quantized.apply("linear_as_conv", partial(linear_as_conv, ranks=ranks))
            if scheme.slice_wide_maps:  # those in int8 stay whole
                quantized = quantized.apply("slice_wide_maps", slice_wide_maps)
            if scheme.fold_zero_points:
                quantized = quantized.apply("fold_zero_points", fold_zero_points)
            check(quantized)
        if scheme.float_dtype == "fp32":
            return quantized, plan
        if self.graph.opset < _FP16_SCALES_OPSET:
            return quantized, replace(plan, float_dtype="fp32")
        quantized, _ = self._to_fp16(quantized)
        return quantized, plan

    def _drop_measurement(self, feeds: Sequence[Feeds], dataset: LabeledSet | None) -> Callable[[Run], float]:
        """Return a function that measures the loss of a graph against `graph`, as a fraction.

        On labeled images it is that of accuracy, else the fraction of `feeds` that change class. Raises UsageError if
        there are neither labeled images nor classes.
        """
        reference = self._load(self.graph)
        if dataset is not None:
            return _accuracy_loss_measurement(reference, dataset)
        if (logits := find_logits(self.graph.outputs)) is None:
            raise UsageError(
                "--max-drop needs a classifier, or labeled images (--eval DIR): no output is logits (N, classes)"
            )
        return _class_change_measurement(reference, feeds, logits.name)

    def _noise_measurement(self) -> NoiseMeasurement:
        if self._measurement is None:
            self._measurement = NoiseMeasurement(
                feeds=self._feeds(self.references.outputs[0].inputs, SENSITIVITY_ROWS),
                load=self._load,
                on_layer=lambda done, total: self.timer.update(f"{self.fmt}: sensitivity, {done} of {total} layers"),
            )
        return self._measurement

    def _smooth(self, scheme: Int8Scheme, feeds: Sequence[Feeds]) -> SmoothedGraph:
        """Return the graph with smoothed channels if those lower the noise of int8; with few inputs as it is."""
        if self._smoothed is None:
            ranges = self._activation_ranges(scheme, feeds)
            if not self._has_bias_rows:
                self._smoothed = SmoothedGraph(graph=self.graph, ranges=ranges)
                return self._smoothed
            with self.timer.stage(f"{self.fmt}: smooth"):
                self._smoothed = choose_smoothing(
                    self.graph,
                    ranges,
                    self._feeds(self.references.calibration, MAX_BIAS_ROWS),
                    compared=-(-MAX_SMOOTHING_ROWS // self.batch),
                    scheme=scheme,
                    load=self._load,
                    cache=_cache_folder(),
                    on_feed=lambda done, total: self.timer.update(f"{self.fmt}: smooth, {done} of {total} inputs"),
                )
        return self._smoothed

    @property
    def _has_bias_rows(self) -> bool:
        """Whether there are enough calibration inputs to measure mean errors."""
        return len(next(iter(self.references.calibration.values()))) >= MIN_BIAS_ROWS

    def _correction(self, smoothed: SmoothedGraph) -> BiasCorrection | None:
        """Return the correction of biases; None with too few calibration inputs."""
        if not self._has_bias_rows:
            return None
        if self._bias_correction is None:
            self._bias_correction = BiasCorrection(
                feeds=self._feeds(self.references.calibration, MAX_BIAS_ROWS),
                load=self._load,
                cache=_cache_folder(),
                on_feed=lambda done, total: self.timer.update(f"{self.fmt}: correct biases, {done} of {total} inputs"),
                errors=smoothed.errors,
            )
        return self._bias_correction

    def _activation_ranges(self, scheme: Int8Scheme, feeds: Sequence[Feeds]) -> Mapping[str, ValueRange]:
        moved = LayerChoice(groups=self.groups).moved(find_operators(self.graph, scheme.operators))
        names = {name for layer in (*find_layers(self.graph), *moved) for name in layer.tensors}
        names.update(find_sums(self.graph, scheme))
        with self.timer.stage(f"{self.fmt}: calibrate"):
            return cached_ranges(
                self.graph,
                feeds,
                load=self._load,
                names=names,
                channel_axes=channel_axes(norms_of(self.graph, scheme)) if self._has_bias_rows else None,
                cache=_cache_folder(),
                on_feed=lambda done, total: self.timer.update(f"{self.fmt}: calibrate, {done} of {total} inputs"),
            )

    def _load(self, graph: OnnxGraph) -> Run:
        return graph_evaluator(graph, threads=self.threads)

    def _feeds(self, inputs: Mapping[str, Array], limit: int | None = None) -> list[dict[str, Array]]:
        """Split the rows of `inputs`, at most `limit`, into batches; the last batch wraps around to the first row."""
        count = len(next(iter(inputs.values())))
        used = min(count, limit or count)
        batches = [
            [index % count for index in range(start, start + self.batch)] for start in range(0, used, self.batch)
        ]
        return [{name: array[rows] for name, array in inputs.items()} for rows in batches]


def tolerance(bound: float, images: int) -> float:
    """Return the fraction of `images` that may be lost while layers are chosen.

    MARGIN times `bound`; with few images, one image if `bound` allows it.
    """
    one = ROUNDING / images
    return max(MARGIN * bound, min(bound, one))


def _parity_reason(found: ParityReport) -> str:
    """Return why int8 is too far from the reference for an engine to pass, or ""; classes have no cosine."""
    allowed = get_policy("int8").tolerance
    min_cosine, min_agreement = (1 - MARGIN * (1 - least) for least in (allowed.cosine, allowed.map_agreement))
    for result in found.results:
        cosine = min(result.cosine)
        if result.is_class_map and result.pixels is not None:
            if not result.pixels.all >= min_agreement:
                return f"{result.pixels.all:.1%} of pixels keep their class, at least {min_agreement:.1%} required"
        elif not cosine >= min_cosine:  # written so that NaN fails too
            return f"cosine {cosine:.4f} on photos, at least {min_cosine:g} required"
        elif result.channels is not None and result.channels.lost_most:
            return f"{result.channels} in output {result.output}"
    return ""


def _accuracy_loss_measurement(reference: Run, dataset: LabeledSet) -> Callable[[Run], float]:
    """Return a function that measures the loss of accuracy against `reference` on labeled images, as a fraction."""

    def evaluation(name: str, run: Run) -> AnyEvaluation:
        (found,), _ = dataset.evaluate({name: run})
        return found

    baseline = evaluation("fp32", reference)
    return lambda run: lost(baseline, evaluation("int8", run)).points / 100


def _class_change_measurement(reference: Run, feeds: Sequence[Feeds], logits: str) -> Callable[[Run], float]:
    """Return a function that measures the fraction of `feeds` whose class by the output `logits` changes."""

    def classes(run: Run) -> list[int]:
        return [int(index) for feed in feeds for index in run(feed)[logits].argmax(1)]

    baseline = classes(reference)
    return lambda run: float(np.mean([want != got for want, got in zip(baseline, classes(run), strict=True)]))


def _cache_folder() -> Path | None:
    try:
        return cache_folder() / "calibration"
    except MissingError:
        return None
