"""Compare engine outputs with reference outputs.

Several measures are taken row by row and stored; pass or fail is derived from them and the tolerance of the precision.
An engine in fp32 may be off by what float32 itself allows: a multiple of the error of PyTorch's own float32 outputs, if
that is more than the tolerance. The top-1 class is judged on photos, and only if the lead of PyTorch's best class is
beyond the accepted errors.

NaN or infinity that PyTorch does not output, and rows of one batch that disagree about the same image, always fail. NaN
and infinity that PyTorch outputs too, such as logits of -inf for masked classes, must be equal and are left out of the
measures.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgevit.arrays import differences, finite_or_none, finite_std, relative, snr_db
from edgevit.dense.outputs import is_class_map
from edgevit.errors import ParityError
from edgevit.precisions import get_policy
from edgevit.runtimes.pixel_parity import (
    PixelAgreement,
    is_class_logits,
    logits_agreement,
    map_agreement,
)
from edgevit.types import PHOTOS, Array, Precision, Reference, Run

# Lead of a logit in deviations of its noise: four of the difference of two logits, reversed once in 30,000 rows.
_NOISE_DEVIATIONS = 4 * math.sqrt(2)

# Spread between rows over spread within them. Below this, an output hardly depends on its input.
MIN_INPUT_SENSITIVITY = 1e-3


def references_for(references: Sequence[Reference], precision: Precision) -> tuple[Reference, ...]:
    """Return the references that a precision is judged on.

    int8 is judged on photos alone if there are any: its ranges are calibrated on photos and clip noise.
    """
    photos = tuple(reference for reference in references if reference.kind == PHOTOS)
    return photos if get_policy(precision).photos_only and photos else tuple(references)


def undefined_output(references: Sequence[Reference], *, strict: bool = False) -> str:
    """Return why no engine can be compared with the references, such as "output y contains NaN on photos"; or "".

    Without `strict`, photos alone count if there are any, and single values of noise do not: a root or a logarithm of
    noise may be NaN on purpose. -inf may mask classes, but not all values of an output.
    """
    photos = [reference for reference in references if reference.kind == PHOTOS]
    for reference in references if strict else photos or references:
        for name, values in reference.outputs.items():
            if np.isnan(values).any() and (strict or photos):
                return f"output {name} contains NaN on {reference.kind}"
            if strict and np.isposinf(values).any():
                return f"output {name} contains infinity on {reference.kind}"
            if not np.isfinite(values).any():
                return f"output {name} has no finite value on {reference.kind}"
    return ""


@dataclass(frozen=True, slots=True, kw_only=True)
class OutputParity:
    """The differences of one output from PyTorch's, for one stage and one kind of input."""

    stage: str
    kind: str
    output: str
    precision: Precision
    batch: int
    std: float  # of PyTorch's finite outputs
    max_abs: tuple[float, ...]  # largest absolute difference of each row
    cosine: tuple[float, ...]  # cosine similarity of each row
    noise_power: float  # mean squared difference over all rows
    signal_power: float  # mean square of PyTorch's output
    same_top1: tuple[bool, ...]  # of each row; empty if the output is not (rows, classes)
    lead: tuple[float, ...]  # of PyTorch's best class over the second, of each row; empty like `same_top1`
    float32_error: float | None  # largest difference of PyTorch's float32 from its float64; None: not measured
    finite: bool  # as finite as PyTorch's outputs: NaN and infinity at the same places
    rows_differ: float  # largest difference between rows of one batch that hold the same image
    input_sensitivity: float  # spread between PyTorch's rows over the spread within them
    pixels: PixelAgreement | None = None  # of the class of each pixel; None if the output is not one of segmentation
    is_class_map: bool = False  # classes and not values: only their agreement is judged

    @property
    def max_abs_of_std(self) -> float:
        return relative(max(self.max_abs), self.std)

    @property
    def snr_db(self) -> float:
        return snr_db(relative(self.noise_power, self.signal_power))

    @property
    def float32_error_of_std(self) -> float | None:
        return None if self.float32_error is None or self.std <= 0 else self.float32_error / self.std

    @property
    def allowed_error_of_std(self) -> float | None:
        """The largest accepted difference, in standard deviations; None if it is not judged."""
        allowed = get_policy(self.precision).tolerance
        if allowed.max_abs_of_std is None:
            return None
        return max(allowed.max_abs_of_std, (allowed.max_float32_errors or 0.0) * (self.float32_error_of_std or 0.0))

    @property
    def agreement(self) -> float | None:
        """The fraction of photos with the same top-1 class, of those with a lead beyond the accepted errors.

        None if there are none. On noise, the best of many equal logits says nothing.
        """
        if self.kind != PHOTOS:
            return None
        decided = [same for same, lead in zip(self.same_top1, self.lead, strict=True) if lead > self.reversible_lead]
        return sum(decided) / len(decided) if decided else None

    @property
    def reversible_lead(self) -> float:
        """The lead of a class that errors within the tolerance can reverse."""
        snr_db = get_policy(self.precision).tolerance.snr_db
        noise = 0.0 if snr_db is None else math.sqrt(self.signal_power) * 10 ** (-snr_db / 20)
        return max(2 * (self.allowed_error_of_std or 0.0) * self.std, _NOISE_DEVIATIONS * noise)

    @property
    def failures(self) -> tuple[str, ...]:
        """The reasons why this output does not pass; empty if it passes."""
        if not self.finite:
            return ("it has NaN or infinity at other places than the reference",)
        if self.is_class_map:
            return self._pixel_failures(get_policy(self.precision).tolerance.map_agreement)
        policy = get_policy(self.precision)
        allowed, max_error = policy.tolerance, self.allowed_error_of_std
        rows_allowed = max(policy.max_row_spread_std, max_error or 0.0) * self.std
        failures = []
        # "not within" instead of "beyond", so that a measure that is NaN fails too.
        if max_error is not None and not self.max_abs_of_std <= max_error:
            own = self.float32_error_of_std
            known = "" if own is None else f" (the model's own float32 error is {own:.1e})"
            failures.append(f"max error {self.max_abs_of_std:.1e} std, allowed {max_error:.2g}{known}")
        if not min(self.cosine) >= allowed.cosine:
            failures.append(f"cosine {min(self.cosine):.6f}, at least {allowed.cosine:g}")
        if allowed.snr_db is not None and not self.snr_db >= allowed.snr_db:
            failures.append(f"SNR {self.snr_db:.1f} dB, at least {allowed.snr_db:g}")
        if allowed.agreement is not None and self.agreement is not None and not self.agreement >= allowed.agreement:
            failures.append(f"top-1 agreement {self.agreement:.1%}, at least {allowed.agreement:.1%}")
        failures += self._pixel_failures(allowed.agreement)
        if not self.rows_differ <= rows_allowed:
            failures.append(f"rows of one batch differ by {self.rows_differ:.1e} on the same image")
        return tuple(failures)

    def _pixel_failures(self, least: float | None) -> tuple[str, ...]:
        """The reason why too few pixels have PyTorch's class; on noise, the best of many equal logits says nothing."""
        decided = self.pixels.decided if self.pixels is not None and self.kind == PHOTOS else None
        if least is None or decided is None or decided >= least:
            return ()
        return (f"pixel agreement {decided:.2%}, at least {least:.2%}",)

    @property
    def passed(self) -> bool:
        return not self.failures


