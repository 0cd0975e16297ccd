"""Measure the float32 error of the rows that need it: those on which the captured graph is not clearly right.

The float32 error of one row says little about another: through sharp functions, such as a softmax over large logits, it
may grow a thousandfold on some images. So each row that comes near the tolerance is run in float64 too. A row on which
float32 itself determines no result can prove nothing about an engine, and is left out.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TypeAlias

import numpy as np

from edgevit.runtimes.output_parity import OutputParity
from edgevit.runtimes.parity import UNDETERMINED_STD, ParityReport
from edgevit.types import Array, Reference

# The float32 errors of the outputs by name, for each row that is requested and known.
Float32Errors: TypeAlias = Callable[[Reference, Iterable[int]], Mapping[int, Mapping[str, float]]]

_LOG = logging.getLogger(__name__)

_NEAR_STD = 1e-5  # error of a row that is run in float64, a tenth of the tolerance of fp32


def with_refined_errors(
    references: Sequence[Reference], report: ParityReport, float32_errors: Float32Errors
) -> tuple[Reference, ...]:
    """Return the references with the float32 error of all rows that `report` finds near the tolerance or beyond.

    `report` compares a graph in fp32 with `references`. If float32 determines no row of a kind, all of them stay,
    of which the report of the export warns.
    """
    return tuple(_refined(reference, _judged(report, reference.kind), float32_errors) for reference in references)


def with_measured_errors(
    references: Sequence[Reference], report: ParityReport, float32_errors: Float32Errors
) -> tuple[Reference, ...]:
    """Return the references with the float32 error of the rows on which a comparison in fp32 fails; all rows stay."""
    failed = ParityReport(tuple(each for each in report.results if each.precision == "fp32" and not each.passed))
    return tuple(_measured(reference, _judged(failed, reference.kind), float32_errors) for reference in references)


def with_errors_of(report: ParityReport, references: Sequence[Reference]) -> ParityReport:
    """Return a comparison, judged by the float32 errors of `references`."""
    errors = {each.kind: each.float32_error for each in references}
    return ParityReport(
        tuple(
            replace(each, float32_error=errors[each.kind].get(each.output, each.float32_error))
            for each in report.results
        )
    )


def _judged(report: ParityReport, kind: str) -> list[OutputParity]:
    """Return the comparisons on one kind of input that an error decides: a map of classes has none."""
    return [each for each in report.results if each.kind == kind and each.finite and not each.is_class_map]


def _refined(reference: Reference, judged: Sequence[OutputParity], float32_errors: Float32Errors) -> Reference:
    errors = _errors_of_near_rows(reference, judged, float32_errors)
    if not errors:
        return reference
    of_std = {row: max(_error_of_std(each, by_name) for each in judged) for row, by_name in errors.items()}
    undetermined = {row: error for row, error in of_std.items() if error > UNDETERMINED_STD}
    if len(undetermined) == reference.rows:
        undetermined = {}
    for row, error in undetermined.items():
        _LOG.warning(
            "edgevit: row %d of %s is left out of the comparison: float32 does not determine its result; "
            "the model's own float32 error is %.1e std",
            row + 1,
            reference.kind,
            error,
        )
    kept = [row for row in range(reference.rows) if row not in undetermined]
    known = [by_name for row, by_name in errors.items() if row in kept]
    first = [] if 0 in undetermined else [reference.float32_error]  # that of the first row is measured before
    return replace(
        reference,
        inputs=_rows(reference.inputs, kept),
        outputs=_rows(reference.outputs, kept),
        float32_error=_largest([*first, *known]),
    )


def _measured(reference: Reference, judged: Sequence[OutputParity], float32_errors: Float32Errors) -> Reference:
    errors = _errors_of_near_rows(reference, judged, float32_errors)
    return (
        replace(reference, float32_error=_largest([reference.float32_error, *errors.values()])) if errors else reference
    )


def _errors_of_near_rows(
    reference: Reference, judged: Sequence[OutputParity], float32_errors: Float32Errors
) -> Mapping[int, Mapping[str, float]]:
    near = {row for each in judged for row, error in enumerate(each.max_abs) if error > _NEAR_STD * each.std}
    return float32_errors(reference, sorted(near)) if near else {}


def _error_of_std(result: OutputParity, errors: Mapping[str, float]) -> float:
    return errors.get(result.output, 0.0) / result.std if result.std > 0 else 0.0


def _rows(arrays: Mapping[str, Array], rows: Sequence[int]) -> dict[str, Array]:
    return {name: np.ascontiguousarray(array[rows]) for name, array in arrays.items()}


def _largest(errors: Sequence[Mapping[str, float]]) -> dict[str, float]:
    names = dict.fromkeys(name for each in errors for name in each)
    return {name: max(each.get(name, 0.0) for each in errors) for name in names}
