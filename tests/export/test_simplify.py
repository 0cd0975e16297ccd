"""onnxsim: whatever it does, the export continues and the history records why its result was left out."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from edgevit.export.simplify import simplify
from tests.helpers.graphs import assert_same, parse, run

TEXT = """<ir_version: 8, opset_import: ["" : 17]> g (float[2, 4] x) => (float[2, 4] y) {
    one = Constant <value_floats = [1.0]> ()
    two = Add (one, one)
    y = Add (x, two)
}"""
# Subprocesses that fail in ways in which simplifiers have failed.
WRONG = """
import sys, onnx
model = onnx.load(sys.argv[1])
add = model.graph.node[-1]
del model.graph.node[:]
model.graph.node.add(op_type="Identity", input=["x"], output=["y"])
onnx.save(model, sys.argv[2])
"""

RENAMES_AN_OUTPUT = WRONG.replace(
    "onnx.save", "model.graph.output[0].name = model.graph.node[0].output[0] = 'z'; onnx.save"
)
RENAMES_THE_BATCH = WRONG.replace(
    "onnx.save", "model.graph.input[0].type.tensor_type.shape.dim[0].dim_param = 'unk__0'; onnx.save"
)


def test_a_simpler_equivalent_graph_is_kept() -> None:
    """Its outputs may hold infinities, such as those of masked classes."""
    graph = parse(TEXT.replace("y = Add (x, two)", "z = Add (x, two) y = Add (z, mask)"),
                  mask=np.array([0, -np.inf, 0, 0], np.float32))  # fmt: skip
    after = simplify(graph, run)
    assert after.operators["Add"] == 2
    assert after.history[-1].note == ""


def test_large_weights_are_not_passed_to_onnxsim() -> None:
    weight = np.random.default_rng(0).standard_normal((4, 2000)).astype(np.float32)
    graph = parse(
        """<ir_version: 8, opset_import: ["" : 17]> g (float[2, 4] x) => (float[2, 2000] y) {
            one = Constant <value_floats = [1.0]> ()
            two = Add (one, one)
            a = Add (x, two)
            y = MatMul (a, w)
        }""",
        w=weight,
    )
    after = simplify(graph, run)
    assert after.history[-1].note == ""
    assert after.operators["Add"] == 1
    assert [spec.name for spec in after.inputs] == ["x"]
    kept = after.model.graph.initializers["w"].const_value
    assert kept is not None
    assert np.array_equal(kept.numpy(), weight)
    assert_same(graph, after)


@pytest.mark.parametrize(
    ("child", "reason"),
    [
        ("import time; time.sleep(60)", "not finished within 2 s"),
        ("import os; os.abort()", "killed by signal 6"),
        ("raise MemoryError('no memory')", "no memory"),
        ("import sys; open(sys.argv[2], 'wb').write(b'nonsense')", "not an ONNX model"),
        (WRONG, "changes the result"),
        (RENAMES_THE_BATCH, "dynamic dimension unk__0"),
        (RENAMES_AN_OUTPUT, "changes the inputs or outputs"),
        ("import sys, shutil; shutil.copy(sys.argv[1], sys.argv[2])", "nothing to simplify"),
    ],
)
def test_a_failure_is_left_out_with_its_reason(child: str, reason: str) -> None:
    graph = parse(TEXT)
    after = simplify(graph, run, timeout_s=2 if "2 s" in reason else 60, child=child)
    assert after.operators == graph.operators
    assert reason in after.history[-1].note


@pytest.mark.parametrize("child", ["import sys, shutil; shutil.copy(sys.argv[1], sys.argv[2])", "raise SystemExit(1)"])
def test_temporary_files_are_written_to_the_given_folder_and_removed(child: str, tmp_path: Path) -> None:
    notes = tmp_path / "notes"
    (tmp_path / "run").mkdir()
    noting = f"open({str(notes)!r}, 'w').write(__import__('sys').argv[1]); {child}"
    simplify(parse(TEXT), run, folder=tmp_path / "run", child=noting)
    assert Path(notes.read_text()).is_relative_to(tmp_path / "run")
    assert list((tmp_path / "run").iterdir()) == []
