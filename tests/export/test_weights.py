"""Large weights: files equal protobuf's, copies are avoided, and detached weights come back."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from edgevit.export import onnx_writer
from edgevit.export import weights as weights_module
from edgevit.export.check import check
from edgevit.export.graph import OnnxGraph
from edgevit.export.weights import attach_weights, detach_weights, save_model, serialize_without_weights
from edgevit.pipeline.evaluators import graph_evaluator
from edgevit.types import Array
from tests.helpers.graphs import parse

TEXT = """<ir_version: 10, opset_import: ["" : 20]> g (float[batch, 96] x) => (float[batch, 128] y) {
    h = MatMul (x, large)
    i = Cast <to = 1> (half)
    j = MatMul (h, i)
    k = Mul (j, small)
    s = Shape (names)
    t = Cast <to = 1> (s)
    u = Add (k, t)
    y = Add (u, empty_sum)
}"""


def weights() -> dict[str, Array]:
    random = np.random.default_rng(0)
    return {
        "large": random.standard_normal((96, 128)).astype(np.float32),
        "half": random.standard_normal((128, 128)).astype(np.float16),
        "small": random.standard_normal(128).astype(np.float32),
        "names": np.array(["a"], object),
        "empty_sum": np.zeros((1,), np.float32),
    }


def graph() -> OnnxGraph:
    """A graph whose weights are held by onnx_ir, not by protobuf messages."""
    parsed = parse(TEXT, **weights())
    for name, array in weights().items():
        if array.dtype != object:
            parsed.model.graph.initializers[name].const_value = ir.Tensor(array, name=name, doc_string=f"doc of {name}")
    return parsed


@pytest.mark.parametrize("from_file", [False, True])
def test_a_saved_file_equals_that_of_protobuf(from_file: bool, tmp_path: Path) -> None:
    original = graph()
    original.model.metadata_props["origin"] = "a test"
    expected = original.to_bytes()
    saved = OnnxGraph.from_bytes(expected) if from_file else original
    save_model(saved.model, tmp_path / "m.onnx")
    assert (tmp_path / "m.onnx").read_bytes() == expected
    onnx.checker.check_model(str(tmp_path / "m.onnx"), full_check=True)


def test_the_trained_model_is_saved_as_before(tmp_path: Path) -> None:
    from edgevit.export import passes
    from edgevit.export.capture import capture
    from edgevit.models.loading import from_name

    loaded = from_name("shiftvit_cifar10")
    captured = capture(loaded.module, loaded.example, input_names=loaded.input_names).graph
    specialized = check(passes.specialize(passes.optimize(captured), "ort"))
    specialized.save(tmp_path / "m.onnx")
    assert (tmp_path / "m.onnx").read_bytes() == specialized.to_bytes()


def test_a_model_above_2_gb_has_its_large_weights_in_a_second_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnx_writer, "MAX_BYTES", weights_module.MAX_SKELETON_BYTES + 50_000)
    graph().save(tmp_path / "m.onnx")
    assert (tmp_path / "m.onnx").stat().st_size < 5_000
    assert (tmp_path / "m.onnx.data").stat().st_size >= sum(weights()[name].nbytes for name in ("large", "half"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m.onnx", "m.onnx.data"]
    onnx.checker.check_model(str(tmp_path / "m.onnx"), full_check=True)
    x = {"x": np.ones((2, 96), np.float32)}
    for loaded in (OnnxGraph.load(tmp_path / "m.onnx"), OnnxGraph.read(tmp_path / "m.onnx")):
        assert np.array_equal(graph_evaluator(loaded)(x)["y"], graph_evaluator(graph())(x)["y"])


def test_external_weights_of_any_size_are_stored_in_the_file_that_is_written(tmp_path: Path) -> None:
    """They are read from a folder, and the file is written to another one."""
    onnx.save(ir.to_proto(graph().model), tmp_path / "m.onnx", save_as_external_data=True, size_threshold=0)
    (tmp_path / "out").mkdir()
    OnnxGraph.read(tmp_path / "m.onnx").save(tmp_path / "out" / "m.onnx")
    x = {"x": np.ones((2, 96), np.float32)}
    expected = graph_evaluator(graph())(x)["y"]
    assert np.array_equal(graph_evaluator(OnnxGraph.load(tmp_path / "out" / "m.onnx"))(x)["y"], expected)


def test_serialized_without_weights_the_graph_computes_the_same() -> None:
    original = graph()
    content, arrays = serialize_without_weights(original.model)
    assert set(arrays) == {"large", "half"}
    assert len(content) < 5_000 < len(original.to_bytes())
    x = np.random.default_rng(1).standard_normal((3, 96)).astype(np.float32)
    values = weights()
    expected = x @ values["large"] @ values["half"].astype(np.float32) * values["small"] + 1
    assert np.allclose(graph_evaluator(original)({"x": x})["y"], expected, rtol=1e-4, atol=1e-3)


def test_a_weight_that_is_not_contiguous_runs() -> None:
    """ONNX Runtime refuses to share the memory of such an array; passes leave transposed views behind."""
    transposed = graph()
    view = np.asfortranarray(weights()["large"])  # (96, 128), equal values in column order
    assert not view.flags.c_contiguous
    transposed.model.graph.initializers["large"].const_value = ir.Tensor(view, name="large")
    x = {"x": np.ones((1, 96), np.float32)}
    expected = graph_evaluator(graph(), threads=1)(x)["y"]
    assert np.array_equal(graph_evaluator(transposed, threads=1)(x)["y"], expected)


def test_weights_in_memory_are_shared() -> None:
    original = graph()
    _, arrays = serialize_without_weights(original.model)
    held = original.model.graph.initializers["large"].const_value
    assert held is not None and np.shares_memory(arrays["large"], held.numpy())


def test_detached_weights_come_back() -> None:
    original = graph()
    light, detached = detach_weights(original.model)
    assert set(detached) == {"large", "half"}
    assert {value.name for value in light.graph.inputs} == {"x", "large", "half"}
    assert [value.name for value in original.model.graph.inputs] == ["x"]  # a copy was changed
    attach_weights(light, detached)
    assert [value.name for value in light.graph.inputs] == ["x"]
    assert set(light.graph.initializers) == set(original.model.graph.initializers)
    x = np.ones((2, 96), np.float32)
    assert np.array_equal(graph_evaluator(OnnxGraph(light))({"x": x})["y"], graph_evaluator(original)({"x": x})["y"])
