"""TensorRT builds and engines, with a fake TensorRT and a fake GPU.

The fake (tests/fakes/tensorrt.py) has the names of one version's API and no others; it computes nothing. These tests do
not show how a real TensorRT or a real GPU behaves.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

import edgevit
from edgevit.errors import BuildError, EdgevitError, InferenceError, MissingError, PrecisionError, UsageError
from edgevit.latency.candidate import candidate_from_engine
from edgevit.runtimes import subprocess_build
from edgevit.runtimes.base import BatchRange, BuildOptions, OnPhase
from edgevit.runtimes.build import build_engine as build_bundle_engine
from edgevit.runtimes.build import usable_version
from edgevit.runtimes.tensorrt import cuda, cuda_graph, worker
from edgevit.runtimes.tensorrt import runtime as tensorrt
from edgevit.runtimes.tensorrt.log import failure, process_logger
from edgevit.runtimes.tensorrt.memory import MB
from edgevit.runtimes.tensorrt.runtime import TensorRt
from edgevit.runtimes.tensorrt.streams import TensorRtStreams
from edgevit.runtimes.tensorrt.trtexec import TRTEXEC_TOLERANCE
from edgevit.runtimes.tensorrt.versions import supported_module
from edgevit.types import Array, TensorSpec
from tests.fakes.tensorrt import MODULE, PARTS, VERSIONS, Layer, World, fake_gpu, fake_tensorrt, run_here

DOCS = Path(__file__).parents[3] / "docs"

# Builds


@pytest.fixture(params=VERSIONS)
def column(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def world() -> World:
    return World()


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "model.onnx"
    path.write_bytes(b"an ONNX file")
    return path


@pytest.fixture
def runtime(monkeypatch: pytest.MonkeyPatch, world: World, column: str) -> TensorRt:
    """TensorRT with the fake of each version and the fake GPU; builds run in this process."""
    monkeypatch.setitem(sys.modules, "tensorrt", fake_tensorrt(column, world))
    for module, name, value in fake_gpu(world):
        monkeypatch.setattr(module, name, value)
    monkeypatch.setattr(subprocess_build, "run", run_here)
    return TensorRt()


def is_86(column: str) -> bool:
    return VERSIONS[column].startswith("8.6")


def test_a_build_writes_the_bare_engine_and_a_record_beside_it(
    runtime: TensorRt, model: Path, tmp_path: Path, column: str
) -> None:
    artifact = runtime.build(model, tmp_path, BuildOptions())
    assert [file.name for file in artifact.files] == ["model.engine", "engine.json"]
    assert artifact.path.read_bytes() == b'vplan{"runs": "fp32"}'
    record = json.loads((tmp_path / "engine.json").read_text("utf-8"))
    assert (record["tensorrt"], record["compute_capability"], record["gpu"]) == (VERSIONS[column], "8.7", "Orin")
    assert (record["multiprocessors"], record["memory_mb"], record["gpu_uuid"][:8]) == (16, 61 << 10, "2f2c4b1e")
    assert record["layers"] == {"fp32": 1}
    assert "gpu=Orin" in artifact.notes
    assert any("trtexec --loadEngine=model.engine " in note for note in artifact.notes)
    command = runtime.time_command(Path("model.engine"), BuildOptions())
    assert command is not None and f"within {TRTEXEC_TOLERANCE} of GPU p50" in command.note
    assert f"must agree with `GPU ms` within {TRTEXEC_TOLERANCE}" in (DOCS / "tensorrt.md").read_text("utf-8")
    for text in ("\n".join(artifact.notes), command.note):  # both definitions
        assert "GPU's compute time without copies" in text and "kernels with the copies" in text


@pytest.mark.parametrize("precision", PARTS)
def test_only_86_gets_precision_flags(
    runtime: TensorRt, model: Path, tmp_path: Path, world: World, column: str, precision: Any
) -> None:
    dtype = "HALF" if precision == "fp16" else "FLOAT"
    world.runs, world.layers = precision, (Layer("MATRIX_MULTIPLY", (dtype,), (dtype,)),)
    runtime.build(model, tmp_path, BuildOptions(precision=precision))
    flags = [call for call in world.calls if call.startswith("set ")]
    assert flags == ([f"set {precision.upper()}"] if is_86(column) and precision != "fp32" else [])
    assert ("clear TF32" in world.calls) == (precision == "fp32")
    assert "verbosity DETAILED" in world.calls
    # The default of 10 and 11.
    assert ("parser NATIVE_INSTANCENORM" in world.calls) == is_86(column)
    # EXPLICIT_BATCH is number 0; STRONGLY_TYPED is number 1 in 10 and number 0 in 11.
    assert f"network {2 if VERSIONS[column].startswith('10') else 1}" in world.calls


def test_86_may_use_fp16_if_the_graph_has_fp16_tensors(
    runtime: TensorRt, model: Path, tmp_path: Path, world: World, column: str
) -> None:
    world.runs, world.layers = "int8", (Layer("MATRIX_MULTIPLY", ("FLOAT",), ("FLOAT", "HALF")),)
    runtime.build(model, tmp_path, BuildOptions(precision="int8"))
    flags = [call for call in world.calls if call.startswith("set ")]
    assert flags == (["set INT8", "set FP16"] if is_86(column) else [])


MIXED = (
    Layer("CAST", ("FLOAT",), ("HALF",)),
    Layer("MATRIX_MULTIPLY", ("HALF", "HALF"), ("HALF",)),
    Layer("CAST", ("HALF",), ("FLOAT",)),
    Layer("CONSTANT", (), ("FLOAT",)),
    Layer("ELEMENTWISE", ("FLOAT", "FLOAT"), ("FLOAT",)),
    Layer("SLICE", ("FLOAT",), ("FLOAT", "FLOAT")),
    Layer("ELEMENTWISE", ("SHAPE",), ("SHAPE",)),
)


@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_86_runs_the_fp32_layers_of_an_fp16_graph_in_fp32(
    runtime: TensorRt, model: Path, tmp_path: Path, world: World, column: str, precision: Any
) -> None:
    """Its networks are weakly typed: with FP16 allowed, the builder may run every layer in half."""
    world.runs, world.layers = precision, MIXED
    runtime.build(model, tmp_path, BuildOptions(precision=precision))
    constrained = [call for call in world.calls if call.startswith("layer ")]
    expected = ["layer 4 FLOAT", "layer 4 output 0 FLOAT", "layer 5 FLOAT", "layer 5 output 0 FLOAT",
                "layer 5 output 1 FLOAT"]  # fmt: skip
    applies = is_86(column) and precision == "fp16"
    assert constrained == (expected if applies else [])
    assert ("set PREFER_PRECISION_CONSTRAINTS" in world.calls) == applies


def test_86_constrains_no_layer_if_the_types_do_not_follow_from_the_graph(
    runtime: TensorRt, model: Path, tmp_path: Path, world: World
) -> None:
    """A matmul of half tensors is not fp32 in the graph, whatever the network reports before it is built."""
    world.runs, world.layers = "fp16", (*MIXED, Layer("MATRIX_MULTIPLY", ("HALF",), ("FLOAT",)))
    runtime.build(model, tmp_path, BuildOptions(precision="fp16"))
    assert not any(call.startswith(("layer ", "set PREFER")) for call in world.calls)


def test_a_dynamic_batch_becomes_an_optimization_profile(
    runtime: TensorRt, model: Path, tmp_path: Path, world: World
) -> None:
    world.shape = (-1, 4)
    artifact = runtime.build(model, tmp_path, BuildOptions(dynamic_batch=BatchRange(1, 2, 8)))
    assert "shape x [1, 2, 8]" in world.calls
    assert any("--shapes=x:2x4" in note for note in artifact.notes)


@pytest.mark.parametrize(
    ("step", "words"),
    [
        ("parser", "cannot read"),
        ("empty", "not an ONNX model"),
        ("workspace", "does not accept a workspace"),
        ("profile", "not a valid profile"),
        ("cache", "accepts no timing cache"),
        ("build", "returned no engine.*build is broken"),
        ("engine", "cannot load.*engine is broken"),
        ("context", "not enough memory to run"),
        ("inspector", "no inspector"),
        ("shape", "with a batch of 8"),
        ("infer", "shapes of y are unknown"),
        ("data-dependent", "depends on the input's values"),
        ("address", "does not accept a buffer"),
    ],
)
def test_a_failure_that_tensorrt_only_logs_is_an_error_and_leaves_no_files(
    runtime: TensorRt, model: Path, tmp_path: Path, world: World, step: str, words: str
) -> None:
    world.broken, world.shape = step, (-1, 4)
    options = BuildOptions(dynamic_batch=BatchRange(1, 2, 8), cache_dir=tmp_path / "cache")
    with pytest.raises(BuildError, match=words):
        runtime.build(model, tmp_path, options)
    assert not {"model.engine", "engine.json"} & {path.name for path in tmp_path.iterdir()}
    assert (world.buffers, world.pinned, world.devices) == ({}, 0, 0)


def test_an_error_has_the_messages_of_its_own_build_only(
    runtime: TensorRt, model: Path, tmp_path: Path, world: World
) -> None:
    messages = []
    for step in ("parser", "build"):
        world.broken = step
        with pytest.raises(BuildError) as error:
            runtime.build(model, tmp_path, BuildOptions())
        messages.append(str(error.value))
    assert ("parser is broken" in messages[0], "parser is broken" in messages[1]) == (True, False)


@pytest.mark.parametrize(("step", "words"), [("builder", "nullptr"), ("runtime", "nullptr"), ("infer", "do not agree")])
def test_an_exception_of_the_bindings_is_a_build_error(
    runtime: TensorRt, model: Path, tmp_path: Path, world: World, step: str, words: str
) -> None:
    world.raising = step
    with pytest.raises(BuildError, match=words):
        runtime.build(model, tmp_path, BuildOptions())
    assert world.devices == 0


def test_a_parser_error_names_the_node(
    runtime: TensorRt, model: Path, tmp_path: Path, world: World, column: str
) -> None:
    world.broken = "parser"
    place = "node 3" if is_86(column) else "node blocks.0.attn/Einsum, Einsum"
    with pytest.raises(BuildError, match=rf"Unsupported operator \({place}\)"):
        runtime.build(model, tmp_path, BuildOptions())


def test_a_parser_error_without_a_node_names_the_last_one(
    runtime: TensorRt, model: Path, tmp_path: Path, world: World, column: str
) -> None:
    world.broken, world.names_nodes = "parser", False
    place = "node 3" if is_86(column) else "node blocks.0.attn/Einsum, Einsum"
    with pytest.raises(BuildError, match=rf"Unsupported operator \({place}\)"):
        runtime.build(model, tmp_path, BuildOptions())


def test_plugins_are_loaded_before_a_graph_is_parsed_and_an_engine_loaded(
    runtime: TensorRt, model: Path, tmp_path: Path, world: World
) -> None:
    artifact = runtime.build(model, tmp_path, BuildOptions())
    runtime.open(artifact.path, BuildOptions()).close()
    steps = [call for call in world.calls if call.startswith(("plugins", "parse", "deserialize")) and " N" not in call]
    assert steps[:2] == ["plugins ''", "parse"]
    assert steps[-2:] == ["plugins ''", "deserialize"]


def test_a_failure_ends_with_a_remedy(
    runtime: TensorRt, model: Path, tmp_path: Path, world: World, column: str
) -> None:
    target = ".".join(VERSIONS[column].split(".")[:2])
    for step, remedy in (
        ("parser", f"export for this TensorRT with --trt-version {target}"),
        ("build", f"edgevit lint BUNDLE --target trt:{target}"),
        ("engine", "rebuild it here: edgevit build BUNDLE"),
        ("context", "free GPU memory"),
    ):
        world.broken = step
        with pytest.raises(BuildError) as error:
            runtime.build(model, tmp_path, BuildOptions())
        assert remedy in str(error.value)
        assert str(tmp_path) not in str(error.value)  # the folder of a failed build no longer exists


@pytest.mark.parametrize(
    "words", ["Requested amount of GPU memory (1 bytes) could not be allocated: OutOfMemory", "std::bad_alloc"]
)
def test_a_builder_that_runs_out_of_memory_says_so(runtime: TensorRt, words: str) -> None:
    error = failure(supported_module(runtime.load()), "the build gave no engine", words)
    assert "free GPU memory" in str(error)
    assert "lint" not in str(error)


@pytest.mark.parametrize(
    ("words", "remedy"),
    [
        ("has compute capability 8.9. Supported compute capabilities: 8.0. It can be rebuilt", "in --sm, or without"),
        (
            "has compute capability 9.0. TensorRT-RTX does not support this compute capability",
            "use --fmt trt on this machine, or another GPU",
        ),
    ],
)
def test_an_engine_of_other_gpus_is_not_called_damaged(runtime: TensorRt, words: str, remedy: str) -> None:
    trt = supported_module(runtime.load())
    error = failure(trt, "cannot load", f"The engine cannot run on this GPU, which {words}", remedy="if it is damaged")
    assert remedy in str(error)
    assert "damaged" not in str(error)


def test_timings_are_kept_in_the_cache_folder_by_default(
    runtime: TensorRt, model: Path, tmp_path: Path, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EDGEVIT_CACHE", str(tmp_path / "kept"))
    assert build_bundle_engine(runtime, model, tmp_path, BuildOptions()).artifact is not None
    assert [file.suffix for file in (tmp_path / "kept").iterdir()] == [".timing"]
    world.calls.clear()
    build_bundle_engine(runtime, model, tmp_path, BuildOptions())
    assert "cache timings" in world.calls


def test_a_timing_cache_that_cannot_be_written_does_not_fail_the_build(
    runtime: TensorRt, model: Path, tmp_path: Path
) -> None:
    (tmp_path / "cache").write_text("a file instead of a folder")
    artifact = runtime.build(model, tmp_path, BuildOptions(cache_dir=tmp_path / "cache"))
    assert artifact.path.is_file()


@pytest.mark.parametrize(("requested", "runs"), [("fp16", "fp32"), ("fp32", "fp16"), ("int8", "fp16")])
def test_an_engine_that_runs_another_precision_is_not_written(
    runtime: TensorRt, model: Path, tmp_path: Path, world: World, requested: Any, runs: str
) -> None:
    world.runs = runs
    with pytest.raises(PrecisionError, match=f"requested {requested}") as error:
        runtime.build(model, tmp_path, BuildOptions(precision=requested))
    assert error.value.exit_status == 9
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]


def test_a_build_that_does_not_fit_into_memory_is_not_started(
    runtime: TensorRt, model: Path, tmp_path: Path, world: World
) -> None:
    world.free = 500 * MB
    with pytest.raises(BuildError, match="500 MB of GPU memory is free"):
        runtime.build(model, tmp_path, BuildOptions())
    assert world.calls == []


def test_the_next_build_starts_from_the_timing_cache(
    runtime: TensorRt, model: Path, tmp_path: Path, world: World, column: str
) -> None:
    options = BuildOptions(cache_dir=tmp_path / "cache")
    for expected in ("cache ", "cache timings"):
        world.calls.clear()
        runtime.build(model, tmp_path, options)
        assert expected in world.calls
    (file,) = (tmp_path / "cache").iterdir()
    assert file.name.startswith(f"tensorrt-{VERSIONS[column]}-Orin-sm8.7-")
    file.write_bytes(b"damaged")
    runtime.build(model, tmp_path, options)
    assert file.read_bytes() == b"timings"


@pytest.mark.usefixtures("runtime")
def test_progress_is_reported_from_10_on(model: Path, tmp_path: Path, column: str) -> None:
    steps: list[tuple[str, float]] = []
    TensorRt(lambda phase, done: steps.append((phase, round(done, 2)))).build(model, tmp_path, BuildOptions())
    assert steps == ([] if is_86(column) else [("Building", 0.33), ("Building", 0.67), ("Building", 1.0)])


@pytest.mark.usefixtures("runtime")
def test_an_interrupt_stops_the_build(model: Path, tmp_path: Path, column: str) -> None:
    def interrupt(_phase: str, _done: float) -> None:
        raise KeyboardInterrupt

    if not is_86(column):
        with pytest.raises(KeyboardInterrupt):
            TensorRt(interrupt).build(model, tmp_path, BuildOptions())
        assert not (tmp_path / "model.engine").exists()


def test_compute_capabilities_are_an_error(runtime: TensorRt, model: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="remove --sm"):
        runtime.build(model, tmp_path, BuildOptions(compute_capabilities=(86,)))


# Builds in a subprocess


@pytest.fixture
def in_subprocess(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., TensorRt]:
    """TensorRT with a real subprocess, which has the fake of 10.3; in this process the module is empty."""
    module = ModuleType("tensorrt")
    vars(module)["__version__"] = "10.3.0"
    monkeypatch.setitem(sys.modules, "tensorrt", module)

    def make(on_phase: OnPhase | None = None, **world: Any) -> TensorRt:
        place = tmp_path / "packages"
        place.mkdir()
        (place / "tensorrt.py").write_text(MODULE.format(column="cu12_10.3.0", world=world), "utf-8")
        monkeypatch.syspath_prepend(place)
        return TensorRt(on_phase)

    return make


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    place = tmp_path / "vit-fp16-trt"
    place.mkdir()
    return place


def test_a_build_runs_in_a_subprocess(in_subprocess: Callable[..., TensorRt], model: Path, bundle: Path) -> None:
    options = BuildOptions(
        precision="fp16", dynamic_batch=BatchRange(1, 2, 8), workspace_mb=256, cache_dir=bundle / "cache"
    )
    progress: list[float] = []
    runtime = in_subprocess(lambda _phase, done: progress.append(round(done, 2)), runs="fp16", shape=(-1, 4))
    artifact = runtime.build(model, bundle, options)
    assert artifact.path.read_bytes() == b'vplan{"runs": "fp16"}'
    record = json.loads((bundle / "engine.json").read_text("utf-8"))
    assert (record["tensorrt"], record["layers"], record["workspace_bytes"]) == ("10.3.0", {"fp16": 1}, 256 * MB)
    assert sorted(path.name for path in bundle.iterdir()) == ["cache", "engine.json", "model.engine"]
    assert progress == [0.33, 0.67, 1.0]


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (signal.SIGKILL, "was killed, as systems do when memory runs out; stop other processes.*reduce --workspace"),
        (signal.SIGSEGV, "crashed with SIGSEGV; some graphs crash TensorRT.*edgevit lint"),
    ],
)
def test_a_subprocess_that_dies_is_a_build_error(
    in_subprocess: Callable[..., TensorRt], model: Path, bundle: Path, number: signal.Signals, words: str
) -> None:
    with pytest.raises(BuildError, match=words) as raised:
        in_subprocess(dies=int(number)).build(model, bundle, BuildOptions())
    assert raised.value.exit_status == 5
    assert "model.onnx" in str(raised.value)
    assert list(bundle.iterdir()) == []


@pytest.mark.parametrize(
    ("world", "error", "words"),
    [
        ({"broken": "build"}, BuildError, "returned no engine.*build is broken"),
        ({"free": 500 * MB}, BuildError, "500 MB of GPU memory is free"),
        ({"runs": "fp16"}, PrecisionError, "requested fp32"),
    ],
)
def test_an_error_in_the_subprocess_keeps_its_class(
    in_subprocess: Callable[..., TensorRt],
    model: Path,
    bundle: Path,
    world: dict[str, Any],
    error: type[EdgevitError],
    words: str,
) -> None:
    with pytest.raises(error, match=words):
        in_subprocess(**world).build(model, bundle, BuildOptions())
    assert list(bundle.iterdir()) == []


def test_a_build_without_a_gpu_is_a_missing_error(
    monkeypatch: pytest.MonkeyPatch, in_subprocess: Callable[..., TensorRt], model: Path, bundle: Path
) -> None:
    runtime = in_subprocess()
    (bundle.parent / "packages" / "tensorrt.py").write_text("__version__ = '10.3.0'\n", "utf-8")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")  # in case this machine has one
    with pytest.raises(MissingError, match="NVIDIA") as raised:
        runtime.build(model, bundle, BuildOptions())
    assert raised.value.exit_status == 3


# Engines


def rows(count: int, start: float = 0.0) -> dict[str, Array]:
    return {"x": (start + np.arange(4 * count, dtype=np.float32)).reshape(count, 4)}


def test_later_inferences_do_not_overwrite_earlier_outputs(
    runtime: TensorRt, model: Path, tmp_path: Path, world: World
) -> None:
    options = BuildOptions()
    artifact = runtime.build(model, tmp_path, options)
    with runtime.open(artifact.path, options) as engine:
        assert (engine.inputs, engine.batches) == ((TensorSpec("x", "float32", (1, 4)),), None)
        first = engine.run(rows(1))["y"]
        second = engine.run(rows(1, start=10))["y"]
        np.testing.assert_array_equal(first, 2 * rows(1)["x"])
        np.testing.assert_array_equal(second, 2 * rows(1, start=10)["x"])
        assert dict(engine.executed_precision().layers) == {"fp32": 1}
        with pytest.raises(UsageError, match="takes"):
            engine.run(rows(2))
    assert (world.buffers, world.pinned, world.devices, world.captured) == ({}, 0, 0, 0)


def test_the_time_on_the_gpu_is_that_between_events_of_the_last_inference(
    runtime: TensorRt, model: Path, tmp_path: Path, world: World
) -> None:
    options = BuildOptions()
    with runtime.open(runtime.build(model, tmp_path, options).path, options) as engine:
        assert engine.compute_ms() is None
        for expected_ms in (0.5, 1.5, 2.5):
            engine.run(rows(1))
            assert engine.compute_ms() == expected_ms
        candidate = candidate_from_engine("a", engine, rows(1))
        assert candidate.compute_ms is not None and candidate.compute_ms() == 3.5
        world.broken = "execute"
        with pytest.raises(InferenceError):
            engine.run(rows(1))
        assert engine.compute_ms() is None  # not that of an earlier one
    assert world.stopwatches == 0


def test_layers_are_profiled_in_a_second_context(runtime: TensorRt, model: Path, tmp_path: Path, world: World) -> None:
    options = BuildOptions()
    with runtime.open(runtime.build(model, tmp_path, options).path, options) as engine:
        profile = engine.profile_layers(rows(1), runs=2)
        assert profile is not None and profile.runs == 2
        assert [(each.name, each.kind, each.module, each.ms) for each in profile.layers] == [
            ("fc", "gemm", "(unknown)", 0.25),
            ("blocks.0/Add + blocks.0.act/Relu", "unknown", "blocks.0", 0.5),
        ]
        world.broken = "context"
        with pytest.raises(BuildError, match="leave --layers out"):
            engine.profile_layers(rows(1), runs=2)
        world.broken = "address"
        with pytest.raises(BuildError, match="does not accept a buffer for .* in a second context: address is broken"):
            engine.profile_layers(rows(1), runs=2)


@pytest.mark.parametrize("capturable", [True, False])
def test_several_inferences_run_in_contexts_of_their_own(
    runtime: TensorRt, model: Path, tmp_path: Path, world: World, *, capturable: bool
) -> None:
    world.capturable, options = capturable, BuildOptions()
    with runtime.open(runtime.build(model, tmp_path, options).path, options) as engine:
        runner = engine.throughput_runner(3)
        assert isinstance(runner, TensorRtStreams) and (world.devices, world.captured) == (4, 0)
        inferences, elapsed_s = runner.run_for(rows(1), 0.01)
        assert inferences >= 3 and elapsed_s >= 0.01
        assert world.captured == (3 if capturable else 0)
        assert world.launched == (inferences if capturable else 0)
        for stream in runner._created:
            np.testing.assert_array_equal(stream._bindings.views["y"], 2 * rows(1)["x"])
        runner.close()
        np.testing.assert_array_equal(engine.run(rows(1, start=5))["y"], 2 * rows(1, start=5)["x"])
        world.broken = "context"
        with pytest.raises(BuildError, match="not enough memory for another context: .*leave --throughput out"):
            engine.throughput_runner(2)
    assert (world.buffers, world.pinned, world.devices, world.captured) == ({}, 0, 0, 0)


def test_streams_follow_the_batch(runtime: TensorRt, model: Path, tmp_path: Path, world: World, column: str) -> None:
    world.shape, options = (-1, 4), BuildOptions(dynamic_batch=BatchRange(1, 2, 8))
    with runtime.open(runtime.build(model, tmp_path, options).path, options) as engine:
        runner = engine.throughput_runner(2)
        if is_86(column):  # one profile, which contexts of 8.6 do not share
            assert runner is None and engine.profile_layers(rows(2), runs=2) is None
            return
        assert isinstance(runner, TensorRtStreams)
        for batch in (2, 8):
            runner.run_for(rows(batch), 0.0)
            runner.run_for(rows(batch), 0.002)
            assert {len(stream._bindings.views["y"]) for stream in runner._created} == {batch}
        world.broken = "execute"
        with pytest.raises(InferenceError, match="leave --throughput out"):
            runner.run_for(rows(4), 0.0)
        runner.close()
    assert (world.buffers, world.pinned, world.devices, world.captured) == ({}, 0, 0, 0)


@pytest.mark.parametrize("capturable", [True, False])
def test_later_inferences_of_a_shape_launch_a_cuda_graph(
    runtime: TensorRt, model: Path, tmp_path: Path, world: World, *, capturable: bool
) -> None:
    world.capturable, world.shape = capturable, (-1, 4)
    options = BuildOptions(dynamic_batch=BatchRange(1, 2, 8))
    with runtime.open(runtime.build(model, tmp_path, options).path, options) as engine:
        assert engine.batches == BatchRange(1, 2, 8)
        for batch, launched in [(2, 0), (2, 1), (2, 2), (8, 2), (8, 3), (1, 3), (2, 3), (2, 4)]:
            answer = engine.run(rows(batch, start=batch))["y"]
            np.testing.assert_array_equal(answer, 2 * rows(batch, start=batch)["x"])
            assert world.launched == (launched if capturable else 0)
            assert world.captured <= 1
        assert engine.conditions == {
            "gpu": "Orin",
            "gpu_uuid": "2f2c4b1e-0000-4000-8000-00000000000a",
            "gpu_multiprocessors": "16",
            "cpu_wait": "spin",
            "host_memory": "pinned",
            "context_memory_mb": "3.0",
            "cuda_graph": "yes" if capturable else "CUDA error: operation not permitted when stream is capturing (900)",
        }
        with pytest.raises(UsageError, match="batches of 1:2:8"):
            engine.run(rows(9))
    assert (world.buffers, world.pinned, world.devices, world.captured) == ({}, 0, 0, 0)


def test_the_memory_of_an_engine_is_what_the_gpu_has_less_after_its_first_run(
    runtime: TensorRt, model: Path, tmp_path: Path, world: World
) -> None:
    options = BuildOptions()
    with runtime.open(runtime.build(model, tmp_path, options).path, options) as engine:
        assert engine.device_memory_mb is None
        world.free -= 40 << 20
        engine.run(rows(1))
        assert engine.device_memory_mb == 40


def test_a_driver_that_is_too_old_is_named(runtime: TensorRt, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda, "driver_version", lambda: "11.4")
    trt = supported_module(runtime.load())
    error = failure(trt, "the builder stopped", "CUDA initialization failure with error: 35. Please check")
    assert str(error).endswith(f"{cuda.OLD_DRIVER} (it supports CUDA 11.4)")
    assert "edgevit lint" in str(failure(trt, "the builder stopped", "35 layers failed"))


def test_a_failed_inference_is_an_inference_error(runtime: TensorRt, model: Path, tmp_path: Path, world: World) -> None:
    options = BuildOptions()
    with runtime.open(runtime.build(model, tmp_path, options).path, options) as engine:
        world.broken = "execute"
        with pytest.raises(InferenceError, match="inference failed: execute is broken"):
            engine.run(rows(1))


@pytest.mark.parametrize("step", ["shape", "infer"])
def test_a_batch_that_is_refused_does_not_change_the_next_inference(
    runtime: TensorRt, model: Path, tmp_path: Path, world: World, step: str
) -> None:
    world.shape, options = (-1, 4), BuildOptions(dynamic_batch=BatchRange(1, 2, 8))
    with runtime.open(runtime.build(model, tmp_path, options).path, options) as engine:
        engine.run(rows(2))
        world.broken = step
        with pytest.raises(InferenceError, match=f"{step} is broken"):
            engine.run(rows(1))
        world.broken = ""
        np.testing.assert_array_equal(engine.run(rows(2, start=5))["y"], 2 * rows(2, start=5)["x"])


def test_errors_of_a_failed_capture_are_not_reported_later(
    runtime: TensorRt, model: Path, tmp_path: Path, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    trt: Any = runtime.load()

    def fail(_device: object, _work: object) -> None:
        process_logger(trt).log(trt.ILogger.ERROR, "operation not permitted when stream is capturing")

    monkeypatch.setattr(cuda_graph, "capture", fail)
    options = BuildOptions()
    with runtime.open(runtime.build(model, tmp_path, options).path, options) as engine:
        engine.run(rows(1))
        world.broken = "execute"
        with pytest.raises(InferenceError, match="inference failed: execute is broken"):
            engine.run(rows(1))


def test_an_engine_of_another_machine_is_never_loaded(
    runtime: TensorRt, model: Path, tmp_path: Path, world: World
) -> None:
    options = BuildOptions()
    path = runtime.build(model, tmp_path, options).path
    record = json.loads((tmp_path / "engine.json").read_text("utf-8"))
    (tmp_path / "engine.json").write_text(json.dumps(record | {"tensorrt": "10.3.0.26"}), "utf-8")
    world.raising = "runtime"  # loading it would fail
    with pytest.raises(BuildError, match=f"edgevit build {tmp_path}"):
        runtime.open(path, options)
    assert world.devices == 0


def test_a_closed_engine_is_an_error(runtime: TensorRt, model: Path, tmp_path: Path, world: World) -> None:
    options = BuildOptions()
    engine = runtime.open(runtime.build(model, tmp_path, options).path, options)
    engine.close()
    engine.close()
    assert world.devices == 0
    with pytest.raises(UsageError, match="the engine is closed"):
        engine.run(rows(1))
    with pytest.raises(UsageError, match="the engine is closed"):
        engine.executed_precision()


def test_tensorrts_warning_about_another_device_is_passed_on(
    runtime: TensorRt, model: Path, tmp_path: Path, world: World
) -> None:
    options = BuildOptions()
    path = runtime.build(model, tmp_path, options).path
    world.warning = "Using an engine plan file across different models of devices is not recommended"
    with pytest.warns(RuntimeWarning, match="TensorRT: .*different models of devices"):
        runtime.open(path, options).close()
    world.warning = "any other warning"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        runtime.open(path, options).close()


def test_the_board_and_power_mode_of_a_jetson_are_recorded(
    runtime: TensorRt, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "model").write_bytes(b"NVIDIA Jetson AGX Orin Developer Kit\0")
    (tmp_path / "status").write_text("pmode:0002 fmode:quiet\n")
    monkeypatch.setattr(worker, "DEVICE_TREE_MODEL", tmp_path / "model")
    monkeypatch.setattr(worker, "POWER_MODE_STATUS", tmp_path / "status")
    runtime.build(model, tmp_path, BuildOptions())
    record = json.loads((tmp_path / "engine.json").read_text("utf-8"))
    assert (record["board"], record["power_mode"]) == ("NVIDIA Jetson AGX Orin Developer Kit", "0002")


def test_a_truncated_engine_is_an_error(runtime: TensorRt, model: Path, tmp_path: Path) -> None:
    options = BuildOptions()
    path = runtime.build(model, tmp_path, options).path
    path.write_bytes(b"")
    with pytest.raises(
        BuildError, match=r"cannot load the engine on Orin \(compute capability 87\): .*; if it is damaged.* rebuild it"
    ):
        runtime.open(path, options)


# The machine


@pytest.mark.parametrize("version", ["8.5.2.2", "9.3.0", "12.1"])
def test_an_unsupported_version_is_an_error_on_import(monkeypatch: pytest.MonkeyPatch, version: str) -> None:
    module = ModuleType("tensorrt")
    vars(module)["__version__"] = version
    monkeypatch.setitem(sys.modules, "tensorrt", module)
    with pytest.raises(MissingError, match=version) as error:
        TensorRt().load()
    assert error.value.exit_status == 3


def test_a_missing_tensorrt_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)  # as if it were not installed
    monkeypatch.setattr(tensorrt, "is_jetson", lambda: False)
    with pytest.raises(MissingError, match=r"pip install 'edgevit\[trt\]'"):
        TensorRt().load()
    monkeypatch.setattr(tensorrt, "is_jetson", lambda: True)
    with pytest.raises(MissingError, match="not installed.*python3-libnvinfer.*--system-site-packages") as error:
        TensorRt().load()
    assert "pip install" not in str(error.value)
    monkeypatch.delitem(sys.modules, "tensorrt")
    monkeypatch.setattr(TensorRt, "version", lambda _runtime: None)
    assert "pip install" not in usable_version(TensorRt())[1]  # as edgevit doctor shows it


def test_importing_the_runtime_imports_neither_tensorrt_nor_torch_nor_onnx() -> None:
    code = (
        "import sys, edgevit.runtimes.tensorrt.runtime; assert not {'tensorrt', 'torch', 'onnx'} & sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(edgevit.__file__).parents[1])
