"""Reference inputs and PyTorch's outputs for them: photos first, seeded noise second."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils._pytree import tree_leaves

from edgevit.arrays import largest_difference
from edgevit.errors import ExportError
from edgevit.files import class_and_first_line
from edgevit.models.determinism import explain_difference
from edgevit.models.float64 import run_in_float64
from edgevit.models.loading import LoadedModel
from edgevit.models.reference_inputs import noise_inputs, photo_inputs, warn_of_single_values
from edgevit.models.repetition import differing_row
from edgevit.types import PHOTOS, Array, Reference

_LOG = logging.getLogger(__name__)

FLOAT64_LIMIT_S = 60.0  # for one row


def compute_references(
    model: LoadedModel,
    output_names: Iterable[str],
    *,
    images: Path | None = None,
    strict: bool = False,
    verify: bool = True,
) -> tuple[Reference, ...]:
    """Run PyTorch, image by image, on photos (if the input is an image) and on noise.

    `images` is a folder of photos; without it, the photos that come with edgevit are used. Photos that cannot be read
    are left out, with a warning; ImageError is raised for the first if `strict`, or if none can be read. With `verify`,
    rows are run twice to see that they have one result, and the first of photos and of noise in float64 too, which
    takes as long as two to three other rows; a warning says if that fails.
    Raises ExportError if the module fails, returns anything but tensors with the batch as first axis, or other outputs
    each time.
    """
    inputs = {
        PHOTOS: photo_inputs(model.preprocessing, images, strict=strict),
        "noise": noise_inputs([tensor[:1].numpy() for tensor in model.example]),
    }
    warn_of_single_values(model.input_names, inputs["noise"])
    names = tuple(output_names)
    references: list[Reference] = []
    for kind, arrays in inputs.items():
        if arrays:
            outputs = reference_outputs(model, arrays, names)
            if verify and not references:
                _require_same_again(model, arrays, outputs)
            error = _float32_error(model, arrays, outputs) if verify else {}
            named = dict(zip(model.input_names, arrays, strict=True))
            references.append(Reference(kind=kind, inputs=named, outputs=outputs, float32_error=error))
    return tuple(references)


def reference_outputs(model: LoadedModel, inputs: Sequence[Array], output_names: Sequence[str]) -> dict[str, Array]:
    """Return PyTorch's outputs by name, (rows, ...), for `inputs`, one array (rows, ...) per input of the model.

    Each row is run by itself. A module written for one batch size gets that many copies of the row.
    Raises ExportError if the module fails, or returns anything but tensors of real values with the batch as first axis.
    """
    rows: list[list[Array]] = []
    batch = len(model.example[0])
    for index in range(len(inputs[0])):
        output = _forward(model, _feeds(model, inputs, index))
        tensors = [output] if isinstance(output, torch.Tensor) else flatten_outputs(output)
        if not tensors or not all(isinstance(tensor, torch.Tensor) for tensor in tensors):
            kinds = ", ".join(type(tensor).__name__ for tensor in tensors) or "nothing"
            raise ExportError(f"forward() of {model.name} returns {kinds}; return tensors only")
        if any(tensor.ndim == 0 or len(tensor) != batch for tensor in tensors):
            raise ExportError(
                f"forward() of {model.name} returns an output without a batch dimension; "
                "every output needs the batch as its first axis"
            )
        _require_comparable(model, output_names, tensors)
        rows.append([tensor[:1].float().numpy() for tensor in tensors])
    return {name: np.concatenate(column) for name, column in zip(output_names, zip(*rows, strict=True), strict=True)}


def _require_comparable(model: LoadedModel, names: Sequence[str], tensors: Sequence[torch.Tensor]) -> None:
    """Raise ExportError if an output has no values, or complex ones."""
    for name, tensor in zip(names, tensors, strict=True):
        if tensor.is_complex():
            raise ExportError(f"output {name} of {model.name} is complex; return torch.view_as_real() of it")
        if not tensor.numel():
            raise ExportError(
                f"output {name} of {model.name} is empty, {tuple(tensor.shape)}; leave it out of what forward() returns"
            )


def _require_same_again(model: LoadedModel, inputs: Sequence[Array], outputs: Mapping[str, Array]) -> None:
    """Run rows again. Raises ExportError, with the submodule to blame, if the outputs differ."""

    def run_row(row: int) -> Mapping[str, Array]:
        return reference_outputs(model, [array[row : row + 1] for array in inputs], tuple(outputs))

    if (row := differing_row(run_row, outputs, rows=len(inputs[0]))) is not None:
        raise ExportError(
            f"{model.name} gives different outputs for the same input, so that no engine can be compared "
            f"with it: {explain_difference(model.module, _feeds(model, inputs, row))}"
        )


def _feeds(model: LoadedModel, inputs: Sequence[Array], row: int) -> list[torch.Tensor]:
    """Return as many copies of a row as the module's batch, for each input."""
    batch = len(model.example[0])
    return [torch.from_numpy(np.repeat(array[row : row + 1], batch, axis=0)) for array in inputs]


