"""Conversion to older opsets."""

from __future__ import annotations

import functools
import re

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from edgevit.errors import ExportError
from edgevit.export.graph import OnnxGraph
from edgevit.export.passes import specialize
from edgevit.export.passes.cleanup import cleanup
from edgevit.export.passes.downgrade_opset import NEW_VALUES, OLDEST_OPSET, OpsetError, downgrade_opset
from edgevit.types import Array
from tests.helpers.graphs import HEADER, assert_same, noise, parse

NEWEST = 21


def downgrade(graph: OnnxGraph, opset: int) -> OnnxGraph:
    return graph.apply("downgrade_opset", functools.partial(downgrade_opset, opset=opset))


def test_operators_that_the_older_opset_lacks_are_rejected() -> None:
    graph = parse(f"{HEADER} g (float[N, 4] x) => (float[N, 4] y) {{ y = Gelu (x) }}")
    with pytest.raises(ExportError, match="needs opset 20"):
        downgrade_opset(graph.model, 19)
    with pytest.raises(ExportError, match="opset 16 is not supported: use one from 17 to 21"):
        downgrade_opset(graph.model, 16)


def test_axes_become_an_attribute() -> None:
    before = parse(
        f"""{HEADER} g (float[N, 4, 6] x) => (float[N, 4] y) {{
            axes = Constant <value_ints = [2]> ()
            y = ReduceMean <keepdims = 0, noop_with_empty_axes = 0> (x, axes)
        }}"""
    )
    assert_same(before, specialize(before.apply("cleanup", cleanup), "onnx", opset=17))


@pytest.mark.parametrize(
    ("body", "tensors", "opset"),
    [
        ("float[N, 7] x) => (float[N, 4] y, float[N, 3] z) { y, z = Split <axis = 1, num_outputs = 2> (x)", {}, 17),
        ("float[N, 6] x) => (float[N, 3] y, float[N, 3] z) { y, z = Split <axis = 1, num_outputs = 2> (x)", {}, 17),
        (
            "float[N, 2, 4] x) => (float[N, 4, 7] y) { y = Pad (x, pads, , axes)",
            {"pads": np.asarray([1, 0, 2, 2]), "axes": np.asarray([-1, 1])},
            17,
        ),
        ("float[N, 4, 6] x) => (float[N, 4, 1] y) { y = ReduceMax (x, axes)", {"axes": np.asarray([-1])}, 17),
        ("float[N, 4, 6] x) => (float[1, 1, 1] y) { y = ReduceMax (x)", {}, 17),
        ("float[N, 2, 5, 5] x) => (float[N, 2, 4, 4] y) { y = AveragePool <kernel_shape = [2, 2]> (x)", {}, 18),
        ("float[N, 2, 5, 5] x, float[N, 3, 4, 2] g) => (float[N, 2, 3, 4] y) { y = GridSample (x, g)", {}, 19),
        (
            ("float[N, 2, 5, 5] x, float[N, 3, 4, 2] g) => (float[N, 2, 3, 4] y) { "
            'y = GridSample <mode = "cubic", align_corners = 1> (x, g)'),
            {},
            17,
        ),
        ("float[N, 5, 4, 1] x) => (float[N, 5, 4, 2] y) { y = DFT (x, , axis)", {"axis": np.asarray(1)}, 19),
        ("float[N, 5, 4, 1] x) => (float[N, 5, 4, 2] y) { y = DFT (x)", {}, 17),
    ],
)  # fmt: skip
def test_older_forms_compute_the_same(body: str, tensors: dict[str, Array], opset: int) -> None:
    before = parse(f"{HEADER} g ({body} }}", **tensors)
    after = downgrade(before, opset)
    assert after.opset == opset
    assert_same(before, after)


