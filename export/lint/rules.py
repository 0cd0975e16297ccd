"""What will hurt in a graph before the long build: one rule a function, each finding with its node, reason and remedy.

What fuses on TensorRT was read from the kernel lists of TensorRT-RTX 1.7: its compiler stands behind both, yet a
finding about fusion is advice and never an error.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from edgevit.export.graph import OnnxGraph
from edgevit.export.lint.context import (
    Scene,
    computed_input,
    consumers,
    has_dtype,
    held_array,
    is_input,
    module_path,
    node_name,
    prepare,
    producer,
    static_size,
)
from edgevit.export.lint.targets import (
    TITLES,
    Level,
    LintTarget,
    Version,
    dotted,
    lack,
    newest_opset,
    parse_target,
)
from edgevit.types import Array

__all__ = ["RULES", "Finding", "LintTarget", "Rule", "has_errors", "lint", "parse_target"]

LEVELS: tuple[Level, ...] = ("error", "warning", "note")


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One place in the graph that will hurt. `node` and `module` are empty where the whole graph is meant."""

    rule: str
    level: Level
    node: str
    module: str  # the PyTorch module's path, where the node's name or metadata tell it
    why: str
    remedy: str

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Trouble:
    """What a rule finds, at a node, at the input of a name, or, where `at` is empty, in the graph as a whole."""

    level: Level
    at: ir.Node | str
    why: str
    remedy: str


@dataclass(frozen=True, slots=True)
class Rule:
    """A rule's name, the targets that it is for, and the function that looks."""

    name: str
    targets: frozenset[str]
    look: Callable[[Scene], Iterator[Trouble]]


def lint(graph: OnnxGraph, target: LintTarget) -> tuple[Finding, ...]:
    """All findings of all rules for `target`, errors first, in the order of the graph."""
    scene = prepare(graph, target)
    found = [_finding(rule, trouble) for rule in RULES if target.fmt in rule.targets for trouble in rule.look(scene)]
    return tuple(sorted(found, key=lambda finding: LEVELS.index(finding.level)))


def has_errors(findings: Iterable[Finding]) -> bool:
    """Whether there is an error among the findings: then the command ends with status 1."""
    return any(finding.level == "error" for finding in findings)


def _finding(rule: Rule, trouble: Trouble) -> Finding:
    at = trouble.at
    return Finding(
        rule=rule.name,
        level=trouble.level,
        node=at if isinstance(at, str) else node_name(at),
        module="" if isinstance(at, str) else module_path(at),
        why=trouble.why,
        remedy=trouble.remedy,
    )


# The rules


def operators(scene: Scene) -> Iterator[Trouble]:
    """Operators that the target's parser lacks, or has from a later version on."""
    for node in scene.nodes:
        if (lacking := lack(node, scene.target)) is not None:
            yield Trouble(lacking.level, node, lacking.why, lacking.remedy)


def operator_forms(scene: Scene) -> Iterator[Trouble]:
    """Forms of operators that TensorRT's parser reads only from some version on, or never."""
    for node in scene.nodes:
        for form in _FORMS:
            known = form.since is not None and form.since <= scene.target.version
            if not known and node.op_type == form.op_type and not node.domain and form.occurs(node, scene):
                since = "no TensorRT reads it so" if form.since is None else f"it comes with {dotted(form.since)}"
                yield Trouble(form.level, node, f"{form.what}: {since}", form.remedy)


def opset(scene: Scene) -> Iterator[Trouble]:
    """An opset newer than the target was made for."""
    newest = newest_opset(scene.target)
    if newest is None or scene.opset <= newest:
        return
    found = f"the graph has opset {scene.opset}"
    remedy = f"export with --opset {newest}"
    if scene.target.fmt == "ort":
        yield Trouble("error", "", f"{found}, and ONNX Runtime 1.31 refuses what is newer than {newest}", remedy)
    else:
        why = f"{found}, and the parser of {scene.target} was made for {newest}: it reads operators as it knows them"
        yield Trouble("warning", "", why, remedy)