def _float32_error(model: LoadedModel, inputs: Sequence[Array], outputs: Mapping[str, Array]) -> Mapping[str, float]:
    """Return the largest difference of each output's first row from float64, over its finite values.

    Empty if the module does not run in float64, or not within `FLOAT64_LIMIT_S`.
    """
    try:
        return _float32_error_of_row(model, inputs, outputs, row=0, limit_s=FLOAT64_LIMIT_S)
    except (Exception, SystemExit) as error:  # user code may raise anything, or exit
        slow = isinstance(error, TimeoutError)
        reason = f"it takes more than {FLOAT64_LIMIT_S:.0f} s" if slow else class_and_first_line(error)
        _LOG.warning(
            "edgevit: %s was not run in float64 (%s): PyTorch's own error is unknown, and fp32 is judged without it",
            model.name,
            reason,
        )
        return {}


def float32_errors(model: LoadedModel, reference: Reference, rows: Iterable[int]) -> dict[int, Mapping[str, float]]:
    """Return PyTorch's float32 error of each output, for single rows.

    Rows are left out on which the module does not run in float64, or not within `FLOAT64_LIMIT_S` for all together.
    """
    inputs = [reference.inputs[name] for name in model.input_names]
    end_s = time.monotonic() + FLOAT64_LIMIT_S
    found: dict[int, Mapping[str, float]] = {}
    for row in rows:
        with contextlib.suppress(Exception, SystemExit):  # user code may raise anything, or exit
            limit_s = end_s - time.monotonic()
            found[row] = _float32_error_of_row(model, inputs, reference.outputs, row=row, limit_s=limit_s)
    return found


def _float32_error_of_row(
    model: LoadedModel, inputs: Sequence[Array], outputs: Mapping[str, Array], *, row: int, limit_s: float
) -> dict[str, float]:
    output = run_in_float64(model.module, _feeds(model, inputs, row), limit_s=limit_s)
    exact = [tensor[0].double().numpy() for tensor in flatten_outputs(output)]
    return {
        name: largest_difference(array[row], each) for (name, array), each in zip(outputs.items(), exact, strict=True)
    }


def flatten_outputs(output: Any) -> list[Any]:
    """Return the tensors in a module's output in the order of the graph's outputs; None is left out."""
    register_dataclasses(output)
    return [leaf for leaf in tree_leaves(output) if leaf is not None]


def register_dataclasses(output: Any) -> bool:
    """Make the dataclasses in a module's output known to torch.export; return whether one was unknown."""
    unknown = {type(leaf) for leaf in tree_leaves(output) if is_dataclass(leaf)}
    for each in unknown:
        torch.export.register_dataclass(each)
    return bool(unknown) and (register_dataclasses(output) or True)  # their fields may be dataclasses


def _forward(model: LoadedModel, inputs: Sequence[torch.Tensor]) -> object:
    """Call the module. Raises ExportError if the user's code fails on other values than those of its example."""
    try:
        with torch.no_grad():  # inference mode would mark tensors that forward() keeps, and autograd refuses these
            return model.module(*inputs)
    except (Exception, SystemExit) as error:  # user code may raise anything, or exit
        raise ExportError(
            f"forward() of {model.name} failed on verification inputs, though the example input worked: "
            f"{class_and_first_line(error)}"
        ) from error
