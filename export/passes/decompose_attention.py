"""Write attention to few keys out as elementwise operators and one sum, which TensorRT computes in one or two kernels.

Mobile-Former's pixels attend to 3 to 6 tokens. The attention has the pixels last: keys k (..., M, d), queries q
(..., d, P), values v (..., d, M), and a softmax over the M keys. With a row s_j of the scores for each key,

    s_j = sum over d of k_j q,    e_j = exp(s_j - max s),    result = (sum of e_j v_j) / (sum of e_j).

A fused attention is a kernel of its own, to which the pixels are copied, transposed into heads and padded, and from
which they are copied back. Written out, the scores are computed in the kernel that makes the keys, and the result in
the one that adds the residual and copies the pixels for the next attention.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import onnx_ir as ir

from edgevit.export.ir_helpers import (
    insert,
    insert_split,
    int64_initializer,
    only_consumer,
    remove_unused,
    replace_value,
    required_input,
    static_size,
    swap_last_axes,
    swaps_last_axes,
    with_one_row,
)

_MAX_KEYS = 6  # the exponentials of all keys are computed again for each channel


@dataclass(frozen=True, slots=True)
class _Attention:
    keys: ir.Value  # (..., M, d)
    queries: ir.Value  # (..., d, P)
    scores: ir.Value  # (..., M, P), which others may read too
    softmax: ir.Node
    values: ir.Value  # (..., d, M)
    result: ir.Value  # (..., d, P)
    count: int  # M


def decompose_attention(model: ir.Model, *, max_keys: int = _MAX_KEYS) -> None:
    """Replace each attention to up to `max_keys` keys whose softmax is over the second-to-last axis."""
    for node in list(model.graph):
        if (attention := _attention_around(node, max_keys)) is not None:
            replace_value(attention.scores, _insert_scores(attention, model.graph))
            replace_value(attention.result, _insert_mixture(attention, model.graph))
    remove_unused(model)


def _attention_around(softmax: ir.Node, max_keys: int) -> _Attention | None:
    """Return the attention of a softmax; None for any other node."""
    if softmax.op_type != "Softmax" or softmax.domain or softmax.inputs[0] is None:
        return None
    scores, weights = softmax.inputs[0], softmax.outputs[0]
    first, second = scores.producer(), only_consumer(weights)
    if first is None or second is None or not first.op_type == second.op_type == "MatMul":
        return None
    (keys, queries), (values, factor), result = first.inputs, second.inputs, second.outputs[0]
    if keys is None or queries is None or values is None or factor is not weights:
        return None
    rank = len(weights.shape or ())
    ranks = {len(value.shape or ()) for value in (keys, queries, scores, values, result)}
    if ranks != {rank} or softmax.attributes.get_int("axis", -1) not in (-2, rank - 2):
        return None
    count = static_size(weights, -2)
    if count is None or not 1 < count <= max_keys or static_size(values, -1) != count or scores.is_graph_output():
        return None
    return _Attention(keys, queries, scores, softmax, values, result, count)


def _insert_scores(attention: _Attention, graph: ir.Graph) -> ir.Value:
    """Insert the sum over channels of keys (..., M, d, 1) times queries (..., 1, d, P)."""
    keys, queries, scores = attention.keys, attention.queries, attention.scores
    product = scores.producer()
    assert product is not None and keys.shape is not None and queries.shape is not None and scores.shape is not None
    name = str(product.name)
    add = functools.partial(insert, before=product, graph=graph, like=scores)
    last, third, second = (int64_initializer(graph, f"{name}.axis_{axis}", [-axis]) for axis in (1, 3, 2))
    *leading, width, pixels = queries.shape
    columns = add(ir.node("Unsqueeze", [keys, last], name=f"{name}_Keys"), shape=ir.Shape([*keys.shape, 1]))
    rows = ir.Shape([*leading, 1, width, pixels])
    repeated = add(ir.node("Unsqueeze", [queries, third], name=f"{name}_Queries"), shape=rows)
    terms = ir.Shape([*scores.shape[:-1], width, pixels])
    multiplied = add(ir.node("Mul", [columns, repeated], name=f"{name}_Mul"), shape=terms)
    total = ir.node("ReduceSum", [multiplied, second], {"keepdims": 0}, name=f"{name}_Sum")
    return add(total, shape=scores.shape)


def _insert_mixture(attention: _Attention, graph: ir.Graph) -> ir.Value:
    """Insert the values weighted by the softmax of the scores."""
    scores, result = attention.softmax.inputs[0], attention.result
    product = result.producer()
    assert product is not None and scores is not None and scores.shape is not None
    name, row = str(product.name), with_one_row(scores.shape, len(scores.shape) - 2)
    of_key = functools.partial(insert, before=product, graph=graph, like=result, shape=row)  # (..., 1, P)
    of_all = functools.partial(insert, before=product, graph=graph, like=result, shape=result.shape)  # (..., d, P)
    ones = [1] * attention.count
    rows = insert_split(scores, ones, axis=-2, before=product, graph=graph, name=f"{name}_Scores")
    columns = _insert_columns(attention.values, ones, before=product, graph=graph, name=f"{name}_Values")
    largest = of_key(ir.node("Max", rows, name=f"{name}_Max"))
    shifted = [of_key(ir.node("Sub", [each, largest], name=f"{name}_Sub")) for each in rows]
    powers = [of_key(ir.node("Exp", [each], name=f"{name}_Exp")) for each in shifted]
    terms = [of_all(ir.node("Mul", pair, name=f"{name}_Mul")) for pair in zip(powers, columns, strict=True)]
    weighted, total = terms[0], powers[0]
    for term, power in zip(terms[1:], powers[1:], strict=True):
        weighted = of_all(ir.node("Add", [weighted, term], name=f"{name}_Add"))
        total = of_key(ir.node("Add", [total, power], name=f"{name}_Sum"))
    return of_all(ir.node("Div", [weighted, total], name=f"{name}_Div"))


def _insert_columns(
    values: ir.Value, ones: list[int], *, before: ir.Node, graph: ir.Graph, name: str
) -> list[ir.Value]:
    """Insert a Split into the values (..., d, 1) of each key before a node; return them.

    Values that are transposed are split in front of their Transpose: behind one, the compiler cuts no more than three
    out of the tokens in the kernel of the scores, and needs another one for the queries of the next attention.
    """
    transpose = values.producer()
    split = functools.partial(insert_split, sizes=ones, before=before, graph=graph, name=name)
    if transpose is None or not swaps_last_axes(transpose):
        return list(split(values, axis=-1))
    rows = split(required_input(transpose), axis=-2)
    return [swap_last_axes(row, before=before, graph=graph, name=f"{name}_Transpose") for row in rows]