def scatter(scene: Scene) -> Iterator[Trouble]:
    """ScatterND and ScatterElements in the data path: each copies its whole tensor, and no simplifier removes it."""
    for node in scene.find("ScatterND", "ScatterElements"):
        level: Level = "error" if scene.target.fmt == "trt" and node.op_type == "ScatterND" else "warning"
        yield Trouble(
            level,
            node,
            f"{node.op_type} in the data path, usually an assignment to a slice (`x[:, a:b] = y`): ShiftViT-T needs "
            "469 kernels with it and 210 without",
            "write the assignment as torch.cat of the slices, with torch.nn.functional.pad for what moves in",
        )


def rank(scene: Scene) -> Iterator[Trouble]:
    """Tensors of more than five dimensions, as a window partition makes them."""
    for node in scene.nodes:
        largest = max((len(value.shape) for value in node.outputs if value.shape is not None), default=0)
        if node in scene.data and largest > 5:
            beyond = largest > 8 and scene.target.fmt == "trt"
            why = "TensorRT's tensors have at most 8" if beyond else "kernels for more than 5 are generic copies"
            yield Trouble(
                "error" if beyond else "warning",
                node,
                f"a tensor of {largest} dimensions: {why}",
                "fold neighbouring dimensions before the transpose: (B, H, h, W, w, C) is (B H, h, W, w C)",
            )


def wide_types(scene: Scene) -> Iterator[Trouble]:
    """float64 and int64 where they enter the data path."""
    for dtype in (ir.DataType.DOUBLE, ir.DataType.INT64):
        for value in scene.inputs:
            if value.dtype == dtype:
                yield _wide_type(scene, dtype, str(value.name))
        for node in scene.nodes:
            enters = any(value.dtype == dtype and (value.uses() or value.is_graph_output()) for value in node.outputs)
            if node in scene.data and enters and not any(has_dtype(value, dtype) for value in node.inputs):
                yield _wide_type(scene, dtype, node)


def layer_norm_nchw(scene: Scene) -> Iterator[Trouble]:
    """A LayerNorm over the channels of an NCHW tensor, written out by hand: x - mean(x, 1), squared, and its mean."""
    for centre in scene.find("Sub"):
        mean = producer(centre.inputs[1])
        if mean is None or not _mean_of_channels(mean) or mean.inputs[0] is not centre.inputs[0]:
            continue
        squares = [user for user in consumers(centre.outputs[0]) if _squares(user, centre.outputs[0])]
        others = {*consumers(centre.outputs[0]), *consumers(mean.outputs[0])} - {centre, *squares}
        others |= {user for user in consumers(centre.inputs[0]) if user is not centre and _centres_channels(user)}
        if not any(user.op_type in ("Div", "Mul", "Sub") for user in others):
            continue  # a variance, by which nothing is normalised here
        if any(_mean_of_channels(user) for square in squares for user in consumers(square.outputs[0])):
            yield Trouble(
                "warning",
                mean,
                "a LayerNorm over the channels of an NCHW tensor, written out by hand: 7 kernels where 4 do, and in "
                "fp16 its squares overflow",
                "x.permute(0, 2, 3, 1), torch.nn.LayerNorm, and back: every runtime has one kernel for that",
            )


def attention(scene: Scene) -> Iterator[Trouble]:
    """Attention that TensorRT will not fuse: in fp32, or with heads of 8 channels or fewer."""
    for product in (*_attention_products(scene), *scene.find("Attention")):
        query, size = product.inputs[0], _channels_of_a_head(product)
        if size is not None and size <= 8:
            yield Trouble(
                "warning",
                product,
                f"attention with {size} channels a head is not fused, in no precision: 10 kernels where 7 do",
                "fewer heads of at least 16 channels; it needs another training",
            )
        if query is not None and query.dtype == ir.DataType.FLOAT:
            yield Trouble(
                "note",
                product,
                "attention in fp32 is not fused: 10 kernels where fp16 has 7",
                "export with --precision fp16",
            )