@dataclass(frozen=True, slots=True, kw_only=True)
class ParitySummary:
    """How an engine's outputs compare with PyTorch's, in one line."""

    passed: bool
    max_error_std: float | None  # largest difference in standard deviations of the output; None if not finite
    cosine: float | None  # smallest of all rows
    agreement: float | None = None  # fraction of photos with PyTorch's top-1 class; None if not judged
    pixel_agreement: float | None = None  # fraction of photos' pixels with PyTorch's class; None: no segmentation
    failure: str = ""  # the first reason why it does not pass

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> ParitySummary:
        return cls(
            passed=bool(data["passed"]),
            max_error_std=_number(data["max_error_std"]),
            cosine=_number(data["cosine"]),
            agreement=_number(data["agreement"]),
            pixel_agreement=_number(data.get("pixel_agreement")),
            failure=str(data["failure"]),
        )


@dataclass(frozen=True, slots=True)
class ParityReport:
    """The comparisons of all outputs of all stages, in the order of the stages."""

    results: tuple[OutputParity, ...]

    @property
    def passed(self) -> bool:
        return bool(self.results) and all(result.passed for result in self.results)

    @property
    def first_failed_stage(self) -> str | None:
        """The first stage that fails; later stages may fail because of it."""
        return next((result.stage for result in self.results if not result.passed), None)

    @property
    def warnings(self) -> tuple[str, ...]:
        insensitive = {r.output for r in self.results if r.input_sensitivity < MIN_INPUT_SENSITIVITY}
        return tuple(
            f"output {name} hardly depends on the input, so that its parity proves little"
            for name in sorted(insensitive)
        )

    @property
    def summary(self) -> ParitySummary | None:
        """The worst measures over all outputs; None if nothing was compared."""
        if not self.results:
            return None
        agreements = [result.agreement for result in self.results if result.agreement is not None]
        pixels = [each.pixels.all for each in self.results if each.pixels is not None and each.kind == PHOTOS]
        failures = [failure for result in self.results for failure in result.failures]
        return ParitySummary(
            passed=self.passed,
            max_error_std=finite_or_none(max(result.max_abs_of_std for result in self.results)),
            cosine=finite_or_none(min(min(result.cosine) for result in self.results)),
            agreement=min(agreements, default=None),
            pixel_agreement=min(pixels, default=None),
            failure=failures[0] if failures else "",
        )

    def require(self) -> None:
        """Raise ParityError with the first stage that fails and its measures, or if nothing was compared."""
        for result in self.results:
            if not result.passed:
                raise ParityError(
                    f"parity failed at stage {result.stage!r}, output {result.output!r} on {result.kind}: "
                    f"{'; '.join(result.failures)} ({result.precision}: {get_policy(result.precision).tolerance})",
                    report=self,
                )
        if not self.results:
            raise ParityError("nothing was compared; give reference images with --images DIR")

    def __add__(self, other: ParityReport) -> ParityReport:
        return ParityReport((*self.results, *other.results))

    def to_json(self) -> dict[str, Any]:
        return {
            "passed": self.passed,
            "guilty_stage": self.first_failed_stage,
            "results": [
                _for_json({**_fields(r), "passed": r.passed, "snr_db": r.snr_db, "failures": list(r.failures)})
                for r in self.results
            ],
        }


