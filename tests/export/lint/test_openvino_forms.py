"""The rules for OpenVINO say exactly what the installed OpenVINO does with each form of an operator.

Each graph has one operator. OpenVINO's result is wrong if it differs from that of ONNX's reference evaluator and from
that of ONNX Runtime: each of the two has faults of its own.
"""

from __future__ import annotations

import contextlib
import io
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx.reference
import onnx_ir as ir
import onnxruntime
import pytest

from edgevit.export import passes
from edgevit.export.graph import OnnxGraph
from edgevit.export.lint.findings import Finding
from edgevit.export.lint.openvino_forms import OPENVINO_FORMS
from edgevit.export.lint.rules import lint
from edgevit.export.lint.targets import LintTarget
from edgevit.runtimes.openvino_convert import preserve_root_logger
from edgevit.runtimes.registry import get_runtime
from edgevit.types import Array
from tests.helpers.graphs import parse

TOLERANCE_STD = 1e-3
_QUIET = onnxruntime.SessionOptions()
_QUIET.log_severity_level = 4  # no messages of what it refuses

Arrays = Mapping[str, Any]


@dataclass(frozen=True)
class Form:
    """A graph `(inputs) => (outputs) { nodes }`, its constants, and what OpenVINO does: "refused", "wrong" or ""."""

    body: str
    effect: str = ""
    weights: Arrays = field(default_factory=dict)
    opset: int = 21

    @property
    def graph(self) -> OnnxGraph:
        return parse(f'<ir_version: 8, opset_import: ["" : {self.opset}]> g {self.body}', **self.weights)


def image(node: str, effect: str = "", *, size: int = 6, **weights: Any) -> Form:
    """A node that maps an image of 2 x `size` x `size` to another."""
    return Form(f"(float[1, 2, {size}, {size}] x) => (float[1, 2, H, W] y) {{ y = {node} }}", effect, weights)


def pool(operator: str, attributes: str, effect: str = "", *, size: int = 6) -> Form:
    return image(f"{operator} <{attributes}> (x)", effect, size=size)


def resize(attributes: str, effect: str = "", *, scale: float = 2) -> Form:
    return image(f"Resize <{attributes}> (x, , s)", effect, size=8, s=np.array([1, 1, scale, scale], np.float32))


def recurrent(cell: str, gates: int, layout: int, effect: str = "") -> Form:
    body = (
        f"(float[3, 3, 4] x) => (float[A, B, C, D] y) {{ y = {cell} <hidden_size = 5, layout = {layout}> (x, w, r) }}"
    )
    random = np.random.default_rng(0)
    weights = {"w": random.standard_normal((1, gates * 5, 4)), "r": random.standard_normal((1, gates * 5, 5))}
    return Form(body, effect, {name: array.astype(np.float32) for name, array in weights.items()})


PADS = np.array([0, 0, 1, 2, 0, 0, 2, 1])
CEIL = "kernel_shape = [3, 3], strides = [2, 2], ceil_mode = 1"
CUBIC = 'mode = "cubic"'
LINEAR = 'mode = "linear"'
SIGNAL = "(float[1, 8, 8, 1] x) => (float[1, N, M, 2] y) {{ y = DFT <inverse = {}> (x, , a) }}"
SPECTRUM = "(float[1, 8, 8, 1] x) => (float[1, 8, 8, 2] y) {{ y = DFT <axis = {}> (x) }}"
SAMPLES = """(float[1, 2, 6, 6] x, float[1, 5, 5, 2] g) => (float[1, 2, 5, 5] y) {{
    y = GridSample <align_corners = {}> (x, g)
}}"""

