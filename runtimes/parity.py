"""Whether two engines compute the same: several measures at once, a tolerance a precision, and a verdict.

The evidence is kept row by row; the verdict is derived from it. A NaN, an infinity, and rows of one batch that
disagree about one image always fail.
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

# Below this, an output hardly depends on its input, and agreement about it proves little.
MIN_INPUT_SENSITIVITY = 1e-3


def references_for(references: Sequence[Reference], precision: Precision) -> tuple[Reference, ...]:
    """The references that a precision is judged on: int8 on photos where there are any, since its ranges fit photos
    and cut noise off; the others on all."""
    photos = tuple(reference for reference in references if reference.kind == PHOTOS)
    return photos if get_policy(precision).photos_only and photos else tuple(references)


@dataclass(frozen=True, slots=True, kw_only=True)
class OutputParity:
    """One output of one stage on one kind of input: every row's differences."""

    stage: str
    kind: str
    output: str
    precision: Precision
    batch: int
    std: float  # of PyTorch's output
    max_abs: tuple[float, ...]  # a row
    cosine: tuple[float, ...]  # a row
    noise_power: float  # mean squared difference over all rows
    signal_power: float  # mean square of PyTorch's output
    same_top1: tuple[bool, ...]  # a row; empty where the output has no classes
    finite: bool
    rows_differ: float  # largest difference between rows of one batch that hold the same image
    dependence: float  # spread between PyTorch's rows over the spread within them

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
        """Every reason why this output does not pass; empty where it does."""
        if not self.finite:
            return ("it holds NaN or infinity",)
        policy = get_policy(self.precision)
        allowed, rows_allowed = policy.tolerance, policy.max_row_spread_std * self.std
        found = []
        # Written as "not within", so that a NaN in a measure fails too.
        if allowed.max_abs_of_std is not None and not self.max_abs_of_std <= allowed.max_abs_of_std:
            found.append(f"max error {self.max_abs_of_std:.1e} std, allowed {allowed.max_abs_of_std:g}")
        if not min(self.cosine) >= allowed.cosine:
            found.append(f"cosine {min(self.cosine):.6f}, at least {allowed.cosine:g}")
        if allowed.snr_db is not None and not self.snr_db >= allowed.snr_db:
            found.append(f"SNR {self.snr_db:.1f} dB, at least {allowed.snr_db:g}")
        if allowed.agreement is not None and self.agreement is not None and not self.agreement >= allowed.agreement:
            found.append(f"top-1 agreement {self.agreement:.1%}, at least {allowed.agreement:.1%}")
        if not self.rows_differ <= rows_allowed:
            found.append(f"rows of one batch differ by {self.rows_differ:.1e} on the same image")
        return tuple(found)

    @property
    def passed(self) -> bool:
        return not self.failures


@dataclass(frozen=True, slots=True)
class ParityReport:
    """All outputs of all stages, in the order of the stages."""

    results: tuple[OutputParity, ...]

    @property
    def passed(self) -> bool:
        return bool(self.results) and all(result.passed for result in self.results)

    @property
    def guilty_stage(self) -> str | None:
        """The first stage that fails: later ones may only inherit its fault."""
        return next((result.stage for result in self.results if not result.passed), None)

    @property
    def warnings(self) -> tuple[str, ...]:
        idle = {r.output for r in self.results if r.dependence < MIN_INPUT_SENSITIVITY}
        return tuple(
            f"the output {name} hardly depends on the input: that it agrees proves little" for name in sorted(idle)
        )

    def require(self) -> None:
        """Raises ParityError that names the guilty stage and the measures."""
        for result in self.results:
            if not result.passed:
                raise ParityError(
                    f"parity failed at the stage {result.stage!r}, output {result.output!r} on {result.kind}: "
                    f"{'; '.join(result.failures)} ({result.precision}: {get_policy(result.precision).tolerance})",
                    report=self,
                )
        if not self.results:
            raise ParityError("nothing was compared; give reference images with --images")

    def __add__(self, other: ParityReport) -> ParityReport:
        return ParityReport((*self.results, *other.results))

    def to_json(self) -> dict[str, Any]:
        return {
            "passed": self.passed,
            "guilty_stage": self.guilty_stage,
            "results": [
                _told({**asdict(r), "passed": r.passed, "snr_db": r.snr_db, "failures": list(r.failures)})
                for r in self.results
            ],
        }


