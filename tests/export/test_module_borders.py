"""Borders of modules in a graph, and parts of a graph."""

from __future__ import annotations

import numpy as np

from edgevit.export.graph import OnnxGraph
from edgevit.export.module_borders import ModuleBorders, common_module
from edgevit.export.subgraph import extract, live_values, with_outputs
from tests.helpers.graphs import HEADER, noise, parse
from tests.helpers.quantization import load

NAMES = ("net.a/Mul", "net.b.c/Relu", "node_1", "net.b/Add", "head/MatMul")


def graph() -> OnnxGraph:
    found = parse(
        f"""{HEADER} g (float[2, 3] x) => (float[2, 3] y) {{
        a = Mul (x, x)  c = Relu (a)  d = Neg (c)  s = Add (d, a)  y = MatMul (s, w) }}""",
        w=noise(3, 3),
    )
    for node, name in zip(found.model.graph, NAMES, strict=True):
        node.name = name
    return found


def test_tensors_between_modules_are_their_borders() -> None:
    borders = ModuleBorders(graph())
    assert borders.paths == {"", "net", "net.a", "net.b", "net.b.c", "head"}
    assert (borders.outputs("net.b"), borders.inputs(["net.b"], ["s"])) == (("s",), ("a",))
    assert (borders.outputs("net"), borders.inputs(["net"], ["s"])) == (("s",), ("x",))
    assert (borders.outputs(""), borders.inputs([""], ["y"])) == (("y",), ("x",))


def test_a_node_without_a_module_belongs_to_that_of_its_neighbors() -> None:
    borders = ModuleBorders(graph())
    assert borders.module_of(borders.nodes[2]) == "net.b"
    assert borders.operators("net.b") == ("node_1", "net.b/Add")


def test_the_quantization_of_an_input_belongs_to_the_layer_that_reads_it() -> None:
    quantized = parse(
        f"""{HEADER} g (float[2, 3] x) => (float[2, 3] y) {{
        a = Relu (x)  q = QuantizeLinear (a, s)  d = DequantizeLinear (q, s)  y = MatMul (d, w) }}""",
        w=noise(3, 3),
        s=np.asarray(0.1, np.float32),
    )
    for node in quantized.model.graph:
        node.name = f"{'fc' if node.op_type == 'MatMul' else 'act'}/{node.op_type}"
    borders = ModuleBorders(quantized)
    assert (borders.outputs("act"), borders.inputs(["fc"], ["y"])) == (("a",), ("a",))


def test_the_common_module_is_the_innermost_of_all_paths() -> None:
    assert common_module(["net.b.c", "net.b", "net.b.d"]) == "net.b"
    assert common_module(["net.1", "net.10"]) == "net"


def test_a_part_computes_what_the_graph_computes() -> None:
    x = noise(2, 3, seed=4)
    values = load(with_outputs(graph(), ["a", "c", "unknown"]))({"x": x})
    assert set(values) == {"y", "a", "c"}
    part = extract(graph(), ["a", "c"], ["s"], shapes={"a": (2, 3)})
    assert ([spec.name for spec in part.inputs], [node.op_type for node in part.model.graph]) == (
        ["a", "c"],
        ["Neg", "Add"],
    )
    found = load(part)({"a": values["a"], "c": values["c"]})["s"]
    assert np.array_equal(found, values["a"] - values["c"])


def test_a_part_can_start_at_an_output_of_the_graph() -> None:
    whole = with_outputs(graph(), ["a"])
    assert live_values(whole, 2) == ("a", "c")
    part = extract(whole, live_values(whole, 2), ["y"])
    assert ([spec.name for spec in part.inputs], [spec.name for spec in part.outputs]) == (["a", "c"], ["y"])
    x = noise(2, 3, seed=4)
    values = load(with_outputs(graph(), ["a", "c"]))({"x": x})
    assert np.array_equal(load(part)({"a": values["a"], "c": values["c"]})["y"], values["y"])


def test_tensors_across_a_cut() -> None:
    assert [live_values(graph(), position) for position in range(6)] == [
        ("x",), ("a",), ("a", "c"), ("a", "d"), ("s",), ("y",),
    ]  # fmt: skip