@pytest.mark.parametrize(
    ("node", "tensors", "opset", "words"),
    [
        ('y = Pad <mode = "wrap"> (x, pads)', {"pads": np.zeros(8, np.int64)}, 18, "mode=wrap needs opset 19"),
        ("y = AveragePool <kernel_shape = [2, 2], dilations = [2, 2]> (x)", {}, 18, r"dilations=.* needs opset 19"),
        ("y = Mish (x)", {}, 17, "Mish needs opset 18"),
        ('y = Resize <antialias = 1> (x, , s)', {"s": np.ones(4, np.float32)}, 17, "antialias=1 needs opset 18"),
        ('y = ScatterND <reduction = "max"> (x, i, u)', {"i": np.asarray([[0]]), "u": noise(1, 2, 5, 5)}, 17, "=max"),
        ("y = GroupNormalization <num_groups = 2> (x, s, s)", {"s": noise(2)}, 20, "needs opset 21"),
        ("y = ReduceMean <noop_with_empty_axes = 1> (x)", {}, 17, "needs opset 18"),
    ],
)  # fmt: skip
def test_a_form_that_the_older_opset_lacks_is_named(
    node: str, tensors: dict[str, Array], opset: int, words: str
) -> None:
    graph = parse(f"{HEADER} g (float[N, 2, 5, 5] x) => (float[A, B, C, D] y) {{ {node} }}", **tensors)
    with pytest.raises(OpsetError, match=words) as caught:
        downgrade(graph, opset)
    assert opset < caught.value.required <= NEWEST
    assert f"--opset {caught.value.required}" in str(caught.value)


def test_a_split_into_parts_of_unknown_size_needs_opset_18() -> None:
    """The last part may be smaller."""
    graph = parse(
        f"{HEADER} g (float[N, M] x) => (float[N, A] y, float[N, A] z) "
        "{ y, z = Split <axis = 1, num_outputs = 2> (x) }"
    )
    with pytest.raises(OpsetError, match="Split into parts of unknown size needs opset 18"):
        downgrade(graph, 17)


def test_grid_sample_of_volumes_needs_opset_20() -> None:
    graph = parse(
        f"{HEADER} g (float[N, 2, 5, 5, 5] x, float[N, 3, 4, 4, 3] g) => (float[N, 2, 3, 4, 4] y) "
        "{ y = GridSample (x, g) }"
    )
    with pytest.raises(OpsetError, match="GridSample of 5 dimensions needs opset 20"):
        downgrade(graph, 19)


# Values in the documentation of string attributes that are not new: spelled without backquotes in older opsets,
# renamed (GridSample, which is converted), or words of the prose.
_NOT_NEW = {
    ("GridSample", "mode"): {"linear", "nearest", "cubic"},
    ("Resize", "mode"): {"nearest"},
    ("Resize", "nearest_mode"): {"round_prefer_floor", "round_prefer_ceil", "floor", "ceil"},
    ("Resize", "coordinate_transformation_mode"): {
        "length_original", "length_resized", "output_width", "output_width_int", "x_original", "x_resized",
    },
}  # fmt: skip


@pytest.mark.parametrize("opset", range(OLDEST_OPSET, NEWEST))
def test_every_new_value_in_the_schemas_of_onnx_is_known(opset: int) -> None:
    """Walk all operators and compare the documented values of string attributes with those of an older opset."""
    found: dict[tuple[str, str], set[str]] = {}
    for name in sorted({schema.name for schema in onnx.defs.get_all_schemas() if not schema.domain}):
        if not all(onnx.defs.has(name, version) for version in (opset, NEWEST)):
            continue
        old, new = onnx.defs.get_schema(name, opset), onnx.defs.get_schema(name, NEWEST)
        for key in old.attributes.keys() & new.attributes.keys():
            if new.attributes[key].type == onnx.defs.OpSchema.AttrType.STRING:
                added = _values(new.attributes[key].description) - _values(old.attributes[key].description)
                if added := added - _NOT_NEW.get((name, key), set()):
                    found[name, key] = added
    known = {key: {value for value, since in values.items() if since > opset} for key, values in NEW_VALUES.items()}
    assert found == {key: values for key, values in known.items() if values}


def _values(description: str) -> set[str]:
    return set(re.findall(r"[`'\"]([a-z_]+)[`'\"]", description))


def test_a_default_attribute_that_the_older_schema_lacks_is_removed() -> None:
    graph = parse(f"{HEADER} g (float[N, 4] x) => (float16[N, 4] y) {{ y = Cast <to = 10, saturate = 1> (x) }}")
    (node,) = downgrade(graph, 17).model.graph
    assert set(node.attributes) == {"to"}
    onnx.checker.check_model(ir.to_proto(downgrade(graph, 17).model), full_check=True)