FORMS = {
    "Pad": image("Pad (x, p)", p=PADS),
    "Pad reflect": image('Pad <mode = "reflect"> (x, p)', p=PADS),
    "Pad edge": image('Pad <mode = "edge"> (x, p)', p=PADS),
    "Pad wrap": image('Pad <mode = "wrap"> (x, p)', "refused", p=PADS),
    "Pad negative": image("Pad (x, p)", p=-PADS),
    "Resize nearest": resize('nearest_mode = "floor"'),
    "Resize linear": resize(LINEAR),
    "Resize pytorch": resize(f'{LINEAR}, coordinate_transformation_mode = "pytorch_half_pixel"', scale=0.5),
    "Resize corners": resize(f'{LINEAR}, coordinate_transformation_mode = "align_corners"'),
    "Resize asymmetric": resize(f'{LINEAR}, coordinate_transformation_mode = "asymmetric"'),
    "Resize symmetric": resize(f'{LINEAR}, coordinate_transformation_mode = "half_pixel_symmetric"', "refused"),
    "Resize crop": Form(
        "(float[1, 2, 6, 6] x) => (float[1, 2, 6, 6] y) {"
        f' y = Resize <{LINEAR}, coordinate_transformation_mode = "tf_crop_and_resize"> (x, r, , z) }}',
        "refused",
        {"r": np.array([0, 0, 0.2, 0.2, 1, 1, 0.8, 0.8], np.float32), "z": np.array([1, 2, 6, 6])},
    ),
    "Resize not larger": Form(
        "(float[1, 2, 6, 8] x) => (float[1, 2, H, W] y) {"
        f' y = Resize <{LINEAR}, keep_aspect_ratio_policy = "not_larger", axes = [2, 3]> (x, , , z) }}',
        "wrong",
        {"z": np.array([9, 9])},
    ),
    "Resize antialias smaller": resize(f"{LINEAR}, antialias = 1", "wrong", scale=0.5),
    "Resize antialias larger": resize(f"{LINEAR}, antialias = 1"),
    "Resize antialias cubic": resize(f"{CUBIC}, antialias = 1", "wrong", scale=0.5),
    "Resize cubic": resize(f"{CUBIC}, cubic_coeff_a = -0.5"),
    "Resize cubic smaller": resize(CUBIC, scale=0.5),
    "Resize exclude": resize(f"{CUBIC}, exclude_outside = 1", "wrong"),
    "AveragePool": pool("AveragePool", "kernel_shape = [3, 3], pads = [1, 1, 1, 1], count_include_pad = 1"),
    "AveragePool ceil": pool("AveragePool", f"{CEIL}, pads = [1, 1, 1, 1]"),
    "AveragePool ceil, counted": pool("AveragePool", f"{CEIL}, pads = [1, 1, 1, 1], count_include_pad = 1", "wrong"),
    "AveragePool ceil without effect": pool(
        "AveragePool", f"{CEIL}, pads = [1, 1, 1, 1], count_include_pad = 1", size=7
    ),
    "AveragePool ceil after": pool(
        "AveragePool", f"{CEIL}, pads = [0, 0, 1, 1], count_include_pad = 1", "wrong", size=7
    ),
    "AveragePool ceil, no padding": pool("AveragePool", f"{CEIL}, count_include_pad = 1"),
    "AveragePool skipped": pool("AveragePool", "kernel_shape = [1, 1], strides = [2, 2], ceil_mode = 1"),
    "MaxPool ceil": pool("MaxPool", f"{CEIL}, pads = [1, 1, 1, 1]"),
    "MaxPool skipped": pool("MaxPool", "kernel_shape = [1, 1], strides = [2, 2], ceil_mode = 1", "wrong"),
    "MaxPool dilated": pool("MaxPool", "kernel_shape = [3, 3], dilations = [2, 2], ceil_mode = 1"),
    "LpPool": pool("LpPool", "kernel_shape = [3, 3], strides = [2, 2]"),
    "DFT": Form(SIGNAL.format("0"), "", {"a": np.array(1)}),
    "DFT inverse": Form(SIGNAL.format("1"), "", {"a": np.array(-3)}),
    "DFT axis": Form(SIGNAL.format("0"), "wrong", {"a": np.array(-2)}),
    "DFT 17": Form(SPECTRUM.format(2), opset=17),
    "DFT 17 from the end": Form(SPECTRUM.format(-2), "wrong", opset=17),
    "DFT onesided": Form(SIGNAL.format("0, onesided = 1"), "wrong", {"a": np.array(2)}),
    "DFT onesided inverse": Form(
        "(float[1, 8, 5, 2] x) => (float[1, 8, 8, 1] y) { y = DFT <onesided = 1, inverse = 1> (x, , a) }",
        "wrong",
        {"a": np.array(2)},
    ),
    "GridSample": Form(SAMPLES.format("0")),
    "GridSample nearest": Form(SAMPLES.format('0, mode = "nearest", padding_mode = "border"')),
    "GridSample cubic": Form(SAMPLES.format('1, mode = "cubic", padding_mode = "reflection"')),
    "GridSample volume": Form(
        "(float[1, 2, 4, 4, 4] x, float[1, 3, 3, 3, 3] g) => (float[1, 2, 3, 3, 3] y) { y = GridSample (x, g) }",
        "refused",
    ),
    "GRU": recurrent("GRU", 3, 0),
    "GRU layout": recurrent("GRU", 3, 1, "wrong"),
    "LSTM": recurrent("LSTM", 4, 0),
    "LSTM layout": recurrent("LSTM", 4, 1, "wrong"),
    "RNN": recurrent("RNN", 1, 0),
    "RNN layout": recurrent("RNN", 1, 1, "wrong"),
    "Mod": Form("(float[4] x, float[4] z) => (float[4] y) { y = Mod <fmod = 1> (x, z) }"),
    "Mod remainder": Form("(float[4] x, float[4] z) => (float[4] y) { y = Mod (x, z) }", "refused"),
    "Dropout": Form("(float[4] x) => (float[4] y) { d = Dropout (x)  y = Relu (d) }"),
    "Dropout training": Form("(float[4] x, bool t) => (float[4] y) { y = Dropout (x, , t) }", "refused"),
    "Unsqueeze": Form("(float[4] x) => (float[1, 4] y) { y = Unsqueeze (x, a) }", "", {"a": np.array([0])}),
    "Unsqueeze computed": Form("(float[4] x, int64[1] a) => (float[A, B] y) { y = Unsqueeze (x, a) }", "refused"),
    "Det": Form("(float[2, 3, 3] x) => (float[2] y) { y = Det (x) }", "refused"),
    "DeformConv": Form(
        "(float[1, 1, 3, 3] x, float[1, 8, 2, 2] o) => (float[1, 1, 2, 2] y) { y = DeformConv (x, w, o) }",
        "refused",
        {"w": np.ones((1, 1, 2, 2), np.float32)},
    ),
}


