"""Compare a lower precision with fp32: accuracy, latency and size."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from edgevit.arrays import finite_or_none
from edgevit.bundles.manifest import JUDGED_ENGINE
from edgevit.cpu import int8_instructions
from edgevit.errors import ImageError, ParityError
from edgevit.latency.compare import side_by_side
from edgevit.latency.report import LatencyReport
from edgevit.latency.statistics import Ratio, bounds
from edgevit.metrics import TOP1, Drop, accuracy_key
from edgevit.pipeline import fp32_baseline
from edgevit.pipeline.accuracy import AnyEvaluation, LabeledSet, lost, same_predictions, unknown_accuracy
from edgevit.pipeline.evaluators import deployed_evaluator, graph_evaluator
from edgevit.pipeline.export_run import BuiltBundle, StageTimer
from edgevit.pipeline.fp32_baseline import Fp32Baseline
from edgevit.runtimes.output_parity import OutputParity
from edgevit.types import PHOTOS, Precision
from edgevit.words import counted

GRAPH = "the ONNX graph"


@dataclass(frozen=True, slots=True, kw_only=True)
class PrecisionComparison:
    """A bundle in a lower precision against fp32 in the same runtime and the same run."""

    fmt: str
    precision: Precision
    measured_on: str  # JUDGED_ENGINE, or GRAPH if no engine runs here
    parity: tuple[OutputParity, ...]  # with PyTorch
    fp32_evaluation: AnyEvaluation | None  # on the labeled images
    evaluation: AnyEvaluation | None
    time_ratio: Ratio | None  # time / fp32's time, interleaved; None: not measured
    size_bytes: int | None
    fp32_size_bytes: int | None
    instructions: str = ""  # that int8 ran on, such as "avx2"; empty for other precisions
    allowed_drop: float | None = None  # of top-1, mAP or mIoU, as a fraction; None: no bound

    @property
    def drop(self) -> Drop | None:
        """Accuracy lost on the labeled images, in points."""
        if self.fp32_evaluation is None or self.evaluation is None:
            return None
        return lost(self.fp32_evaluation, self.evaluation)

    @property
    def agreement(self) -> float | None:
        """Fraction of labeled images with fp32's top-1; without them, of parity photos with PyTorch's top-1."""
        if self.fp32_evaluation is not None and self.evaluation is not None:
            return same_predictions(self.fp32_evaluation, self.evaluation)
        rows = [same for result in self.parity if result.kind == PHOTOS for same in result.same_top1]
        return sum(rows) / len(rows) if rows else None

    @property
    def snr_db(self) -> float | None:
        return min((result.snr_db for result in self.parity), default=None)

    @property
    def cosine(self) -> float | None:
        return min((min(result.cosine) for result in self.parity), default=None)

    @property
    def size_reduction(self) -> float | None:
        """Size of fp32's files over the size of these."""
        return self.fp32_size_bytes / self.size_bytes if self.size_bytes and self.fp32_size_bytes else None

    @property
    def recommended(self) -> bool | None:
        """False if slower than fp32 or less accurate than allowed; True if faster and accuracy was measured; else None.

        Accuracy counts as measured only if fp32 itself is better than guessing.
        """
        if self._loses_too_much or (self.time_ratio is not None and self.time_ratio.verdict == "slower"):
            return False
        if self.time_ratio is None or self.time_ratio.verdict == "cannot tell":
            return None
        return True if self.drop is not None and not self._fp32_may_be_guessing else None

    @property
    def sentence(self) -> str:
        """The comparison in one line."""
        parts = [self._speed, *filter(None, (self._accuracy, self._size))]
        if self._loses_too_much:
            return f"{self.precision} loses more accuracy than allowed: not recommended ({', '.join(parts)})"
        if self.recommended is False:
            return f"{self.precision} is {parts[0]} than fp32 here: not recommended ({', '.join(parts[1:])})"
        return f"{self.precision}: {', '.join(parts)}"

    @property
    def _loses_too_much(self) -> bool:
        return self.drop is not None and self.allowed_drop is not None and self.drop.exceeds(self.allowed_drop)

    @property
    def _fp32_may_be_guessing(self) -> bool:
        """Whether fp32 itself may be no better than chance; then a lower precision has no accuracy to lose."""
        return self.fp32_evaluation is not None and self.fp32_evaluation.may_be_guessing

    @property
    def _speed(self) -> str:
        if self.time_ratio is None:
            return "speed not measured here"
        text = self._speed_of(self.time_ratio)
        return f"{text} ({self.instructions})" if self.instructions else text

    def _speed_of(self, ratio: Ratio) -> str:
        if ratio.verdict == "cannot tell":
            reason = f", {ratio.reason}" if ratio.reason else ""
            return f"no clear difference in speed (time / fp32 {ratio.value:.2f}{reason})"
        if ratio.verdict == "faster":
            times = 1 / ratio.value
            return f"{times:.{1 if times >= 1.1 else 2}f}x faster"
        return f"{ratio.value:.2f}x slower"

    @property
    def _accuracy(self) -> str:
        drop, fp32 = self.drop, self.fp32_evaluation
        if drop is None or fp32 is None:
            return "accuracy not measured (--eval DIR)"
        if self._fp32_may_be_guessing:
            return unknown_accuracy(fp32, "fp32")
        images = f"on {counted(fp32.images, 'image')}"
        if self.measured_on != JUDGED_ENGINE:
            images += f" ({self.measured_on}; no engine has run)"
        if drop.points == 0:
            return f"no accuracy lost {images}"
        points = f"{abs(drop.points):.{1 if abs(drop.points) >= 0.05 else 3}f}"
        return f"{points} points {'worse' if drop.points > 0 else 'better'} {images}"

    @property
    def _size(self) -> str:
        reduction = "" if self.size_reduction is None else f"{self.size_reduction:.1f}"
        return f"{reduction}x smaller" if reduction not in ("", "1.0") else ""  # bf16 has the files of fp32

    def require_accuracy(self) -> None:
        """Raise ParityError if more accuracy is lost than `allowed_drop`."""
        if self._loses_too_much and self.allowed_drop is not None:
            raise ParityError(
                f"{self.fmt} in {self.precision} ({self.measured_on}) loses {self.drop} points of {self._metric}, and "
                f"{100 * self.allowed_drop:g} are allowed: calibrate with more photos, allow more with --max-drop, "
                "or choose another precision"
            )

    @property
    def _metric(self) -> str:
        return self.fp32_evaluation.metric if self.fp32_evaluation is not None else TOP1

    def _accuracies(self, key: str) -> dict[str, float | None]:
        """Return the accuracy of the bundle and of fp32 by key."""
        pairs = {key: self.evaluation, f"{key}_fp32": self.fp32_evaluation}
        return {name: None if each is None else each.accuracy for name, each in pairs.items()}

    def to_json(self) -> dict[str, Any]:
        drop, ratio = self.drop, self.time_ratio
        return {
            "sentence": self.sentence,
            "recommended": self.recommended,
            "judged": self.measured_on,
            "images": self.fp32_evaluation.images if self.fp32_evaluation is not None else 0,
            "metric": self._metric if self.fp32_evaluation is not None else None,
            **self._accuracies(accuracy_key(self._metric)),
            "drop_points": None if drop is None else drop.points,
            "drop_points_interval": None if drop is None else bounds(drop.interval),
            "agreement": self.agreement,
            "snr_db": finite_or_none(self.snr_db),
            "cosine": finite_or_none(self.cosine),
            "time_ratio": None if ratio is None else ratio.value,
            "time_ratio_interval": None if ratio is None else bounds(ratio.interval),
            "time_verdict": None if ratio is None else ratio.verdict,
            "size_bytes": self.size_bytes,
            "size_bytes_fp32": self.fp32_size_bytes,
        }


