"""Compare engine outputs with reference outputs.

Several measures are taken row by row and stored; pass or fail is derived from them and the tolerance of the precision.
NaN or infinity that PyTorch does not output, and rows of one batch that disagree about the same image, always fail. NaN
and infinity that PyTorch outputs too, such as logits of -inf for masked classes, must be equal and are left out of the
measures.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgevit.errors import ParityError
from edgevit.precisions import get_policy
from edgevit.types import PHOTOS, Array, Precision, Reference, Run

# Spread between rows over spread within them. Below this, an output hardly depends on its input.
MIN_INPUT_SENSITIVITY = 1e-3


def references_for(references: Sequence[Reference], precision: Precision) -> tuple[Reference, ...]:
    """Return the references that a precision is judged on.

    int8 is judged on photos alone if there are any: its ranges are calibrated on photos and clip noise.
    """
    photos = tuple(reference for reference in references if reference.kind == PHOTOS)
    return photos if get_policy(precision).photos_only and photos else tuple(references)


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
    finite: bool  # as finite as PyTorch's outputs: NaN and infinity at the same places
    rows_differ: float  # largest difference between rows of one batch that hold the same image
    input_sensitivity: float  # spread between PyTorch's rows over the spread within them

    @property
    def max_abs_of_std(self) -> float:
        return max(self.max_abs) / self.std if self.std > 0 else (0.0 if max(self.max_abs) == 0 else math.inf)

    @property
    def snr_db(self) -> float:
        if self.noise_power == 0:
            return math.inf
        if not math.isfinite(self.noise_power):
            return -math.inf
        return 10 * math.log10(self.signal_power / self.noise_power) if self.signal_power > 0 else -math.inf

    @property
    def agreement(self) -> float | None:
        return sum(self.same_top1) / len(self.same_top1) if self.same_top1 else None

    @property
    def failures(self) -> tuple[str, ...]:
        """The reasons why this output does not pass; empty if it passes."""
        if not self.finite:
            return ("it has NaN or infinity at other places than PyTorch's output",)
        policy = get_policy(self.precision)
        allowed, rows_allowed = policy.tolerance, policy.max_row_spread_std * self.std
        failures = []
        # "not within" instead of "beyond", so that a measure that is NaN fails too.
        if allowed.max_abs_of_std is not None and not self.max_abs_of_std <= allowed.max_abs_of_std:
            failures.append(f"max error {self.max_abs_of_std:.1e} std, allowed {allowed.max_abs_of_std:g}")
        if not min(self.cosine) >= allowed.cosine:
            failures.append(f"cosine {min(self.cosine):.6f}, at least {allowed.cosine:g}")
        if allowed.snr_db is not None and not self.snr_db >= allowed.snr_db:
            failures.append(f"SNR {self.snr_db:.1f} dB, at least {allowed.snr_db:g}")
        if allowed.agreement is not None and self.agreement is not None and not self.agreement >= allowed.agreement:
            failures.append(f"top-1 agreement {self.agreement:.1%}, at least {allowed.agreement:.1%}")
        if not self.rows_differ <= rows_allowed:
            failures.append(f"rows of one batch differ by {self.rows_differ:.1e} on the same image")
        return tuple(failures)

    @property
    def passed(self) -> bool:
        return not self.failures


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
    return {"dependence" if name == "input_sensitivity" else name: value for name, value in asdict(result).items()}


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
            outputs = _run_rows(run, reference, batch)
            spread = _spread_of_copies(run, reference, batch) if batch > 1 else {}
            results += [
                _compare_output(
                    name,
                    np.asarray(expected),
                    outputs[name],
                    stage=stage,
                    kind=reference.kind,
                    precision=precision,
                    batch=batch,
                    rows_differ=spread.get(name, 0.0),
                )
                for name, expected in reference.outputs.items()
            ]
    return ParityReport(tuple(results))


def _run_rows(run: Run, reference: Reference, batch: int) -> dict[str, Array]:
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
    return {name: _max_difference(outputs[name], outputs[name][:1]) for name in reference.outputs}


def _max_difference(values: Array, others: Array) -> float:
    """Return the largest absolute difference; equal infinities, and NaN in both, differ by 0."""
    equal = (values == others) | (np.isnan(values) & np.isnan(others))
    with np.errstate(invalid="ignore"):
        difference = np.abs(values.astype(np.float64) - others)
    return float(np.where(equal, 0.0, difference).max())


def _compare_output(
    name: str,
    expected: Array,
    actual: Array,
    *,
    stage: str,
    kind: str,
    precision: Precision,
    batch: int,
    rows_differ: float,
) -> OutputParity:
    if expected.shape != actual.shape:
        raise ParityError(f"{stage}: output {name} has the shape {actual.shape}, but PyTorch's has {expected.shape}")
    want = expected.reshape(len(expected), -1).astype(np.float64)  # (rows, values)
    got = actual.reshape(len(actual), -1).astype(np.float64)
    same_top1 = tuple((want.argmax(1) == got.argmax(1)).tolist()) if expected.ndim == 2 and want.shape[1] > 1 else ()
    undefined = ~np.isfinite(want)  # NaN or infinity in PyTorch's output too
    matching = (want == got) | (np.isnan(want) & np.isnan(got))
    finite = bool(np.where(undefined, matching, np.isfinite(got)).all())
    std = float(want[~undefined].std()) if not undefined.all() else 0.0
    want, got = np.where(undefined, 0.0, want), np.where(undefined & matching, 0.0, got)
    difference = np.abs(got - want)
    return OutputParity(
        stage=stage,
        kind=kind,
        output=name,
        precision=precision,
        batch=batch,
        std=std,
        max_abs=tuple(difference.max(1).tolist()),
        cosine=tuple(_cosine(want, got).tolist()),
        noise_power=float((difference**2).mean()),
        signal_power=float((want**2).mean()),
        same_top1=same_top1,
        finite=finite,
        rows_differ=rows_differ,
        input_sensitivity=float(want.std(0).mean() / (want.std() or 1.0)) if len(want) > 1 else 1.0,
    )


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
