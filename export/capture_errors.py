"""Causes of capture failures and their remedies."""

from __future__ import annotations

import re
import sys
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn
from torch.nn.parameter import UninitializedBuffer, UninitializedParameter

from edgevit.errors import EdgevitError, ExportError, MissingError, UsageError
from edgevit.export.graph import BATCH
from edgevit.files import class_and_first_line
from edgevit.models.loading import forward_names

Example = tuple[torch.Tensor, ...]


@dataclass(frozen=True, slots=True)
class Cause:
    """A kind of failure, recognized in "Class: message" of the exception.

    `remedy` may use the pattern's groups, and `input`, `batch` and `size` of the first input.
    """

    pattern: str
    remedy: str


# Failures of forward() itself, with or without the exporter. The first match decides.
FORWARD_CAUSES: tuple[Cause, ...] = (
    Cause(
        r"expected input\[.*\] to have (?P<expected>\d+) channels, but got (?P<actual>\d+)",
        "the module takes {expected} channels and the example has {actual}: give its shape with "
        "--input-shape {input}={batch},{expected},{size}, or in Python "
        "example_input=torch.rand({batch},{expected},{size})",
    ),
    Cause(
        r"should be the same|same dtype|expected scalar type|must have the same type|implemented for '(Half|BFloat16)'",
        "parameters and input have different dtypes: convert the module with module.float() and request a lower "
        "precision with --precision",
    ),
    Cause(
        r"(scalar types: Long, Int|expected.*(Long|Int) but (got|found).*Float)",
        "the module takes integers: export it in Python with an example_input of dtype torch.int64",
    ),
    Cause(
        r"missing \d+ required positional argument|positional arguments? but",
        "give the shape of each input of forward() with --input-shape, once for each, or in Python "
        "example_input=(first, second)",
    ),
    Cause(r"^(MemoryError|OutOfMemoryError)|allocate memory|out of memory", "reduce --img-size or --batch"),
)
# PyTorch before 2.13 hashes an output of an unknown class.
_UNKNOWN_OUTPUT = r"is not a known type|Unsupported output type|output.*pytree|^unhashable type"
# Failures of the tracer on a module whose forward() works.
TRACE_CAUSES: tuple[Cause, ...] = (
    Cause(
        r"\.numpy\(\)|tensor subclasses|can't convert .*Tensor to numpy",
        "use PyTorch operators instead of NumPy in forward()",
    ),
    Cause(
        r"[Dd]ata-dependent|DynamicControlFlow|Dynamic control flow",
        "a branch or a size depends on values of a tensor: use a fixed size, or torch.where instead of the branch",
    ),
    Cause(
        _UNKNOWN_OUTPUT,
        "return tensors, or tuples, lists, dicts or dataclasses of tensors",
    ),
    Cause(r"allocate memory|out of memory|^MemoryError", "reduce --img-size or --batch"),
)
_BATCH_REMEDY = (
    "forward() uses the batch as a constant, as in a view or a loop: use -1 for it, or export with a static --batch"
)
_FORWARD_REMEDY = "correct forward(), or give it another input with --img-size, --input-shape or example_input"
_TRACE_REMEDY = "rewrite this line with operations that torch.export supports"
_STDLIB = Path(traceback.__file__).parent
_LIBRARIES = (Path(torch.__file__).parent, Path(__file__).resolve().parent.parent / "export", _STDLIB)


def check_module(module: nn.Module) -> None:
    """Raise UsageError if the module has no forward() or parameters without values."""
    name = type(module).__name__
    if type(module).forward is nn.Module.forward and "forward" not in vars(module):
        raise UsageError(f"{name} has no forward(): export a module that calls its parts, such as nn.Sequential")
    for key, tensor in (*module.named_parameters(), *module.named_buffers()):
        if isinstance(tensor, (UninitializedParameter, UninitializedBuffer)):
            raise UsageError(f"{key} of {name} is not initialized: run the lazy module once before the export")
        if tensor.is_meta:
            raise UsageError(f"{key} of {name} is on the meta device and has no values: load its weights first")


