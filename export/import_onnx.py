"""Bring an ONNX file of any origin into the form that the passes expect.

The passes are written for graphs of CAPTURE_OPSET with static shapes but for the batch: axes are inputs, weights are
not, and every shape is known.
"""

from __future__ import annotations

import subprocess
import time
from collections.abc import Mapping, Sequence

import onnx_ir as ir
import onnx_ir.passes.common as common_passes

from edgevit.errors import ExportError, UsageError, unknown_name
from edgevit.export.check import check
from edgevit.export.child_rewrite import rewrite_in_child
from edgevit.export.graph import BATCH, CAPTURE_OPSET, OnnxGraph
from edgevit.files import first_line

_IMAGE_AXES = 4  # (N, C, H, W)
_WEIGHTS_APART_IR_VERSION = 4  # the first that does not require weights among the inputs
_TIMEOUT_S = 120.0
_UPGRADE = """
import sys
import onnx.version_converter
model = onnx.version_converter.convert_version(onnx.load(sys.argv[1]), %d)
onnx.save(model, sys.argv[2])
"""


def import_graph(
    graph: OnnxGraph, *, shapes: Mapping[str, Sequence[int]] | None = None, dynamic_batch: bool = False
) -> OnnxGraph:
    """Return the graph in CAPTURE_OPSET with known shapes.

    `shapes` are the shapes of inputs by name, for dynamic axes other than the first, which becomes the batch: that of
    the shape, or with `dynamic_batch` a dynamic one. Raises UsageError for an unknown input or an axis without a size,
    ExportError if the opset cannot be changed.
    """
    graph = graph.apply("static_shapes", lambda model: _set_shapes(model, shapes or {}, dynamic_batch=dynamic_batch))
    if graph.opset > CAPTURE_OPSET:
        raise ExportError(
            f"the file has opset {graph.opset}, and edgevit reads up to {CAPTURE_OPSET}; export it in that"
        )
    return check(graph if graph.opset == CAPTURE_OPSET else _upgrade(_without_functions(graph)))


def _set_shapes(model: ir.Model, shapes: Mapping[str, Sequence[int]], *, dynamic_batch: bool) -> None:
    weights = model.graph.initializers
    inputs = [value for value in model.graph.inputs if value.name not in weights]  # older files list weights as inputs
    for value in [value for value in model.graph.inputs if value.name in weights]:
        model.graph.inputs.remove(value)
        model.ir_version = max(model.ir_version, _WEIGHTS_APART_IR_VERSION)
    names = [str(value.name) for value in inputs]
    for name in shapes:
        if name not in names:
            raise unknown_name("input", name, names)
    for value in inputs:
        open_batch = dynamic_batch and value.shape is not None and not isinstance(value.shape[0], int)
        dims = _static(value, shapes.get(str(value.name)))
        value.shape = ir.Shape([BATCH, *dims[1:]] if open_batch else dims)
    dynamic = any(value.shape is not None and BATCH in map(str, value.shape) for value in inputs)
    for value in (value for node in model.graph.all_nodes() for value in node.outputs):
        value.shape = _named_batch(value) if dynamic and value.is_graph_output() else None  # inferred from the inputs


def _named_batch(output: ir.Value) -> ir.Shape | None:
    """Return an output's shape with the batch as its first axis, whose name inference loses behind some operators."""
    if output.shape is None or not len(output.shape) or isinstance(output.shape[0], int):
        return output.shape
    return ir.Shape([BATCH, *(dim if isinstance(dim, int) else None for dim in output.shape[1:])])


def _static(value: ir.Value, given: Sequence[int] | None) -> list[int | str]:
    """Return the shape of an input, with the first axis as the batch if it is dynamic and no shape is given."""
    if value.shape is None:
        raise UsageError(f"input {value.name} has no shape; give it: --input-shape {value.name}=1,3,224,224")
    if given is not None:
        own = list(value.shape)
        if len(given) != len(own) or any(
            isinstance(dim, int) and dim != size for dim, size in zip(own, given, strict=True)
        ):
            raise UsageError(f"--input-shape {value.name}={','.join(map(str, given))} does not fit its shape {own}")
        return list(given)
    dims: list[int | str] = [dim if isinstance(dim, int) else BATCH for dim in value.shape]
    if BATCH in dims[1:]:
        is_image = len(dims) == _IMAGE_AXES
        sizes = ",".join(
            str(dim) if isinstance(dim, int) else "224" if is_image and axis in (2, 3) else "1"
            for axis, dim in enumerate(value.shape)
        )
        raise UsageError(
            f"input {value.name} has dynamic axes besides the batch: {value.shape}; give its shape, such as "
            f"--input-shape {value.name}={sizes}"
        )
    return dims


def _without_functions(graph: OnnxGraph) -> OnnxGraph:
    """Return the graph with its local functions inlined: the converter does not take them."""
    if not graph.model.functions:
        return graph
    try:
        return graph.apply("inline_functions", _inline)
    except (ValueError, ir.passes.PassError) as error:
        raise ExportError(
            f"the functions of the file cannot be inlined: {first_line(error)}; export the model in "
            f"opset {CAPTURE_OPSET}"
        ) from error


def _inline(model: ir.Model) -> None:
    for rewrite in (
        common_passes.InlinePass(),
        common_passes.RemoveUnusedFunctionsPass(),  # type: ignore[no-untyped-call]
        common_passes.RemoveUnusedOpsetsPass(),
    ):
        rewrite(model)


def _upgrade(graph: OnnxGraph) -> OnnxGraph:
    start = time.perf_counter()
    try:
        upgraded = rewrite_in_child(graph, _UPGRADE % CAPTURE_OPSET, timeout_s=_TIMEOUT_S)
    except subprocess.TimeoutExpired as error:
        raise ExportError(f"converting opset {graph.opset} to {CAPTURE_OPSET} took over {_TIMEOUT_S:.0f} s") from error
    except ExportError as error:
        raise ExportError(
            f"onnx cannot convert opset {graph.opset} to {CAPTURE_OPSET}: {first_line(error)}; export the model in "
            f"opset {CAPTURE_OPSET}"
        ) from error
    record = f"upgrade_opset(opset={CAPTURE_OPSET})"
    return graph.with_model(record, upgraded.model, elapsed_s=time.perf_counter() - start)
