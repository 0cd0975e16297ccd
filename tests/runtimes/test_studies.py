"""Profiles, matrix products and parallel inferences of the CPU runtimes, on a graph of a convolution and a matmul."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgevit.runtimes.base import BatchRange, BuildOptions, Engine
from edgevit.runtimes.node_names import node_names
from edgevit.runtimes.onnxruntime import OnnxRuntime
from edgevit.runtimes.onnxruntime_layers import read_layers
from edgevit.runtimes.openvino import OpenVino
from edgevit.runtimes.openvino_convert import convert
from edgevit.runtimes.openvino_layers import mean_times_ms
from tests.helpers.onnx_files import save_graph

FEEDS = {"x": np.random.default_rng(0).standard_normal((1, 8, 16, 16)).astype(np.float32)}
RUNTIMES = {"ort": OnnxRuntime, "openvino": OpenVino}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_graph(
        tmp_path_factory.mktemp("studies") / "model.onnx",
        "g (float[1, 8, 16, 16] x) => (float[1, 10] y)",
        {
            "stem.conv/Conv": "c = Conv <pads = [1, 1, 1, 1]> (x, w)",
            "stem.act/Relu": "r = Relu(c)",
            "head/Flatten": "f = Flatten(r)",
            "head/MatMul": "y = MatMul(f, v)",
        },
        {"w": (8, 8, 3, 3), "v": (2048, 10)},
    )


@pytest.fixture(params=RUNTIMES, ids=str)
def engine(request: pytest.FixtureRequest, model: Path) -> Iterator[Engine]:
    runtime = RUNTIMES[request.param]()
    path = model
    if request.param == "openvino":
        path = model.with_suffix(".xml")
        scratch = model.parent / "scratch"
        scratch.mkdir(exist_ok=True)
        convert(runtime.load(), model, path, scratch=scratch)
    with runtime.open(path, BuildOptions(threads=1)) as engine:
        yield engine


def test_layers_are_timed_and_belong_to_modules(engine: Engine) -> None:
    profile = engine.profile_layers(FEEDS, runs=3)
    assert profile is not None and profile.runs == 3
    modules = {group.name for group in profile.by_module(1)}
    assert {"stem", "head"} <= modules and profile.sum_ms > 0
    assert not engine.has_run  # another instance was profiled


def test_layers_have_the_multiply_adds_of_the_model(engine: Engine) -> None:
    profile = engine.profile_layers(FEEDS, runs=3)
    assert profile is not None
    multiplying = [layer for layer in profile.layers if layer.macs]
    assert sum(layer.macs or 0 for layer in multiplying) == sum(engine.executed_precision().macs.values()) > 0
    assert {layer.precision for layer in multiplying} == {"fp32"}
    rates = {group.name: group.macs_per_s for group in profile.by_kind()}
    assert all(rates[layer.kind] for layer in multiplying)


def test_the_first_runs_do_not_count_to_the_times_of_openvino() -> None:
    before_us = {"a": 1000.0, "b": 10.0}  # means of 3 runs, the first of which took 2980 and 10
    after_us = {"a": 307.0, "b": 10.0}  # means of 10 runs: 7 more of 10
    assert mean_times_ms(before_us, after_us, skip=3, runs=7) == pytest.approx({"a": 0.01, "b": 0.01})
    assert mean_times_ms({}, after_us, skip=0, runs=10) == pytest.approx({"a": 0.307, "b": 0.01})


def test_the_layers_of_openvino_take_no_longer_than_the_run_that_they_are_part_of(tmp_path: Path) -> None:
    count = 40  # layers of one row, whose weights are packed in the first run, in a hundred times the time of a run
    names = ["x", *(f"t{index}" for index in range(count - 1)), "y"]
    body: dict[str, str] = {}
    weights: dict[str, tuple[int, ...]] = {}
    for index, (source, target) in enumerate(itertools.pairwise(names)):
        body |= {
            f"l{index}/Gemm": f"g{index} = Gemm <transB = 1> ({source}, w{index}, b{index})",
            f"l{index}/Sigmoid": f"{target} = Sigmoid(g{index})",
        }
        weights |= {f"w{index}": (256, 256), f"b{index}": (256,)}
    path = save_graph(tmp_path / "model.onnx", "g (float[1, 256] x) => (float[1, 256] y)", body, weights)
    (scratch := tmp_path / "scratch").mkdir()
    convert(OpenVino().load(), path, path.with_suffix(".xml"), scratch=scratch)
    with OpenVino().open(path.with_suffix(".xml"), BuildOptions(threads=1)) as engine:
        profile = engine.profile_layers({"x": np.ones((1, 256), np.float32)}, runs=19)  # one window
    assert profile is not None
    assert 0 < profile.sum_ms <= profile.profiled_ms


def test_layers_of_a_dynamic_batch_have_the_multiply_adds_of_the_batch_that_ran(tmp_path: Path) -> None:
    body = {"stem/Conv": "y = Conv <pads = [1, 1, 1, 1]> (x, w)"}
    graph = "g (float[batch, 8, 16, 16] x) => (float[batch, 8, 16, 16] y)"
    path = save_graph(tmp_path / "model.onnx", graph, body, {"w": (8, 8, 3, 3)})
    options = BuildOptions(threads=1, dynamic_batch=BatchRange(1, 2, 4))
    with OnnxRuntime().open(path, options) as engine:
        profile = engine.profile_layers({"x": np.repeat(FEEDS["x"], 3, axis=0)}, runs=1)
    assert profile is not None
    assert sum(layer.macs or 0 for layer in profile.layers) == 3 * 8 * 16 * 16 * 8 * 9


def test_each_convolution_has_its_own_multiply_adds_in_whichever_order_the_sessions_run_them(tmp_path: Path) -> None:
    """Three branches, which the session of the plain layout runs in another order than that of the blocked layout."""
    body: dict[str, str] = {}
    weights: dict[str, tuple[int, ...]] = {}
    branches = list(enumerate((16, 32, 48)))
    for branch, channels in branches:
        body |= {
            f"b{branch}.0/Conv": f"t{branch} = Conv(x, w{branch})",
            f"b{branch}.1/Conv": f"s{branch} = Conv(t{branch}, v{branch})",
        }
        weights |= {f"w{branch}": (channels, 16, 1, 1), f"v{branch}": (16, channels, 1, 1)}
    body |= {"a/Add": "a = Add(s0, s1)", "c/Add": "y = Add(a, s2)"}
    graph = "g (float[1, 16, 16, 16] x) => (float[1, 16, 16, 16] y)"
    path = save_graph(tmp_path / "model.onnx", graph, body, weights)
    with OnnxRuntime().open(path, BuildOptions(threads=1)) as engine:
        profile = engine.profile_layers({"x": np.ones((1, 16, 16, 16), np.float32)}, runs=1)
    assert profile is not None
    found = sorted((layer.module, layer.macs) for layer in profile.layers if layer.kind == "Conv")
    assert found == [
        (f"b{branch}.{half}", 16 * 16 * 16 * channels)
        for branch, channels in enumerate((16, 32, 48))
        for half in (0, 1)
    ]


@pytest.mark.parametrize(("convolutions", "expected"), [(1, 8 * 16 * 16 * 8 * 9), (0, None), (2, None)])
def test_a_convolution_in_a_blocked_layout_has_its_own_channels(convolutions: int, expected: int | None) -> None:
    """The profile rounds 8 channels up to 16; another one, of the plain layout, has all convolutions or is not used."""

    def convolution(name: str, channels: int) -> dict[str, Any]:
        shapes = [[1, 8, 16, 16], [channels, 8, 3, 3]], [[1, channels, 16, 16]]
        inputs, outputs = ([{"float": shape} for shape in each] for each in shapes)
        args = {"op_name": "Conv", "input_type_shape": inputs, "output_type_shape": outputs}
        return {"cat": "Node", "name": name, "ts": 1, "dur": 5, "args": args}

    run = {"cat": "Session", "name": "model_run", "ts": 0, "dur": 10}
    blocked = [run, convolution("r_nchwc_kernel_time", 16)]
    plain = [run, *[convolution("stem/Conv_kernel_time", 8)] * convolutions]
    (layer,) = read_layers(blocked, {"r": "stem/Relu"}, plain, skip=0).layers
    assert (layer.name, layer.macs) == ("stem/Relu", expected)


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_the_runtime_multiplies_matrices_itself(engine: Engine, precision: str) -> None:
    product = engine.matmul((4, 64, 32), precision)
    assert product is not None
    result = product.run()
    values = result if isinstance(result, list) else list(result.values())  # type: ignore[attr-defined]
    assert values[0].shape == (4, 32)
    if precision == "fp32":
        np.testing.assert_array_equal(values[0], np.full((4, 32), 64, np.float32))
    else:  # ones by ones in ONNX Runtime, ones by int8 weights with the scale 0.01 in OpenVINO
        np.testing.assert_allclose(values[0], 64 if engine.fmt == "ort" else 0.64, rtol=1e-5)


def test_a_precision_without_a_product_has_none(engine: Engine) -> None:
    assert engine.matmul((4, 64, 32), "fp16") is None


def test_several_inferences_run_at_once_and_are_counted(engine: Engine) -> None:
    runner = engine.throughput_runner(2)
    assert runner is not None
    inferences, elapsed_s = runner.run_for(FEEDS, 0.05)
    runner.close()
    assert inferences >= 2 and elapsed_s >= 0.05


def test_node_names_are_read_without_onnx(model: Path, tmp_path: Path) -> None:
    assert node_names(model) == {
        "c": "stem.conv/Conv",
        "r": "stem.act/Relu",
        "f": "head/Flatten",
        "y": "head/MatMul",
    }
    damaged = tmp_path / "damaged.onnx"
    damaged.write_bytes(model.read_bytes()[:-100])
    assert node_names(damaged) == {} == node_names(tmp_path / "none.onnx")