def compare_with_fp32(
    bundle: BuiltBundle,
    baseline: Fp32Baseline,
    *,
    evaluations: tuple[AnyEvaluation, AnyEvaluation] | None,
    latencies: Mapping[str, LatencyReport],
    allowed_drop: float | None,
) -> PrecisionComparison:
    """Compare a bundle with its fp32 baseline. `evaluations` are fp32's and the bundle's on the labeled images."""
    pair = [latencies[name] for name in (fp32_baseline.candidate_name(bundle.fmt), bundle.fmt) if name in latencies]
    last_stage = bundle.parity.results[-1].stage if bundle.parity.results else ""
    artifact, precision = bundle.built.artifact, bundle.options.precision
    fp32_artifact = baseline.built.artifact if baseline.built is not None else None
    return PrecisionComparison(
        fmt=bundle.fmt,
        precision=precision,
        measured_on=JUDGED_ENGINE if bundle.deployable_engine is not None else GRAPH,
        parity=tuple(result for result in bundle.parity.results if result.stage == last_stage),
        fp32_evaluation=evaluations[0] if evaluations is not None else None,
        evaluation=evaluations[1] if evaluations is not None else None,
        time_ratio=side_by_side(pair)[1].ratio if len(pair) == 2 and bundle.deployable_engine is not None else None,
        size_bytes=artifact.size_bytes if artifact is not None else None,
        fp32_size_bytes=fp32_artifact.size_bytes if fp32_artifact is not None else None,
        instructions=int8_instructions(pair[0].environment.isa) if pair and precision == "int8" else "",
        allowed_drop=allowed_drop,
    )


def evaluate_precision(
    bundle: BuiltBundle, baseline: Fp32Baseline, dataset: LabeledSet, timer: StageTimer
) -> tuple[tuple[AnyEvaluation, AnyEvaluation], tuple[ImageError, ...]]:
    """Evaluate the fp32 baseline and the bundle on labeled images: the engines, or the graphs if none runs here.

    Returns the two evaluations, and the errors of the images that were left out.
    """
    fmt, engine, threads = bundle.fmt, bundle.deployable_engine, bundle.options.threads
    fp32_engine = baseline.built.engine if baseline.built is not None else None
    candidates = {
        fp32_baseline.candidate_name(fmt): fp32_engine.run
        if fp32_engine is not None
        else graph_evaluator(baseline.graph, threads=threads),
        fmt: engine.run if engine is not None else deployed_evaluator(bundle.graph, threads=threads),
    }
    with timer.stage(f"{fmt}: accuracy"):
        (fp32_evaluation, evaluation), skipped = dataset.evaluate(
            candidates, progress=lambda done, total: timer.update(f"{fmt}: accuracy, {done} of {total} images")
        )
    return (fp32_evaluation, evaluation), skipped