def shape_arithmetic(scene: Scene) -> Iterator[Trouble]:
    """Shapes that are computed while the engine runs, and shapes that depend on the data or are given with it."""
    for node in scene.nodes:
        if node.op_type in ("Shape", "Size") and node in scene.shapes:
            yield _shape_left_over(node)
        position = _SHAPE_INPUTS.get(node.op_type)
        if position is None or node.domain or node not in scene.data:
            continue
        for source in node.inputs[position : position + 1]:
            if producer(source) in scene.data or is_input(source):
                yield Trouble(
                    "warning",
                    node,
                    f"the shape that {node.op_type} makes comes with the data: it breaks the engine into parts, and "
                    "no CUDA graph can be captured",
                    "compute with a fixed shape and a mask",
                )
    for node in scene.find("NonZero"):
        yield Trouble(
            "warning",
            node,
            "NonZero's shape depends on the data",
            "compute with a fixed shape and a mask (torch.where)",
        )


def activations(scene: Scene) -> Iterator[Trouble]:
    """Activations that do not join the convolution before them: Mish, as one operator or written out, and PReLU."""
    for node in scene.find("Mish", "PRelu", "Mul"):
        name = {"Mish": "Mish", "PRelu": "PReLU"}.get(node.op_type) or ("Mish" if _is_mish(node) else None)
        if name:
            yield Trouble(
                "warning",
                node,
                f"{name} does not join the layer before it: one more kernel and one more pass over memory each time",
                "train with ReLU, GELU, SiLU or HardSwish, which do",
            )


def baked_batch(scene: Scene) -> Iterator[Trouble]:
    """A batch that stands as a number where the graph's own is dynamic, or in every input."""
    first = [static_size(value, 0) for value in scene.inputs]
    if first and all(size is not None for size in first):
        yield Trouble(
            "note",
            "",
            f"the batch is fixed at {', '.join(str(size) for size in sorted({size for size in first if size}))}: "
            "an engine of this graph takes no other",
            "where others are needed, export with --dynamic-batch MIN:OPT:MAX",
        )
        return
    for node in scene.find("Reshape", "Expand", "Concat"):
        if why := _BAKED[node.op_type](node):
            yield Trouble(
                "error",
                node,
                f"the batch is baked in: {why}",
                "in the module, write -1 or x.shape[0] for the batch, and export at a batch of 2 or more",
            )


def half_range(scene: Scene) -> Iterator[Trouble]:
    """Weights that fp16 cannot hold, or that make it overflow."""
    seen: set[ir.Value] = set()
    for node in scene.nodes:
        for position, value in enumerate(node.inputs):
            if value is None or value in seen or node not in scene.data:
                continue
            array = held_array(value)
            if array is not None and array.dtype in (np.float16, np.float32, np.float64) and array.size:
                seen.add(value)
                yield from _half_range_of(node, position, array)


def asymmetric_quantisation(scene: Scene) -> Iterator[Trouble]:
    """Quantisation with a zero point, which TensorRT's parser refuses."""
    for node in (node for node in scene.nodes if node.op_type in ("QuantizeLinear", "DequantizeLinear")):
        zero = held_array(node.inputs[2]) if len(node.inputs) > 2 else None
        if zero is not None and np.any(zero.astype(np.float32) != 0):
            yield Trouble(
                "error",
                node,
                f"{node.op_type} with a zero point other than 0: TensorRT quantises symmetrically",
                "quantise symmetrically, in int8: zero point 0, scale = largest magnitude / 127",
            )


_ALL, _TRT = frozenset(TITLES), frozenset({"trt"})
_COMPILERS = frozenset({"trt", "openvino"})

RULES: tuple[Rule, ...] = (
    Rule("operators", _ALL, operators),
    Rule("operator-forms", _TRT, operator_forms),
    Rule("opset", frozenset({"trt", "ort"}), opset),
    Rule("scatter", _ALL, scatter),
    Rule("rank", _COMPILERS, rank),
    Rule("wide-types", _ALL, wide_types),
    Rule("layer-norm-nchw", _ALL, layer_norm_nchw),
    Rule("attention", _TRT, attention),
    Rule("shape-arithmetic", _COMPILERS, shape_arithmetic),
    Rule("activations", _TRT, activations),
    Rule("baked-batch", _ALL, baked_batch),
    Rule("half-range", _TRT, half_range),
    Rule("asymmetric-quantisation", _TRT, asymmetric_quantisation),
)


# Forms of operators


@dataclass(frozen=True, slots=True)
class _Form:
    """A form of an operator that is read from `since` on; None: never."""

    op_type: str
    since: Version | None
    occurs: Callable[[ir.Node, Scene], bool]
    what: str
    remedy: str
    level: Level = "error"