def compare(
    stage: str, run: Run, references: Sequence[Reference], *, precision: Precision, batches: Sequence[int] = (1,)
) -> ParityReport:
    """Runs every reference at every batch and compares each row with PyTorch's answer.

    Each batch is run a second time filled with copies of one image, whose rows must agree with each other.
    """
    results = []
    for reference in references:
        for batch in batches:
            answers = _run_rows(run, reference, batch)
            spread = _spread_of_copies(run, reference, batch) if batch > 1 else {}
            results += [
                _compare_output(
                    name,
                    np.asarray(expected),
                    answers[name],
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
    """The answers to every row, run `batch` rows at a time."""
    pieces: dict[str, list[Array]] = {name: [] for name in reference.outputs}
    for start in range(0, reference.rows, batch):
        answers = run(reference.batch(batch, start))
        for name, parts in pieces.items():
            parts.append(answers[name])
    return {name: np.concatenate(parts)[: reference.rows] for name, parts in pieces.items()}


def _spread_of_copies(run: Run, reference: Reference, batch: int) -> dict[str, float]:
    rows = np.zeros(batch, np.int64)
    answers = run({name: np.ascontiguousarray(array[rows]) for name, array in reference.inputs.items()})
    return {
        name: float(np.abs(answers[name].astype(np.float64) - answers[name][:1]).max()) for name in reference.outputs
    }


def _compare_output(
    name: str,
    expected: Array,
    answer: Array,
    *,
    stage: str,
    kind: str,
    precision: Precision,
    batch: int,
    rows_differ: float,
) -> OutputParity:
    if expected.shape != answer.shape:
        raise ParityError(f"{stage}: {name} has the shape {answer.shape}, and PyTorch's has {expected.shape}")
    want = expected.reshape(len(expected), -1).astype(np.float64)  # (rows, values)
    got = answer.reshape(len(answer), -1).astype(np.float64)
    finite = bool(np.isfinite(got).all())
    difference = np.abs(got - want)
    classes = expected.ndim == 2 and expected.shape[1] > 1
    return OutputParity(
        stage=stage,
        kind=kind,
        output=name,
        precision=precision,
        batch=batch,
        std=float(want.std()),
        max_abs=tuple(difference.max(1).tolist()),
        cosine=tuple(_cosine(want, got).tolist()),
        noise_power=float((difference**2).mean()),
        signal_power=float((want**2).mean()),
        same_top1=tuple((want.argmax(1) == got.argmax(1)).tolist()) if classes else (),
        finite=finite,
        rows_differ=rows_differ,
        dependence=float(want.std(0).mean() / (want.std() or 1.0)) if len(want) > 1 else 1.0,
    )


def _cosine(want: NDArray[np.float64], got: NDArray[np.float64]) -> NDArray[np.float64]:
    norms = np.linalg.norm(want, axis=1) * np.linalg.norm(got, axis=1)
    products: NDArray[np.float64] = (want * got).sum(1)
    both_zero = (want == 0).all(1) & (got == 0).all(1)
    with np.errstate(invalid="ignore"):  # infinities are judged elsewhere
        cosine = np.divide(products, norms, out=np.zeros_like(products), where=norms > 0)
    return np.where(both_zero, 1.0, cosine)


def _told(value: Any) -> Any:
    """The value for JSON, which knows no NaN and no infinity: null in their place."""
    if isinstance(value, dict):
        return {name: _told(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [_told(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