@pytest.mark.parametrize("name", FORMS)
def test_lint_says_what_openvino_does(name: str) -> None:
    form = FORMS[name]
    assert openvino_effect(form.graph) == form.effect
    errors = [finding for finding in lint(form.graph, LintTarget("openvino")) if finding.level == "error"]
    assert [effect_of(finding) for finding in errors] == [form.effect] * bool(form.effect)


LOWERED = (
    "AveragePool ceil, counted", "AveragePool ceil after", "DFT axis", "DFT onesided", "DFT onesided inverse",
    "MaxPool skipped", "Pad wrap",
)  # fmt: skip


@pytest.mark.parametrize("name", LOWERED)
def test_these_forms_are_written_so_that_openvino_computes_them(name: str) -> None:
    graph = FORMS[name].graph
    lowered = passes.specialize(passes.optimize(graph), "openvino")
    assert [finding for finding in lint(lowered, LintTarget("openvino")) if finding.level == "error"] == []
    assert is_close(run_openvino(lowered, feeds_of(graph)), references(graph)[0])


def test_a_remedy_is_one_sentence() -> None:
    assert [form.remedy for form in OPENVINO_FORMS if re.search(r",\s*,|\.\s|[{}]", form.remedy)] == []


def effect_of(finding: Finding) -> str:
    return "wrong" if "computes it wrongly" in finding.why else "refused"


def openvino_effect(graph: OnnxGraph) -> str:
    try:
        found = run_openvino(graph, feeds_of(graph))
    except Exception:  # OpenVINO raises several classes
        return "refused"
    return "" if any(is_close(found, expected) for expected in references(graph)) else "wrong"


def feeds_of(graph: OnnxGraph) -> dict[str, Array]:
    random = np.random.default_rng(0)
    values = [value for value in graph.model.graph.inputs if not value.is_initializer()]
    return {str(value.name): _noise(random, value) for value in values}


def _noise(random: np.random.Generator, value: ir.Value) -> Array:
    assert value.shape is not None and value.dtype is not None
    dtype = value.dtype.numpy()
    array = random.standard_normal([int(str(size)) for size in value.shape])
    return np.asarray(array if dtype.kind == "f" else np.zeros_like(array), dtype)


def run_openvino(graph: OnnxGraph, feeds: Arrays) -> Array:
    """Run a graph in OpenVINO, which raises several classes of exceptions if it refuses the graph."""
    ov = get_runtime("openvino").load()
    with preserve_root_logger():
        model = ov.convert_model(io.BytesIO(graph.to_bytes()))
    compiled = ov.Core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return np.array(next(iter(compiled(list(feeds.values())).to_tuple())))


def references(graph: OnnxGraph) -> list[Array]:
    """Return the results of the reference evaluator and of ONNX Runtime, of those that run the graph."""
    content, feeds = graph.to_bytes(), feeds_of(graph)
    results: list[Array] = []
    with contextlib.suppress(Exception):  # each of the two fails on some forms
        results.append(np.asarray(next(iter(onnx.reference.ReferenceEvaluator(content).run(None, feeds)))))
    with contextlib.suppress(Exception):
        results.append(onnxruntime.InferenceSession(content, _QUIET).run(None, feeds)[0])
    assert results
    return results


def is_close(found: Array, expected: Array) -> bool:
    if found.shape != expected.shape:
        return False
    return bool(np.abs(found - expected).max() <= TOLERANCE_STD * (expected.std() or 1))
