"""Hostile and damaged ONNX files are refused with one line, quickly."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgevit.errors import UsageError
from edgevit.export.graph import OnnxGraph
from edgevit.export.lint.rules import lint
from edgevit.export.lint.targets import parse_target

HEADER = '<ir_version: 10, opset_import: ["" : 20, "mine" : 1]>'
BODY = "g (float[4] x) => (float[4] y) { y = mine.f (x) }"
FUNCTION = '<domain: "mine", opset_import: ["" : 20, "mine" : 1]>'


def model_with_weight(dims: Sequence[int] = (4,)) -> onnx.ModelProto:
    weight = numpy_helper.from_array(np.ones(4, np.float32), "w")
    weight.ClearField("dims")
    weight.dims.extend(dims)
    model = onnx.parser.parse_model(f"{HEADER} g (float[4] x) => (float[4] y) {{ y = Mul (x, w) }}")
    model.graph.initializer.append(weight)
    return model


def external(folder: Path, location: str, *, offset: int = 0) -> onnx.ModelProto:
    model = model_with_weight()
    weight = model.graph.initializer[0]
    (folder / "data.bin").write_bytes(bytes(16))
    (folder / "link.bin").symlink_to(folder / "data.bin")
    weight.ClearField("raw_data")
    weight.data_location = TensorProto.EXTERNAL
    for key, value in (("location", location), ("offset", str(offset)), ("length", "16")):
        weight.external_data.add(key=key, value=value)
    return model


def typed_values(data_type: int, field: str, values: Sequence[int]) -> onnx.ModelProto:
    """A weight of 4 elements whose values are in a field of their own, instead of raw bytes."""
    model = model_with_weight()
    weight = model.graph.initializer[0]
    weight.ClearField("raw_data")
    weight.data_type = data_type
    getattr(weight, field).extend(values)
    return model


def self_cycle(_: Path) -> onnx.ModelProto:
    model = onnx.parser.parse_model(f"{HEADER} g (float[4] x) => (float[4] y) {{ y = Add (x, x) }}")
    model.graph.node[0].input[1] = "y"
    return model


def billion_calls(_: Path) -> onnx.ModelProto:
    functions = [f"{FUNCTION} f (x) => (y) {{ {' '.join(f'y{i} = mine.f0 (x)' for i in range(9))} y = mine.f0 (x) }}"]
    for level in range(9):
        calls = " ".join(f"y{i} = mine.f{level + 1} (x)" for i in range(9))
        functions.append(f"{FUNCTION} f{level} (x) => (y) {{ {calls} y = mine.f{level + 1} (x) }}")
    functions.append(f"{FUNCTION} f9 (x) => (y) {{ y = Relu (x) }}")
    return onnx.parser.parse_model("\n".join([f"{HEADER} {BODY}", *functions]))


def parsed(text: str) -> Callable[[Path], onnx.ModelProto]:
    return lambda _: onnx.parser.parse_model(text)


ELEMENTS = [1, 2, 3, 4]
HOSTILE: dict[str, tuple[Callable[[Path], onnx.ModelProto], str]] = {
    "a recursive function": (parsed(f"{HEADER} {BODY} {FUNCTION} f (x) => (y) {{ y = mine.f (x) }}"), "f calls itself"),
    "two recursive functions": (
        parsed(
            f"{HEADER} {BODY} {FUNCTION} f (x) => (y) {{ y = mine.h (x) }} {FUNCTION} h (x) => (y) {{ y = mine.f (x) }}"
        ),
        "calls itself, directly or through others",
    ),
    "functions that expand to 10^10 nodes": (billion_calls, "expand to"),
    "a call with too many inputs": (
        parsed(f"{HEADER} {BODY.replace('f (x)', 'f (x, x)')} {FUNCTION} f (x) => (y) {{ y = Relu (x) }}"),
        "has 2 inputs instead of 1",
    ),
    "a call with too few inputs": (
        parsed(f"{HEADER} {BODY} {FUNCTION} f (x, z) => (y) {{ y = Add (x, z) }}"),
        "lacks its required input B",
    ),
    "a self-cycle": (self_cycle, "Add depends on its own output"),
    "a value produced twice": (
        parsed(f"{HEADER} g (float[4] x) => (float[4] y) {{ y = Relu (x) y = Abs (x) }}"),
        "two nodes produce 'y'",
    ),
    "a weight of 2^62 elements": (lambda _: model_with_weight(dims=[2**31, 2**31]), "which no device can hold"),
    "an input of 2^62 elements": (
        parsed(f"{HEADER} g (float[{2**62}] x) => (float[{2**62}] y) {{ y = Relu (x) }}"),
        "which no device can hold",
    ),
    "a weight shorter than its shape": (lambda _: model_with_weight(dims=[400]), "holds 16 bytes, but its shape"),
    "a weight with fewer values than its shape": (
        lambda _: typed_values(TensorProto.INT8, "int32_data", ELEMENTS[:3]),
        "holds 3 values, but its shape",
    ),
    "a weight with values of another type": (
        lambda _: typed_values(TensorProto.INT8, "int64_data", ELEMENTS),
        "keeps values in int64_data, but its type needs int32_data",
    ),
    "a weight of an unknown type": (
        lambda _: typed_values(TensorProto.UNDEFINED, "int32_data", ELEMENTS),
        "unknown element type 0",
    ),
    "an output that nothing computes": (
        parsed(f"{HEADER} g (float[4] x) => (float[4] y) {{ z = Relu (x) }}"),
        "no node produces its output 'y'",
    ),
    "an opset of 63 bits": (
        parsed(f"{HEADER} g (float[4] x) => (float[4] y) {{ y = Relu (x) }}".replace("20", str(2**62))),
        "which does not exist",
    ),
    "external data behind a link": (lambda folder: external(folder, "link.bin"), "is a link"),
    "external data in another folder": (lambda folder: external(folder, "../escape.bin"), "is missing|outside"),
    "external data past the end": (lambda folder: external(folder, "data.bin", offset=8), "ends after the end"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_a_hostile_file_is_refused_in_one_line(case: str, tmp_path: Path) -> None:
    make, words = HOSTILE[case]
    (tmp_path.parent / "escape.bin").write_bytes(bytes(16))
    path = tmp_path / "model.onnx"
    path.write_bytes(make(tmp_path).SerializeToString())
    start = time.monotonic()
    with pytest.raises(UsageError, match=words) as caught:
        lint(OnnxGraph.read(path), parse_target("trt"))
    assert "\n" not in str(caught.value)
    assert time.monotonic() - start < 10


def test_external_data_beside_the_model_is_read(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(external(tmp_path, "data.bin").SerializeToString())
    assert dict(OnnxGraph.read(path).operators) == {"Mul": 1}


def test_nodes_in_any_order_are_accepted(tmp_path: Path) -> None:
    nodes = [helper.make_node("Relu", ["a"], ["y"]), helper.make_node("Abs", ["x"], ["a"])]
    value = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [4]) for name in "xy"]
    model = helper.make_model(helper.make_graph(nodes, "g", value[:1], value[1:]))
    path = tmp_path / "model.onnx"
    path.write_bytes(model.SerializeToString())
    assert OnnxGraph.read(path).node_count == 2


def test_a_file_beyond_the_limit_of_protobuf_is_refused_unread(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    with path.open("wb") as file:
        file.truncate(1 << 33)  # sparse
    with pytest.raises(UsageError, match="larger than 2 GB"):
        OnnxGraph.read(path)


def test_remarks_of_onnx_ir_stay_off_the_terminal(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """It warns of keys of external data that it does not know."""
    model = external(tmp_path, "data.bin")
    model.graph.initializer[0].external_data.add(key="unknown", value="key")
    path = tmp_path / "model.onnx"
    path.write_bytes(model.SerializeToString())
    OnnxGraph.read(path)
    assert capfd.readouterr().err == ""


def test_an_attribute_of_another_type_is_a_defect(tmp_path: Path) -> None:
    """A rule of lint would read it as an integer."""
    text = f"{HEADER} g (float[2, 2] x, float[2, 2] w) => (float[2, 2] y) {{ y = Gemm <transB = [1.0]> (x, w) }}"
    onnx.save(onnx.parser.parse_model(text), tmp_path / "net.onnx")
    with pytest.raises(UsageError, match="attribute 'transB' of Gemm .* has another type than in ONNX"):
        OnnxGraph.read(tmp_path / "net.onnx")


@pytest.mark.timeout(20)
def test_a_file_that_only_waits_is_refused(tmp_path: Path) -> None:
    """/proc/kmsg is a regular file whose reader waits for a message of the kernel, or gets one."""
    (tmp_path / "net.onnx").symlink_to("/proc/kmsg")
    with pytest.raises(UsageError, match="cannot read|is not an ONNX model"):
        OnnxGraph.read(tmp_path / "net.onnx")
