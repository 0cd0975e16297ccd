"""A PyTorch module to an ONNX graph, through `torch.onnx.export(dynamo=True)`, with the modules' names on the nodes.

torch's own graph optimiser takes two thirds of its exporter's time, nearly all of it on constants that a common
subexpression pass removes first. So the export runs without it, and `passes` finish the work.
"""

from __future__ import annotations

import ast
import logging
import time
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import onnx_ir as ir
import torch
from torch import nn

from edgevit.errors import EdgevitError, ExportError
from edgevit.export.graph import BATCH, OnnxGraph, PassRecord
from edgevit.files import class_and_first_line
from edgevit.models.loading import forward_names

_TALKATIVE = ("torch.onnx", "torch.export", "onnxscript", "torch._export", "torch.fx.experimental.symbolic_shapes")
CAPTURE_OPSET = 21  # the first with a GroupNormalization whose scale and bias are a channel's own


@dataclass(frozen=True, slots=True)
class Captured:
    """The graph, and the seconds that PyTorch's two halves took."""

    graph: OnnxGraph
    capture_s: float
    translate_s: float


def capture(
    module: nn.Module,
    example: Sequence[torch.Tensor],
    *,
    dynamic_batch: bool = False,
    input_names: Sequence[str] | None = None,
    output_names: Sequence[str] | None = None,
) -> Captured:
    """The graph of `module(*example)`, with static shapes, or with the first axis of every input dynamic.

    Raises ExportError with PyTorch's own reason where the module cannot be traced.
    """
    names = list(input_names or forward_names(module, len(example)))
    with _quiet():
        start = time.perf_counter()
        program = _trace(module.eval(), tuple(example), names, dynamic_batch=dynamic_batch)
        traced = time.perf_counter()
        model = _translate(program, names, output_names)
        translated = time.perf_counter()
    _name_outputs(model, output_names)
    _name_batch(model)
    _name_nodes(model)
    graph = OnnxGraph(model)
    record = PassRecord(name="capture", nodes_before=0, nodes_after=graph.node_count, elapsed_s=translated - start)
    return Captured(OnnxGraph(model, (record,)), traced - start, translated - traced)


def _trace(
    module: nn.Module, example: tuple[torch.Tensor, ...], names: Sequence[str], *, dynamic_batch: bool
) -> torch.export.ExportedProgram:
    shapes = tuple({0: torch.export.Dim(BATCH)} for _ in names) if dynamic_batch else None
    try:
        with torch.no_grad():
            return torch.export.export(module, example, dynamic_shapes=shapes)
    except EdgevitError:
        raise
    except (Exception, SystemExit) as error:  # user code, and many kinds of torch's own, end up here
        cause = error.__cause__
        if isinstance(cause, EdgevitError):
            raise cause from error
        remedy = (
            "the batch is baked into the module (a view or a loop with the batch as a number?): use -1 for it, or "
            "export with a static --batch"
            if dynamic_batch and BATCH in str(error)
            else "rewrite the line that PyTorch names, so that it does not depend on the data"
        )
        raise ExportError(f"PyTorch cannot trace {type(module).__name__}: {_summary(error)}; {remedy}") from error


def _translate(
    program: torch.export.ExportedProgram, names: Sequence[str], output_names: Sequence[str] | None
) -> ir.Model:
    try:
        exported = torch.onnx.export(
            program,
            dynamo=True,
            optimize=False,
            opset_version=CAPTURE_OPSET,
            verbose=False,
            input_names=list(names),
            output_names=list(output_names) if output_names else None,
        )
    except Exception as error:
        raise ExportError(f"PyTorch's exporter has no ONNX form for a part of the module: {_summary(error)}") from error
    if exported is None:
        raise ExportError("PyTorch's exporter gave no model")
    return exported.model


def _name_outputs(model: ir.Model, names: Sequence[str] | None) -> None:
    outputs = model.graph.outputs
    if names is not None and len(names) != len(outputs):
        raise ExportError(f"the module has {len(outputs)} outputs, and {len(names)} names were given")
    for value in model.graph.inputs:
        if value.is_graph_output():
            raise ExportError(f"the module returns its input {value.name} unchanged, which engines do not take")
    if len({id(output) for output in outputs}) < len(outputs):
        raise ExportError("the module returns one tensor as two outputs, which have one name then; return it once")
    for index, output in enumerate(outputs):
        if names is None:
            output.name = "output" if len(outputs) == 1 else f"output_{index}"


def _name_batch(model: ir.Model) -> None:
    """Gives the dynamic axis one name, whatever symbol PyTorch chose for it."""
    symbols = {
        str(dim) for value in model.graph.inputs if value.shape for dim in value.shape if not isinstance(dim, int)
    }
    for value in (*model.graph.inputs, *model.graph.outputs):
        if value.shape is not None:
            value.shape = ir.Shape([BATCH if str(dim) in symbols else dim for dim in value.shape])


def _name_nodes(model: ir.Model) -> None:
    """Names each node `<module path>/<operator>[_n]`, and drops the exporter's traces of the user's files."""
    seen: Counter[str] = Counter()
    for node in model.graph.all_nodes():
        scopes = ast.literal_eval(node.metadata_props.get("pkg.torch.onnx.name_scopes", "[]"))
        module = next((scope for scope in reversed(scopes[:-1]) if scope), "")
        name = f"{module}/{node.op_type}"
        node.name = f"{name}_{seen[name]}" if seen[name] else name
        seen[name] += 1
        node.metadata_props.clear()
        node.doc_string = None
        for value in node.outputs:
            value.metadata_props.clear()
    for value in (*model.graph.inputs, *model.graph.initializers.values()):
        value.metadata_props.clear()
    model.graph.metadata_props.clear()
    model.metadata_props.clear()
    model.graph.name = "edgevit"


@contextmanager
def _quiet() -> Iterator[None]:
    """Keeps torch's notes about packages that it misses off the user's screen; its errors still come through."""
    loggers = [logging.getLogger(name) for name in _TALKATIVE]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _summary(error: BaseException) -> str:
    """The first telling line of torch's long messages."""
    while error.__cause__ is not None:
        error = error.__cause__
    return class_and_first_line(error)