_FORMS: tuple[_Form, ...] = (
    _Form(
        "GroupNormalization",
        None,
        lambda node, _: node.attributes.get_int("num_groups", 1) == 1 and static_size(node.inputs[0], 1) != 1,
        "GroupNormalization with one group, of which the parser silently makes one group a channel "
        "(NVIDIA/TensorRT issue 4756)",
        "reshape to (N, 1, C H W), InstanceNormalization, reshape back, Mul and Add: the same numbers",
    ),
    _Form(
        "GroupNormalization",
        (10, 9),
        lambda _, scene: scene.opset >= 21,
        "GroupNormalization of opset 21, with a scale for each channel",
        "export with --opset 20: GroupNormalization there has a scale for each group",
    ),
    _Form(
        "Slice",
        (10, 3),
        lambda node, _: computed_input(node, 3),
        "Slice along axes that are no constant",
        "slice along fixed axes",
    ),
    _Form(
        "Pad",
        (10, 4),
        lambda node, _: computed_input(node, 3),
        "Pad along axes that are no constant",
        "pad with an amount for every axis",
    ),
    _Form(
        "Pad",
        (10, 4),
        lambda node, _: len(node.inputs) > 3 and node.inputs[3] is not None and not computed_input(node, 3),
        "Pad with its input `axes`",
        "pad with an amount for every axis, and leave `axes` out",
        level="warning",
    ),
    _Form(
        "Resize",
        None,
        lambda node, _: bool(node.attributes.get_int("antialias", 0)),
        "Resize with antialiasing",
        "resize without antialias=True, or ahead of the export where the input is constant (a position embedding)",
    ),
    _Form(
        "ScatterND",
        None,
        lambda node, _: node.attributes.get_string("reduction", "none") != "none",
        "ScatterND with a reduction",
        "write the sum or the maximum as an operator of its own",
    ),
    _Form(
        "MaxPool",
        None,
        lambda node, _: len(node.outputs) > 1 and bool(node.outputs[1].uses() or node.outputs[1].is_graph_output()),
        "MaxPool with its second output, the indices",
        "pool without return_indices=True",
    ),
)


# What the rules look at


def _wide_type(scene: Scene, dtype: ir.DataType, at: ir.Node | str) -> Trouble:
    if dtype == ir.DataType.DOUBLE:
        means = {
            "trt": "TensorRT computes it in float32 and clamps what does not fit",
            "openvino": "OpenVINO's CPU plugin computes it in float32",
            "ort": "twice the memory and half the speed of float32",
        }[scene.target.fmt]
        return Trouble("warning", at, f"float64 in the data path: {means}", "cast to float32 in the module: x.float()")
    if scene.target.fmt == "trt" and scene.target.version < (9, 0):
        why = f"int64 in the data path: {scene.target} clamps it to int32"
        return Trouble("warning", at, why, "use int32 where values fit it: x.int()")
    return Trouble("note", at, "int64 in the data path: few kernels take it, and copies surround them", "use int32")


def _shape_left_over(node: ir.Node) -> Trouble:
    source = node.inputs[0]
    if source is not None and source.shape is not None and source.shape.is_static():
        return Trouble(
            "note",
            node,
            f"{node.op_type} of a tensor whose shape is known: the arithmetic behind it could be folded",
            "fold it before the build: onnxsim FILE.onnx FOLDED.onnx",
        )
    return Trouble(
        "warning",
        node,
        f"{node.op_type} of a tensor of dynamic shape: what is computed from it cannot be folded, runs on the host, "
        "and stands between layers that would fuse",
        "let the batch alone be dynamic, and write -1 for it in view and reshape",
    )


def _attention_products(scene: Scene) -> Iterator[ir.Node]:
    """The products of queries and keys: a product before Softmax before a product, all on the data path."""
    for softmax in scene.find("Softmax"):
        if not any(node.op_type in _PRODUCTS for node in _downstream(softmax.outputs[0])):
            continue
        for node in _upstream(softmax.inputs[0]):
            computed = (producer(value) in scene.data or is_input(value) for value in node.inputs)
            if node.op_type in _PRODUCTS and len(node.inputs) == 2 and all(computed):
                yield node
                break


