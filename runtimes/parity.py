"""Compare an engine's outputs with the reference outputs, at every batch size."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from edgevit.arrays import differences, finite_or_none
from edgevit.errors import ParityError
from edgevit.precisions import get_policy
from edgevit.runtimes.output_parity import Conditions, OutputParity, compare_output
from edgevit.types import PHOTOS, Array, Precision, Reference, Run

# Spread between rows over spread within them. Below this, an output hardly depends on its input.
MIN_INPUT_SENSITIVITY = 1e-3
UNDETERMINED_STD = 1e-2  # PyTorch's own float32 error, from which fp32 proves nothing: that of fp16


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
        return (
            *(
                f"output {name} hardly depends on the input, so that its parity proves little"
                for name in sorted(insensitive)
            ),
            *self._undetermined_outputs(),
            *self._lost_channels(),
        )

    def _undetermined_outputs(self) -> Iterator[str]:
        own: dict[str, float] = {}
        for each in self.results:
            if each.precision == "fp32" and (error := each.float32_error_of_std or 0.0) > UNDETERMINED_STD:
                own[each.output] = max(error, own.get(each.output, 0.0))
        for name, error in sorted(own.items()):
            yield (
                f"float32 does not determine output {name}, so that its parity in fp32 proves little: "
                f"the model's own float32 error is {error:.1e} std"
            )

    def _lost_channels(self) -> Iterator[str]:
        """Yield the channels whose errors exceed their signal, for the last stage that has such in each output."""
        found = {r.output: r for r in self.results if r.kind == PHOTOS and r.channels is not None and r.channels.lost}
        for name, result in sorted(found.items()):
            yield f"output {name} of {result.stage!r}: {result.channels}"

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
    del fields["channels"], fields["mean_square"]  # no part of the document
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
                compare_output(
                    name,
                    np.asarray(expected),
                    outputs[name],
                    conditions=Conditions(stage, reference.kind, precision, batch),
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


def _for_json(value: Any) -> Any:
    """Return the value with None in place of NaN and infinity, which JSON does not have."""
    if isinstance(value, dict):
        return {name: _for_json(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [_for_json(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _number(value: Any) -> float | None:
    return None if value is None else float(value)
