"""Engines of TensorRT-RTX, with a fake TensorRT-RTX and a fake GPU."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgevit.errors import BuildError, InferenceError, UsageError
from edgevit.runtimes.base import BatchRange
from edgevit.runtimes.tensorrt_rtx.runtime import KERNELS_FILE, TensorRtRtxEngine
from tests.fakes.tensorrt import RTX, World, fake_gpu, fake_tensorrt

PLAN = b'vplan{"runs": "fp16"}'


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    world = World()
    for module, name, value in fake_gpu(world):
        monkeypatch.setattr(module, name, value)
    return world


def load(world: World, folder: Path, content: bytes = PLAN) -> TensorRtRtxEngine:
    trt: Any = fake_tensorrt(RTX, world)
    (folder / KERNELS_FILE).write_text(json.dumps({"precisions": {"fp16": 3}}), "utf-8")
    return TensorRtRtxEngine(trt, content, folder / "model.engine")


def test_later_inferences_of_a_shape_launch_a_cuda_graph(world: World, tmp_path: Path) -> None:
    world.shape = (-1, 4)
    with load(world, tmp_path) as engine:
        assert (engine.fmt, engine.batches) == ("trt-rtx", BatchRange(1, 2, 8))
        for batch, launched in [(2, 0), (2, 1), (8, 1), (8, 2)]:
            x = np.arange(4 * batch, dtype=np.float32).reshape(batch, 4)
            np.testing.assert_array_equal(engine.run({"x": x})["y"], 2 * x)
            assert world.launched == launched
    assert (world.buffers, world.pinned, world.devices, world.captured) == ({}, 0, 0, 0)


def test_a_dynamic_engine_runs_in_several_streams(world: World, tmp_path: Path) -> None:
    world.shape = (-1, 4)
    with load(world, tmp_path) as engine:
        runner = engine.throughput_runner(2)
        assert runner is not None
        inferences, _ = runner.run_for({"x": np.zeros((2, 4), np.float32)}, 0.0)
        assert inferences == 2
        runner.close()
    assert (world.buffers, world.pinned, world.devices, world.captured) == ({}, 0, 0, 0)


def test_the_precision_is_that_of_the_kernel_list(world: World, tmp_path: Path) -> None:
    with load(world, tmp_path) as engine:
        assert dict(engine.executed_precision().layers) == {"fp16": 3}


def test_an_engine_that_cannot_be_loaded_names_the_gpu(world: World, tmp_path: Path) -> None:
    gpu = r"Orin \(compute capability 87\)"
    with pytest.raises(
        BuildError, match=f"TensorRT-RTX: version 1.7.1.116 cannot load the engine on {gpu}.*rebuild it"
    ):
        load(world, tmp_path, b"damaged")
    assert world.devices == 0


def test_a_failed_inference_is_an_inference_error(world: World, tmp_path: Path) -> None:
    with load(world, tmp_path) as engine:
        world.broken = "execute"
        with pytest.raises(InferenceError, match="TensorRT-RTX: inference failed: execute is broken; rebuild it"):
            engine.run({"x": np.zeros((1, 4), np.float32)})


def test_a_closed_engine_is_an_error(world: World, tmp_path: Path) -> None:
    engine = load(world, tmp_path)
    engine.close()
    with pytest.raises(UsageError, match="the engine is closed"):
        engine.run({"x": np.zeros((1, 4), np.float32)})
