"""A foreign ONNX file is brought into the opset and the shapes that the passes expect, and computes the same."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from edgevit.errors import ExportError, UsageError
from edgevit.export.graph import CAPTURE_OPSET, OnnxGraph
from edgevit.export.import_onnx import import_graph
from edgevit.export.weights import save_model
from tests.helpers.graphs import HEADER, noise
from tests.helpers.quantization import load

# In opset 11 the axes of Squeeze and ReduceMean are attributes.
OLD = """<ir_version: 6, opset_import: ["": 11]>
g (float[N, 3, 8, 8] x, float[64, 128] w) => (float[N, 128] y) <float[64, 128] w> {
    mean = ReduceMean <axes = [1], keepdims = 1> (x)
    flat = Squeeze <axes = [1]> (mean)
    rows = Flatten <axis = 1> (flat)
    y = MatMul (rows, w)
}"""


def old_graph(text: str = OLD, **weights: np.ndarray) -> OnnxGraph:
    model = onnx.parser.parse_model(text)
    del model.graph.initializer[:]
    for name, array in weights.items():
        model.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    return OnnxGraph(ir.from_proto(model))


def test_an_old_file_is_upgraded_and_computes_the_same() -> None:
    """Its weights are also listed as inputs, as files before IR version 4 have to."""
    original = old_graph(w=noise(64, 128))
    graph = import_graph(original)
    assert (graph.opset, [spec.name for spec in graph.inputs]) == (CAPTURE_OPSET, ["x"])
    assert graph.inputs[0].shape == ("batch", 3, 8, 8)
    assert graph.history[-2].name == f"upgrade_opset(opset={CAPTURE_OPSET})"
    feeds = {"x": noise(2, 3, 8, 8, seed=3)}
    assert np.allclose(load(graph)(feeds)["y"], load(original)(feeds)["y"], atol=1e-6)


def test_a_file_of_the_first_ir_version_is_upgraded() -> None:
    """The converter takes weights only from the inputs in IR version 3."""
    original = old_graph(OLD.replace("ir_version: 6", "ir_version: 3"), w=noise(64, 128))
    graph = import_graph(original)
    assert (graph.opset, graph.model.ir_version, original.model.ir_version) == (CAPTURE_OPSET, 4, 3)
    feeds = {"x": noise(2, 3, 8, 8, seed=3)}
    assert np.allclose(load(graph)(feeds)["y"], load(original)(feeds)["y"], atol=1e-6)


def test_a_file_whose_nodes_are_not_in_order_is_sorted(tmp_path: Path) -> None:
    model = onnx.parser.parse_model(f"{HEADER} g (float[N, 4] x) => (float[N, 4] y) {{ a = Relu (x) y = Neg (a) }}")
    model.graph.node.reverse()
    onnx.save(model, tmp_path / "net.onnx")
    graph = import_graph(OnnxGraph.read(tmp_path / "net.onnx"))
    assert [node.op_type for node in graph.model.graph] == ["Relu", "Neg"]


FUNCTION = """<ir_version: 8, opset_import: ["": 17, "local": 1]> g (float[N, 4] x) => (float[N, 4] y) {
    a = Relu (x)
    b = local.Twice (a)
    y = local.Twice (b)
}
<domain: "local", opset_import: ["": %d]> Twice (z) => (t) { t = Add (z, z) }"""


def test_the_functions_of_an_old_file_are_inlined() -> None:
    original = old_graph(FUNCTION % 17)
    graph = import_graph(original)
    assert (graph.opset, dict(graph.operators)) == (CAPTURE_OPSET, {"Relu": 1, "Add": 2})
    assert not graph.model.functions and original.model.functions
    feeds = {"x": noise(2, 4)}
    assert np.array_equal(load(graph)(feeds)["y"], load(original)(feeds)["y"])


def test_a_function_that_cannot_be_inlined_is_an_export_error() -> None:
    with pytest.raises(ExportError, match="the functions of the file cannot be inlined: .*Opset mismatch.*in opset 21"):
        import_graph(old_graph(FUNCTION % 16))


def test_a_given_shape_replaces_dynamic_axes() -> None:
    graph = import_graph(old_graph(w=noise(64, 128)), shapes={"x": (4, 3, 8, 8)})
    assert graph.inputs[0].shape == (4, 3, 8, 8)
    assert graph.outputs[0].shape == (4, 128)


def test_the_batch_keeps_its_name_where_inference_loses_it() -> None:
    """A dynamic axis times a scale of 1 is another unknown axis to ONNX's inference."""
    text = """<ir_version: 8, opset_import: ["": 13]> g (float[N, 3, 8, 8] x) => (float[M, 3, 16, 16] y) {
        y = Resize <mode = "linear"> (x, , scales)
    }"""
    graph = import_graph(old_graph(text, scales=np.array([1, 1, 2, 2], np.float32)))
    assert graph.outputs[0].shape == ("batch", 3, 16, 16)


@pytest.mark.parametrize(
    ("text", "shapes", "words"),
    [
        (OLD, {"z": (1,)}, "unknown input 'z'; choose from x"),
        (OLD, {"x": (1, 3, 9, 8)}, "--input-shape x=1,3,9,8 does not fit its shape"),
        (OLD, {"x": (1, 3, 8)}, "--input-shape x=1,3,8 does not fit its shape"),
        (
            OLD.replace("[N, 3, 8, 8] x", "[N, 3, H, W] x"),
            {},
            "dynamic axes besides the batch: .*--input-shape x=1,3,224,224",
        ),
    ],
)
def test_shapes_that_do_not_fit_are_usage_errors(text: str, shapes: dict[str, tuple[int, ...]], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        import_graph(old_graph(text, w=noise(64, 128)), shapes=shapes)


def test_an_opset_that_is_too_new_is_an_export_error() -> None:
    with pytest.raises(ExportError, match="the file has opset 23, and edgevit reads up to 21"):
        import_graph(old_graph(OLD.replace('"": 11', '"": 23'), w=noise(64, 128)))


def test_a_conversion_that_fails_names_the_opsets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgevit.export.import_onnx._UPGRADE", "raise SystemExit('no adapter for Upsample %d')")
    with pytest.raises(
        ExportError, match="onnx cannot convert opset 11 to 21: the subprocess failed .no adapter for Upsample 21."
    ):
        import_graph(old_graph(w=noise(64, 128)))


def test_large_weights_do_not_pass_through_the_child(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []

    def measured(model: ir.Model, path: Path) -> None:
        save_model(model, path)
        sizes.append(path.stat().st_size)

    monkeypatch.setattr("edgevit.export.child_rewrite.save_model", measured)
    weight = import_graph(old_graph(w=noise(64, 128))).model.graph.initializers["w"].const_value
    assert weight is not None
    assert np.array_equal(weight.numpy(), noise(64, 128))
    assert sizes[0] < 2000
