"""Move the layers that cost the most accuracy back to float, until int8 is accurate enough."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, TypeAlias

import numpy as np

from edgevit.arrays import noise_to_signal, snr_db
from edgevit.dense.outputs import is_class_map
from edgevit.errors import PrecisionError
from edgevit.export.graph import OnnxGraph
from edgevit.export.ir_helpers import require_modules
from edgevit.export.macs import graph_macs
from edgevit.export.quantization.bias_correction import BiasCorrection
from edgevit.export.quantization.calibration import LoadGraph, ValueRange
from edgevit.export.quantization.fp16 import KeptNode
from edgevit.export.quantization.fp16_rules import KEPT_ON_REQUEST
from edgevit.export.quantization.groups import GroupChoice, choice_of
from edgevit.export.quantization.int8 import PREDICTS, Layer, find_layers, find_operators, needs_vnni, quantize
from edgevit.export.quantization.speed_rule import SpeedRule
from edgevit.formats import Int8Scheme
from edgevit.node_names import is_in_modules
from edgevit.types import Array, Feeds

# Returns why a quantized graph is rejected, or "" if it is accepted.
AcceptanceCheck: TypeAlias = Callable[[OnnxGraph], str]
# Called before each layer with the number of layers measured and the number of all layers.
OnLayer: TypeAlias = Callable[[int, int], None]

MIN_INT8_FRACTION = 0.5  # of the graph's MACs: a graph with less in int8 is not called int8


@dataclass(frozen=True, slots=True, kw_only=True)
class QuantizationPlan:
    """The layers that stay in float, and the fraction of the graph in int8."""

    activations: str  # uint8 or int8
    float_dtype: str  # precision of everything that is not int8
    layers: int  # Conv, Gemm and MatMul nodes with constant weights, and operators that were measured to gain
    kept: tuple[KeptNode, ...]  # the layers that are not int8
    fraction: float  # of the graph's MACs that the int8 layers do
    calibration_inputs: int
    weight_range: str  # "safe" or "full", see Int8Scheme
    needs_vnni: bool  # whether the graph can saturate on x86 processors without VNNI
    groups: tuple[GroupChoice, ...] = ()  # of layers, whose precision was chosen by measuring
    corrected_biases: int = 0  # layers whose bias takes the mean error of int8
    smoothed_layers: int = 0  # layers in int8 behind a norm whose channels are scaled

    @property
    def summary(self) -> str:
        quantized = self.layers - len(self.kept)
        fraction = "more than 99.9%" if 0.9995 < self.fraction < 1 else f"{self.fraction:.1%}"
        return (
            f"{quantized} of {self.layers} layers in int8, {fraction} of all MACs, "
            f"from {self.calibration_inputs} calibration inputs"
        )

    @property
    def reverted(self) -> tuple[KeptNode, ...]:
        """The layers that stay in float because int8 costs accuracy."""
        return tuple(node for node in self.kept if node.reason.startswith(COSTS_ACCURACY))

    @property
    def is_float_for_speed_alone(self) -> bool:
        """Whether no layer stays in float for its accuracy, or since the user asks for it."""
        return not any(node.reason.startswith(_FOR_ACCURACY) for node in self.kept)

    def notes(self) -> list[str]:
        """Return the notes for the export report: a summary, and the layers that stay in float."""
        return [self.summary, *(f"{node.name} stays in float: {node.reason}" for node in self.reverted)]

    def to_json(self) -> dict[str, Any]:
        fields = asdict(self)
        renamed = {
            "rest": fields.pop("float_dtype"),
            "share": fields.pop("fraction"),
            "photos": fields.pop("calibration_inputs"),
        }
        fields["groups"] = [choice.to_json() for choice in self.groups]
        return {"summary": self.summary, **renamed, **fields}


@dataclass(slots=True, kw_only=True)
class NoiseMeasurement:
    """Measures how much noise each layer alone adds to the outputs for `feeds`; once, for one graph.

    `load` prepares a graph to run. `noise` has the layers that are measured, by name.
    """

    feeds: Sequence[Feeds]
    load: LoadGraph
    on_layer: OnLayer | None = None
    noise: dict[str, float] = field(default_factory=dict)

    def by_layer(
        self, graph: OnnxGraph, layers: Sequence[Layer], quantize_alone: Callable[[Layer], OnnxGraph]
    ) -> Mapping[str, float]:
        """Return the noise of the outputs with each layer alone in int8, by layer name: see `worst_noise_to_signal`."""
        missing = [layer for layer in layers if layer.name not in self.noise]
        if missing:
            self.noise |= self._measure(graph, missing, quantize_alone)
        return self.noise

    def _measure(
        self, graph: OnnxGraph, layers: Sequence[Layer], quantize_alone: Callable[[Layer], OnnxGraph]
    ) -> dict[str, float]:
        noise = {}
        run = self.load(graph)
        expected = [run(feed) for feed in self.feeds]
        for index, layer in enumerate(layers):
            if self.on_layer is not None:
                self.on_layer(index, len(layers))
            run = self.load(quantize_alone(layer))
            noise[layer.name] = worst_noise_to_signal(expected, [run(feed) for feed in self.feeds])
        return noise


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerChoice:
    """The layers that are not chosen by the rule.

    Those of PyTorch `modules` stay in float, and a number of others, the noisiest first; `groups` were measured.
    """

    modules: Sequence[str] = ()
    min_reverted: int = 0
    groups: tuple[GroupChoice, ...] = ()

    def apply(self, layer: Layer) -> Layer:
        """Return the layer with the skip reason that it has by this choice."""
        if is_in_modules(layer.name, self.modules):
            return replace(layer, skip_reason=KEPT_ON_REQUEST)
        choice = choice_of(layer.groups, self.groups)
        if choice is None or (layer.skip_reason and not layer.is_slow_by_rule):
            return layer
        return replace(layer, skip_reason="" if choice.in_int8 else choice.reason)

    def moved(self, operators: Iterable[Layer]) -> tuple[Layer, ...]:
        """Return the operators that this choice moves to int8."""
        return tuple(each for each in map(self.apply, operators) if not each.skip_reason)


COSTS_ACCURACY = "costs accuracy"
_NOT_FINITE = "its input or output is not finite on the calibration inputs, in fp32 too"
_FOR_ACCURACY = (COSTS_ACCURACY, PREDICTS, KEPT_ON_REQUEST, _NOT_FINITE)  # reasons for which layers stay in float


def quantize_with_fallback(
    graph: OnnxGraph,
    ranges: Mapping[str, ValueRange],
    *,
    scheme: Int8Scheme,
    acceptance_check: AcceptanceCheck,
    measurement: NoiseMeasurement,
    choice: LayerChoice | None = None,
    bias_correction: BiasCorrection | None = None,
) -> tuple[OnnxGraph, QuantizationPlan]:
    """Return the graph with as many layers in int8 as `acceptance_check` accepts, and the plan.

    All layers are tried first, with corrected biases and without. If both graphs are rejected, the noise that each
    layer alone adds to the outputs is measured, and the noisiest layers go back to float, the cheaper first if they
    are equal: the fewest that make the graph acceptable, by binary search.
    `choice` says which layers are not chosen by the rule; `bias_correction` corrects the biases of those in int8.

    If too few MACs can be in int8, or can stay there, it is tried again with the convolutions that are in float for
    their conversions. Raises UsageError if the choice names an unknown module, and PrecisionError if less than
    `MIN_INT8_FRACTION` of the MACs can be in int8, or can stay there.
    """
    choice = choice or LayerChoice()
    require_modules(graph.model, choice.modules)

    def attempt(rule: SpeedRule) -> tuple[OnnxGraph, QuantizationPlan]:
        return _quantize_by_rule(
            graph,
            ranges,
            rule,
            scheme=scheme,
            acceptance_check=acceptance_check,
            measurement=measurement,
            choice=choice,
            bias_correction=bias_correction,
        )

    rule = SpeedRule.of(scheme)
    regardless = replace(rule, min_conversion_macs=0)
    try:
        return attempt(rule)
    except PrecisionError:
        if find_layers(graph, rule) == find_layers(graph, regardless):
            raise
    return attempt(regardless)


def _quantize_by_rule(
    graph: OnnxGraph,
    ranges: Mapping[str, ValueRange],
    rule: SpeedRule,
    *,
    scheme: Int8Scheme,
    acceptance_check: AcceptanceCheck,
    measurement: NoiseMeasurement,
    choice: LayerChoice,
    bias_correction: BiasCorrection | None,
) -> tuple[OnnxGraph, QuantizationPlan]:
    """Quantize the layers that a rule and a choice leave in int8: see `quantize_with_fallback`."""
    found = find_layers(graph, rule)
    operators = choice.moved(find_operators(graph, scheme.operators))
    layers = tuple(_skip_if_not_finite(layer, ranges) for layer in (*map(choice.apply, found), *operators))
    candidates = [layer for layer in layers if not layer.skip_reason]
    min_macs = _require_enough_macs(graph, candidates)

    if bias_correction is not None:  # of all layers, so that another choice finds the errors in the cache
        measured = [layer.name for layer in found if not is_not_finite(layer, ranges)]
        bias_correction.measure(graph, measured, ranges, scheme=scheme)

    def plan(quantized: OnnxGraph, reverted: Mapping[str, str], *, correct: bool = True) -> QuantizationPlan:
        kept = {layer.name for layer in layers if layer.skip_reason} | reverted.keys()
        errors = bias_correction.errors if bias_correction is not None and correct else None
        found = _plan(graph, quantized, layers, reverted, ranges, scheme)
        return replace(found, groups=choice.groups, corrected_biases=len((errors or {}).keys() - kept))

    def in_int8(chosen: Sequence[Layer], *, correct: bool = True) -> OnnxGraph:
        names = [layer.name for layer in chosen]
        corrected = bias_correction.apply(graph, names) if bias_correction is not None and correct else graph
        return quantize(corrected, names, ranges, scheme=scheme)

    rejection_reason = f"{choice.min_reverted} layers have to be in float"
    if choice.min_reverted == 0:
        quantized = in_int8(candidates)
        rejection_reason = acceptance_check(quantized)
        if not rejection_reason:
            return quantized, plan(quantized, {})
        if bias_correction is not None:  # before a layer goes back to float
            quantized = in_int8(candidates, correct=False)
            if not acceptance_check(quantized):
                return quantized, plan(quantized, {}, correct=False)
    noise = measurement.by_layer(graph, candidates, lambda layer: in_int8([layer]))
    by_noise = sorted(candidates, key=lambda layer: (-noise[layer.name], layer.macs))
    count = _fewest_reverted(
        by_noise,
        min_macs=min_macs,
        least=choice.min_reverted,
        why_any=rejection_reason,
        rejection=lambda count: acceptance_check(in_int8(by_noise[count:])),
    )
    reverted = {
        layer.name: f"{COSTS_ACCURACY}: {_cost(graph, noise[layer.name])} with this layer alone in int8"
        for layer in by_noise[:count]
    }
    quantized = in_int8(by_noise[count:])
    return quantized, plan(quantized, reverted)


def _require_enough_macs(graph: OnnxGraph, candidates: Sequence[Layer]) -> float:
    """Return the MACs that have to be in int8. Raises PrecisionError if the layers that can be int8 do fewer."""
    if not candidates:
        raise PrecisionError("int8 would not speed up any layer of this graph; use --precision fp16 or fp32")
    total_macs, int8_macs = graph_macs(graph), sum(layer.macs for layer in candidates)
    min_macs = MIN_INT8_FRACTION * total_macs
    if int8_macs < min_macs:
        raise PrecisionError(
            f"only {int8_macs / total_macs:.0%} of the graph's MACs are in layers that can be int8, and "
            f"{MIN_INT8_FRACTION:.0%} are required; use --precision fp16 or fp32"
        )
    return min_macs


def _fewest_reverted(
    by_noise: Sequence[Layer], *, min_macs: float, least: int, why_any: str, rejection: Callable[[int], str]
) -> int:
    """Return how many of the noisiest layers go back to float: the fewest that are accepted, and at least `least`.

    `why_any` is the reason that any must; `rejection` returns why a number of them is not enough, or "". Raises
    PrecisionError if less than `min_macs` would stay in int8.
    """
    limit = _max_reverted(by_noise, min_macs)
    if least > limit:
        raise PrecisionError(f"{why_any}, and at least {MIN_INT8_FRACTION:.0%} of the MACs in int8")
    if last_reason := rejection(limit):
        names = ", ".join(layer.name for layer in by_noise[:5])
        raise PrecisionError(
            f"int8 changes the outputs too much: {why_any}; with half of the MACs back in float, "
            f"{last_reason} (most sensitive: {names}). Calibrate with images like those the model will see, or use "
            "--precision fp16"
        )
    return _min_reverted(max(least, 1), limit, lambda count: not rejection(count))


def _skip_if_not_finite(layer: Layer, ranges: Mapping[str, ValueRange]) -> Layer:
    """Return the layer, with a skip reason if its input or output has no finite range."""
    return replace(layer, skip_reason=layer.skip_reason or _NOT_FINITE) if is_not_finite(layer, ranges) else layer


def is_not_finite(layer: Layer, ranges: Mapping[str, ValueRange]) -> bool:
    """Whether the input or output of a layer is not finite on the calibration inputs."""
    found = [ranges[name] for name in layer.tensors if name in ranges]
    return not all(map(math.isfinite, (value for each in found for value in (*each.lows, *each.highs))))


def worst_noise_to_signal(expected: Sequence[Feeds], actual: Sequence[Feeds]) -> float:
    """Return the noise of the worst output, since outputs have different units: boxes are pixels, scores are not.

    It is the power of the difference over the power of `expected`, or infinity if an output is finite at other places
    than expected. Of a map of classes, whose numbers have no order, it is the fraction of pixels that change class.
    """

    def noise(name: str) -> float:
        wanted, found = [each[name] for each in expected], [each[name] for each in actual]
        compare = _changed_fraction if is_class_map(name, wanted[0]) else noise_to_signal
        return compare(found, wanted)

    return max(map(noise, expected[0]))


def _changed_fraction(actual: Sequence[Array], expected: Sequence[Array]) -> float:
    return float(np.mean([(got != want).mean() for got, want in zip(actual, expected, strict=True)]))


def _cost(graph: OnnxGraph, noise: float) -> str:
    """Return the noise of one layer for the report."""
    if all(is_class_map(spec.name, spec) for spec in graph.outputs):
        return f"{noise:.1%} of pixels change class"
    return f"SNR {snr_db(noise):.0f} dB"


def _max_reverted(layers: Sequence[Layer], min_macs: float) -> int:
    """Return how many of the first layers can go back to float while the others do at least `min_macs`."""
    left = sum(layer.macs for layer in layers)
    for count, layer in enumerate(layers):
        left -= layer.macs
        if left < min_macs:
            return count
    return len(layers)


def _min_reverted(least: int, limit: int, accepts: Callable[[int], bool]) -> int:
    """Return the smallest accepted number of layers in float, from `least` to `limit`, by binary search.

    `limit` is known to be accepted.
    """
    return least + bisect_left(range(least, limit), x=True, key=accepts)


def _plan(
    graph: OnnxGraph,
    quantized: OnnxGraph,
    layers: Sequence[Layer],
    reverted: Mapping[str, str],
    ranges: Mapping[str, ValueRange],
    scheme: Int8Scheme,
) -> QuantizationPlan:
    kept = tuple(
        KeptNode(name=layer.name, operator=layer.operator, reason=reason)
        for layer in layers
        if (reason := layer.skip_reason or reverted.get(layer.name, ""))
    )
    kept_names = {node.name for node in kept}
    int8_macs = sum(layer.macs for layer in layers if layer.name not in kept_names)
    return QuantizationPlan(
        activations=scheme.activations,
        float_dtype=scheme.float_dtype,
        layers=len(layers),
        kept=kept,
        fraction=int8_macs / graph_macs(graph),
        calibration_inputs=max(len(found.lows) for found in ranges.values()),
        weight_range=scheme.weight_range,
        needs_vnni=needs_vnni(quantized),
    )