def _channels_of_a_head(product: ir.Node) -> int | None:
    """What queries and keys are multiplied over; None where that is not known."""
    query = product.inputs[0]
    if product.op_type == "Einsum":
        axis = _multiplied_axis(product.attributes.get_string("equation", ""))
        return None if axis is None else static_size(query, axis)
    heads_apart = product.op_type == "MatMul" or (
        query is not None and query.shape is not None and len(query.shape) == 4
    )
    return static_size(query, -1) if heads_apart else None


def _multiplied_axis(equation: str) -> int | None:
    """The axis of an Einsum's first input that its second one has and its output has not, such as -1 in
    "bihd,bjhd->bhij"; None where it is not one alone."""
    terms, _, out = equation.replace(" ", "").replace("...", ".").partition("->")
    left, _, right = terms.partition(",")
    axes = [index - len(left) for index, label in enumerate(left) if label in right and label not in out]
    return axes[0] if len(axes) == 1 and "." not in left[axes[0] :] else None


_PRODUCTS = frozenset({"MatMul", "Einsum"})
# What stands between the products of attention: scales, masks, casts.
_BETWEEN = frozenset({"Add", "Cast", "Clip", "Div", "Dropout", "Identity", "Mul", "Reshape", "Sub", "Where"})
_REACH = 12  # nodes to look at


def _upstream(value: ir.Value | None) -> Iterator[ir.Node]:
    """The nodes that a value comes from, nearest first, seen through scales, masks and casts."""
    waiting = [value]
    for _ in range(_REACH):
        node = producer(waiting.pop(0)) if waiting else None
        if node is not None:
            yield node
            waiting += node.inputs if node.op_type in _BETWEEN else ()


def _downstream(value: ir.Value) -> Iterator[ir.Node]:
    """The nodes that a value goes to, nearest first, seen through scales, masks and casts."""
    waiting = consumers(value)
    for _ in range(_REACH):
        if waiting:
            node = waiting.pop(0)
            yield node
            waiting += [user for out in node.outputs for user in consumers(out)] if node.op_type in _BETWEEN else ()


def _mean_of_channels(node: ir.Node) -> bool:
    """Whether a node reduces the second of at least three dimensions, and that alone."""
    source = node.inputs[0] if node.inputs else None
    rank = len(source.shape) if source is not None and source.shape is not None else 0
    if node.op_type not in ("ReduceMean", "ReduceSum") or rank < 3:
        return False
    array = held_array(node.inputs[1]) if len(node.inputs) > 1 else None
    axes = array.tolist() if array is not None else list(node.attributes.get_ints("axes", ()))
    return [axis % rank for axis in axes] == [1]


def _centres_channels(node: ir.Node) -> bool:
    """Whether a node takes a mean over the channels away; torch.var_mean has a mean for itself."""
    return node.op_type == "Sub" and any(_mean_of_channels(source) for source in _upstream(node.inputs[1]))


def _squares(node: ir.Node, value: ir.Value) -> bool:
    if node.op_type == "Pow":
        exponent = held_array(node.inputs[1])
        return node.inputs[0] is value and exponent is not None and bool(np.all(exponent == 2))
    return node.op_type == "Mul" and node.inputs[0] is node.inputs[1] is value


def _is_mish(node: ir.Node) -> bool:
    """x tanh(softplus(x)); PyTorch's softplus has a factor, and is x above a threshold."""
    for value in node.inputs:
        tanh = producer(value)
        if tanh is not None and tanh.op_type == "Tanh":
            softplus = next((source for source in _upstream(tanh.inputs[0]) if source.op_type == "Softplus"), None)
            return softplus is not None and any(
                source in node.inputs for source in (softplus.inputs[0], *_factors(softplus.inputs[0]))
            )
    return False


def _factors(value: ir.Value | None) -> tuple[ir.Value | None, ...]:
    node = producer(value)
    return tuple(node.inputs) if node is not None and node.op_type == "Mul" else ()


_SHAPE_INPUTS = {"Reshape": 1, "Expand": 1, "Tile": 1, "ConstantOfShape": 0, "Range": 1}