def _fields(result: OutputParity) -> dict[str, Any]:
    """Return the fields under their JSON keys."""
    fields = {"dependence" if name == "input_sensitivity" else name: value for name, value in asdict(result).items()}
    if result.pixels is None:
        del fields["pixels"], fields["is_class_map"]
    return fields


def compare(
    stage: str, run: Run, references: Sequence[Reference], *, precision: Precision, batches: Sequence[int] = (1,)
) -> ParityReport:
    """Run every reference at every batch size and compare each row with PyTorch's outputs.

    `stage` is the name, in the report, of the engine or graph that runs. Each batch above 1 is run a second time with
    copies of one image, whose rows must agree with each other. Raises ParityError if an output has another shape
    than PyTorch's.
    """
    results = []
    for reference in references:
        for batch in batches:
            outputs = run_rows(run, reference, batch)
            spread = _spread_of_copies(run, reference, batch) if batch > 1 else {}
            results += [
                _compare_output(
                    name,
                    np.asarray(expected),
                    outputs[name],
                    conditions=_Conditions(stage, reference.kind, precision, batch),
                    rows_differ=spread.get(name, 0.0),
                    float32_error=reference.float32_error.get(name),
                )
                for name, expected in reference.outputs.items()
            ]
    return ParityReport(tuple(results))


def run_rows(run: Run, reference: Reference, batch: int) -> dict[str, Array]:
    """Return the outputs for every row, run `batch` rows at a time."""
    pieces: dict[str, list[Array]] = {name: [] for name in reference.outputs}
    for start in range(0, reference.rows, batch):
        outputs = run(reference.batch(batch, start))
        for name, parts in pieces.items():
            parts.append(outputs[name])
    return {name: np.concatenate(parts)[: reference.rows] for name, parts in pieces.items()}