def trace_error(error: BaseException, module: nn.Module, example: Example, *, dynamic_batch: bool) -> EdgevitError:
    """Return the exception to raise for a failure of torch.export on `module(*example)`.

    The module is run once without the exporter: if that fails too, the error is the module's own.
    """
    own_error = forward_error(module, example, dynamic_batch=dynamic_batch)
    if own_error is not None:
        return own_error
    cause = root_cause(error)
    remedy = _remedy(cause, TRACE_CAUSES)
    if remedy is None and dynamic_batch and BATCH in str(error):
        remedy = _BATCH_REMEDY
    return ExportError(f"PyTorch cannot trace {type(module).__name__}: {_reason(cause)}; {remedy or _TRACE_REMEDY}")


def forward_error(module: nn.Module, example: Example, *, dynamic_batch: bool = False) -> EdgevitError | None:
    """Run `module(*example)` and return the exception to raise if it fails, or None."""
    error = _run(module, example)
    if error is None:
        return None
    name, cause = type(module).__name__, root_cause(error)
    if isinstance(cause, EdgevitError):
        return cause
    if isinstance(cause, ModuleNotFoundError):
        return MissingError(f"{name}.forward() needs the package {cause.name}: install it{_at(cause)}")
    shapes = ", ".join(str(tuple(tensor.shape)) for tensor in example)
    remedy = _remedy(cause, FORWARD_CAUSES, _first_input(module, example, dynamic_batch=dynamic_batch))
    return ExportError(
        f"{name}.forward() fails on its example input of shape {shapes}: {_reason(cause)}; {remedy or _FORWARD_REMEDY}"
    )


def is_unknown_output(error: BaseException) -> bool:
    """Return whether torch.export fails because it does not know the class of an output."""
    return re.search(_UNKNOWN_OUTPUT, str(root_cause(error))) is not None


def translate_error(error: BaseException) -> ExportError:
    """Return the exception to raise if torch.onnx has no ONNX form for an operator."""
    cause = root_cause(error)
    if match := re.search(r"No ONNX function found for <OpOverload\(op='([\w.]+)'", str(cause)):
        return ExportError(f"the operator {match[1]} has no ONNX form; rewrite the module without it")
    return ExportError(f"PyTorch cannot convert the module to ONNX: {class_and_first_line(cause)}")


def check_outputs(program: torch.export.ExportedProgram) -> None:
    """Raise ExportError if the module returns a value that is neither a tensor nor None."""
    values = [getattr(spec.arg, "value", None) for spec in program.graph_signature.output_specs]
    for index, value in enumerate(values):
        if value is not None:
            kind = type(value).__name__
            raise ExportError(f"output {index} of the module is {value!r} ({kind}), not a tensor; return tensors only")


def root_cause(error: BaseException) -> BaseException:
    """Follow the explicit causes of an exception to the first one."""
    while error.__cause__ is not None:
        error = error.__cause__
    return error


def _run(module: nn.Module, example: Example) -> BaseException | None:
    try:
        with torch.no_grad():
            module(*example)
    except (Exception, SystemExit) as error:  # user code
        return error
    return None


def _first_input(module: nn.Module, example: Example, *, dynamic_batch: bool) -> dict[str, str]:
    """Return the name, the batch and the sizes after the channels of the first input, as options take them."""
    shape = example[0].shape
    return {
        "input": forward_names(module, 1)[0],
        "batch": "1" if dynamic_batch else str(shape[0]),
        "size": ",".join(str(size) for size in shape[2:]),
    }


def _remedy(error: BaseException, causes: Sequence[Cause], words: Mapping[str, str] | None = None) -> str | None:
    text = f"{type(error).__name__}: {error}"
    for cause in causes:
        if match := re.search(cause.pattern, text):
            return cause.remedy.format(**match.groupdict(), **(words or {}))
    return None


def _reason(error: BaseException) -> str:
    return class_and_first_line(error) + _at(error)


def _at(error: BaseException) -> str:
    """Return the innermost line of the user's code in the traceback, " (model.py:12)"; "" if there is none."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if _is_user_code(frame.filename)]
    return f" ({Path(own[-1].filename).name}:{own[-1].lineno})" if own else ""


def _is_user_code(filename: str) -> bool:
    path = Path(filename)
    if not path.is_file() or any(path.resolve().is_relative_to(folder) for folder in _LIBRARIES):
        return False
    return "site-packages" not in path.parts and Path(sys.prefix) not in path.parents
