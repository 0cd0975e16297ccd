"""Export a module with torch.export and torch.onnx; name its nodes after the modules they came from.

torch.onnx's own optimizer is turned off: it takes two thirds of the exporter's time, most of it on constants that
common subexpression elimination removes first. The passes in `passes` optimize the graph instead.
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
from edgevit.export.attention_rank import reshape_attention_to_4d
from edgevit.export.capture_errors import (
    check_module,
    check_outputs,
    is_unknown_output,
    trace_error,
    translate_error,
)
from edgevit.export.decomposition import skip_needless_decomposition
from edgevit.export.garbage import rare_collection
from edgevit.export.graph import BATCH, CAPTURE_OPSET, OnnxGraph, PassRecord
from edgevit.export.translations import TRANSLATIONS
from edgevit.models.loading import forward_names, in_eval_mode
from edgevit.models.output_names import names_of_outputs
from edgevit.models.reference import register_dataclasses

_VERBOSE_LOGGERS = (
    "torch.onnx",
    "torch.export",
    "onnxscript",
    "torch._export",
    "torch.fx.experimental.symbolic_shapes",
)


@dataclass(frozen=True, slots=True)
class Captured:
    """A captured graph, and the duration of tracing (torch.export) and translation (torch.onnx)."""

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
    """Capture the graph of `module(*example)`, with static shapes or with a dynamic first axis of every input.

    Raises UsageError if the module has no forward() or uninitialized parameters, ExportError if its forward() fails or
    PyTorch cannot trace or translate it, and MissingError if it needs a package that is not installed.
    """
    check_module(module)
    names = list(input_names or forward_names(module, len(example)))
    with _quiet(), _without_partial_graph(), rare_collection():
        start = time.perf_counter()
        program = _trace(in_eval_mode(module), tuple(example), names, dynamic_batch=dynamic_batch)
        _require_no_autocast(program)
        traced = time.perf_counter()
        model = _translate(program, names, output_names)
        translated = time.perf_counter()
    _rename_weights(model)
    _name_outputs(model, output_names or names_of_outputs(program))
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
            try:
                return torch.export.export(module, example, dynamic_shapes=shapes)
            except (RuntimeError, TypeError) as error:
                if not (is_unknown_output(error) and register_dataclasses(module(*example))):
                    raise
            return torch.export.export(module, example, dynamic_shapes=shapes)
    except EdgevitError:
        raise
    except (Exception, SystemExit) as error:  # user code, and many exception classes of torch
        raise trace_error(error, module, example, dynamic_batch=dynamic_batch) from error


def _require_no_autocast(program: torch.export.ExportedProgram) -> None:
    """Raise ExportError if forward enables autocast: its bf16 and fp16 types have no kernels in most runtimes."""
    for graph_module in program.graph_module.modules():
        for node in graph_module.graph.nodes if isinstance(graph_module, torch.fx.GraphModule) else ():
            if node.op == "call_function" and "autocast" in str(node.target) and True in node.args[2:3]:
                raise ExportError(
                    f"forward() enables torch.autocast ({node.args[1]} on {node.args[0]}), which runtimes do not take; "
                    "remove it and choose the precision with --precision"
                )


def _translate(
    program: torch.export.ExportedProgram, names: Sequence[str], output_names: Sequence[str] | None
) -> ir.Model:
    check_outputs(program)
    try:
        with torch.no_grad():  # as in the trace: views of a parameter that requires gradients decompose differently
            reshape_attention_to_4d(program)
            skip_needless_decomposition(program)
            exported = torch.onnx.export(
                program,
                dynamo=True,
                optimize=False,
                custom_translation_table=dict(TRANSLATIONS),
                opset_version=CAPTURE_OPSET,
                verbose=False,
                input_names=list(names),
                output_names=list(output_names) if output_names else None,
            )
    except Exception as error:
        raise translate_error(error) from error
    if exported is None:
        raise ExportError("torch.onnx.export returned no model")
    return exported.model


def _rename_weights(model: ir.Model) -> None:
    """Rename the parameters and buffers that have the name of an input."""
    weights = model.graph.initializers
    inputs = {str(value.name) for value in model.graph.inputs}
    for name in sorted(inputs & weights.keys()):
        value = weights.pop(name)
        free = f"{name}_weight"
        while free in inputs or free in weights:
            free += "_"
        value.name = free
        weights.add(value)


def _name_outputs(model: ir.Model, names: Sequence[str]) -> None:
    outputs = model.graph.outputs
    if len(names) != len(outputs):
        raise ExportError(f"the module has {len(outputs)} outputs, but {len(names)} output names were given")
    for value in model.graph.inputs:
        if value.is_graph_output():
            raise ExportError(f"the module returns its input {value.name} unchanged, which engines do not support")
    if len({id(output) for output in outputs}) < len(outputs):
        raise ExportError("the module returns one tensor as two outputs; return it once")
    taken = {value.name for value in (*model.graph.inputs, *model.graph.initializers.values())}
    for output, name in zip(outputs, names, strict=True):
        output.name = f"{name}_output" if name in taken else name
    own = {output.name: output for output in outputs}
    for value in (value for node in model.graph.all_nodes() for value in node.outputs):
        # A buffer may be called "index", as an operator is.
        if own.get(value.name, value) is not value or value.name in taken:
            value.name = f"{value.name}_inner"


def _name_batch(model: ir.Model) -> None:
    """Rename the dynamic axis, whatever symbol PyTorch chose for it; a pass may make any value an output."""
    symbols = {
        str(dim) for value in model.graph.inputs if value.shape for dim in value.shape if not isinstance(dim, int)
    }
    inner = (value for node in model.graph.all_nodes() for value in node.outputs)
    for value in (*model.graph.inputs, *inner, *model.graph.outputs):
        if value.shape is not None:
            value.shape = ir.Shape([BATCH if str(dim) in symbols else dim for dim in value.shape])


def _name_nodes(model: ir.Model) -> None:
    """Name each node `<module path>/<operator>[_n]` and remove metadata, which contains paths of the user's files."""
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
    """Suppress warnings and log messages of torch; its errors are still raised."""
    loggers = [logging.getLogger(name) for name in _VERBOSE_LOGGERS]
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


@contextmanager
def _without_partial_graph() -> Iterator[None]:
    """Keep torch.export from printing the graph up to a failure on stderr; what the user's code prints stays."""
    from torch.export import _trace

    names = vars(_trace)
    names["print"] = lambda *_, **__: None  # found before the builtin, in that module alone
    try:
        yield
    finally:
        names.pop("print", None)