def _spread_of_copies(run: Run, reference: Reference, batch: int) -> dict[str, float]:
    """Return the largest difference between rows of a batch of copies of the first image, by output."""
    rows = np.zeros(batch, np.int64)
    outputs = run({name: np.ascontiguousarray(array[rows]) for name, array in reference.inputs.items()})
    return {name: float(differences(outputs[name], outputs[name][:1]).max()) for name in reference.outputs}


@dataclass(frozen=True, slots=True)
class _Conditions:
    """The stage, the kind of inputs, the precision and the batch size of one comparison."""

    stage: str
    kind: str
    precision: Precision
    batch: int


def _compare_output(
    name: str,
    expected: Array,
    actual: Array,
    *,
    conditions: _Conditions,
    rows_differ: float,
    float32_error: float | None,
) -> OutputParity:
    if expected.shape != actual.shape:
        raise ParityError(
            f"{conditions.stage}: output {name} has the shape {actual.shape}, but the reference has {expected.shape}"
        )
    want = expected.reshape(len(expected), -1).astype(np.float64)  # (rows, values)
    got = actual.reshape(len(actual), -1).astype(np.float64)
    classifies = expected.ndim == 2 and want.shape[1] > 1
    same_top1 = tuple((want.argmax(1) == got.argmax(1)).tolist()) if classifies else ()
    lead = _leads(want) if classifies else ()
    undefined = ~np.isfinite(want)  # NaN or infinity in PyTorch's output too
    matching = (want == got) | (np.isnan(want) & np.isnan(got))
    finite = bool(np.where(undefined, matching, np.isfinite(got)).all())
    std = finite_std(want)
    want, got = np.where(undefined, 0.0, want), np.where(undefined & matching, 0.0, got)
    difference = np.abs(got - want)
    result = OutputParity(
        stage=conditions.stage,
        kind=conditions.kind,
        output=name,
        precision=conditions.precision,
        batch=conditions.batch,
        std=std,
        max_abs=tuple(difference.max(1).tolist()),
        cosine=tuple(_cosine(want, got).tolist()),
        noise_power=float((difference**2).mean()),
        signal_power=float((want**2).mean()),
        same_top1=same_top1,
        lead=lead,
        float32_error=float32_error,
        finite=finite,
        rows_differ=rows_differ,
        input_sensitivity=float(want.std(0).mean() / (want.std() or 1.0)) if len(want) > 1 else 1.0,
    )
    if is_class_map(name, actual):  # references are stored as floats
        return replace(result, pixels=map_agreement(expected, actual), is_class_map=True)
    if is_class_logits(name, expected):
        return replace(result, pixels=logits_agreement(expected, actual, result.reversible_lead))
    return result


def _leads(logits: NDArray[np.float64]) -> tuple[float, ...]:
    """Return the lead of the best class over the second in each row of (rows, classes); 0 if it is not defined."""
    second, best = np.partition(logits, -2, axis=1)[:, -2:].T
    with np.errstate(invalid="ignore"):
        leads = best - second
    return tuple(np.nan_to_num(leads, nan=0.0, posinf=np.inf).tolist())


def _cosine(want: NDArray[np.float64], got: NDArray[np.float64]) -> NDArray[np.float64]:
    both_zero = (want == 0).all(1) & (got == 0).all(1)
    with np.errstate(invalid="ignore"):  # infinities fail by `finite`
        norms = np.linalg.norm(want, axis=1) * np.linalg.norm(got, axis=1)
        products: NDArray[np.float64] = (want * got).sum(1)
        cosine = np.divide(products, norms, out=np.zeros_like(products), where=norms > 0)
    return np.where(both_zero, 1.0, cosine)


def _for_json(value: Any) -> Any:
    """Return the value with None in place of NaN and infinity, which JSON does not have."""
    if isinstance(value, dict):
        return {name: _for_json(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [_for_json(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _number(value: Any) -> float | None:
    return None if value is None else float(value)