def _baked_reshape(node: ir.Node) -> str | None:
    shape, source = held_array(node.inputs[1]), node.inputs[0]
    if shape is None or source is None or source.shape is None or source.shape.is_static() or not shape.size:
        return None
    sizes = shape.tolist()
    if all(size > 0 for size in sizes):
        return f"Reshape to {sizes}, in which no dimension is free"
    if sizes[0] == 1 and len(sizes) == len(source.shape) and not isinstance(source.shape[0], int):
        return f"Reshape to {sizes} puts a batch of 1 in place of the dynamic one"
    return None


def _baked_expand(node: ir.Node) -> str | None:
    shape, source = held_array(node.inputs[1]), node.inputs[0]
    if shape is None or source is None or source.shape is None or len(source.shape) != shape.size or not shape.size:
        return None
    if isinstance(source.shape[0], int) or int(shape[0]) <= 1:
        return None
    return f"Expand of a dynamic batch to {shape.tolist()}"


def _baked_concat(node: ir.Node) -> str | None:
    first = [value.shape[0] for value in node.inputs if value is not None and value.shape is not None and value.shape]
    fixed = sorted({size for size in first if isinstance(size, int)})
    if node.attributes.get_int("axis", 0) == 0 or not fixed or len(fixed) == len(set(map(str, first))):
        return None
    return f"Concat of a dynamic batch with a fixed one of {fixed[0]}"


_BAKED: Mapping[str, Callable[[ir.Node], str | None]] = {
    "Reshape": _baked_reshape,
    "Expand": _baked_expand,
    "Concat": _baked_concat,
}

_HALF_MAX = float(np.finfo(np.float16).max)  # 65504
_HALF_LEAST = 2.0**-25  # what is no larger rounds to 0
_LARGE_ACTIVATION = 8.0  # a normalised activation seldom leaves ±8
_TAKES_INFINITY = frozenset({"Add", "Clip", "Max", "Min", "Where"})  # masks and bounds
_WEIGHTED = {"Conv": 1, "ConvTranspose": 1, "Gemm": 1, "MatMul": 1}


def _half_range_of(node: ir.Node, position: int, array: Array) -> Iterator[Trouble]:
    values = array.astype(np.float64)
    if not np.isfinite(values).all():
        if np.isnan(values).any() or node.op_type not in _TAKES_INFINITY:
            why = "a weight holds infinity or NaN, and so will every output"
            yield Trouble("error", node, why, "look at the checkpoint: training diverged, or a cast to fp16 overflowed")
        return
    largest = float(np.abs(values).max())
    if largest > _HALF_MAX and node.op_type != "Clip":
        yield Trouble(
            "warning",
            node,
            f"a weight of {largest:.3g}, and fp16 ends at 65504: it becomes infinity there",
            "mask with -1e4 in place of -1e9; scale a layer down and the next one up",
        )
    elif position == _WEIGHTED.get(node.op_type) and (reach := _row_sum(node, values)) * _LARGE_ACTIVATION > _HALF_MAX:
        yield Trouble(
            "warning",
            node,
            f"the weights of one output add up to {reach:.3g} in magnitude: inputs of {_HALF_MAX / reach:.2g} overflow "
            "fp16",
            "scale this layer down and the next one up, or leave it in fp32",
        )
    elif node.op_type == "Add" and array.size == 1 and 0 < largest <= _HALF_LEAST:
        yield Trouble(
            "warning",
            node,
            f"{largest:.3g} is added, and fp16 rounds it to 0: what divides by the sum divides by 0",
            "use an epsilon of 1e-5 or more, or torch.nn.LayerNorm, whose statistics stay in fp32",
        )


def _row_sum(node: ir.Node, weight: Array) -> float:
    """The largest sum of magnitudes over the inputs of one output channel."""
    transposed = node.op_type == "Conv" or bool(node.attributes.get_int("transB", 0))
    magnitudes = np.abs(weight)
    if weight.ndim < 2:
        return float(magnitudes.sum())
    if transposed:  # (out, in, …)
        return float(magnitudes.reshape(len(weight), -1).sum(1).max())
    if node.op_type == "ConvTranspose":  # (in, out, …)
        return float(magnitudes.sum((0, *range(2, weight.ndim))).max())
    return float(magnitudes.sum(-2).max())  # (…, in, out)
