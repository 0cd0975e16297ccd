"""The float32 error of an ONNX file as MODEL: of ONNX Runtime's outputs against the file in float64.

The evaluator in float64 is another implementation of the operators. It is trusted if it agrees with ONNX Runtime on a
row that is not in question: a difference there is one of operators, and no float32 error.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Mapping

from edgevit.arrays import finite_std, largest_difference
from edgevit.errors import ExportError
from edgevit.export.float64 import float64_evaluator
from edgevit.files import class_and_first_line
from edgevit.pipeline.onnx_model import OnnxModel
from edgevit.types import Reference, Run

_LOG = logging.getLogger(__name__)

_LIMIT_S = 60.0  # time limit for all rows together
_TRUSTED_STD = 1e-3  # largest difference on a row that is not in question, or on any if all are


def float32_errors(model: OnnxModel, reference: Reference, rows: Iterable[int]) -> dict[int, Mapping[str, float]]:
    """Return the float32 error of each output, for single rows; empty if it is unknown, which a warning says.

    Rows are left out that would take longer than `_LIMIT_S`.
    """
    asked = list(rows)
    try:
        run = float64_evaluator(model.imported(dynamic_batch=False))
        return _trusted_errors(run, reference, asked, batch=model.batch)
    except Exception as error:  # of an operator that the evaluator lacks
        reason = str(error) if isinstance(error, ExportError) else class_and_first_line(error)
        _LOG.warning(
            "edgevit: %s was not run in float64 (%s): its own float32 error is unknown, and fp32 is judged without it",
            model.path.name,
            reason,
        )
        return {}


def _trusted_errors(run: Run, reference: Reference, asked: list[int], *, batch: int) -> dict[int, Mapping[str, float]]:
    end_s = time.monotonic() + _LIMIT_S
    control = next((row for row in range(reference.rows) if row not in asked), None)
    if control is not None and _of_std(_errors(run, reference, control, batch=batch), reference) > _TRUSTED_STD:
        raise ExportError("onnx's reference evaluator and ONNX Runtime disagree")
    found: dict[int, Mapping[str, float]] = {}
    for row in asked:
        if time.monotonic() > end_s:
            break
        found[row] = _errors(run, reference, row, batch=batch)
    if control is None:
        return {row: errors for row, errors in found.items() if _of_std(errors, reference) <= _TRUSTED_STD}
    return found


def _errors(run: Run, reference: Reference, row: int, *, batch: int) -> dict[str, float]:
    outputs = run({name: array[[row] * batch] for name, array in reference.inputs.items()})
    return {name: largest_difference(array[row], outputs[name][0]) for name, array in reference.outputs.items()}


def _of_std(errors: Mapping[str, float], reference: Reference) -> float:
    """Return the largest error in standard deviations of its output."""
    std = {name: finite_std(reference.outputs[name]) for name in errors}
    return max((error / std[name] for name, error in errors.items() if std[name] > 0), default=0.0)
