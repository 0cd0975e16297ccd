"""TensorRT-RTX: real builds without a GPU, and every way in which the subprocess can fail."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import TypeAlias

import numpy as np
import pytest

from edgevit.errors import BuildError, MissingError, PrecisionError, UsageError
from edgevit.export.graph import OnnxGraph
from edgevit.runtimes.base import BatchRange, BuildOptions
from edgevit.runtimes.onnxruntime import OnnxFile
from edgevit.runtimes.tensorrt import cuda
from edgevit.runtimes.tensorrt_rtx import compiler
from edgevit.runtimes.tensorrt_rtx.capabilities import COMPUTE_CAPABILITIES
from edgevit.runtimes.tensorrt_rtx.kernels import plan
from edgevit.runtimes.tensorrt_rtx.runtime import TensorRtRtx, built_precision
from tests.helpers.onnx_files import lstm, save_graph, shift_block
from tests.helpers.skips import needs_rtx

FP32 = BuildOptions(compute_capabilities=(86,))
FP16 = BuildOptions(precision="fp16", compute_capabilities=(86,))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    place = tmp_path / "bundle"
    place.mkdir()
    return place


def relu(path: Path, batch: str = "1") -> Path:
    return save_graph(
        path, f"g (float[{batch}, 4, 8, 8] x) => (float[{batch}, 4, 8, 8] y)", {"act/Relu": "y = Relu(x)"}
    )


# Compute capabilities


@pytest.mark.parametrize("capabilities", [(86,), (80, 86, 89, 120, 121), None])
def test_supported_compute_capabilities_are_accepted(capabilities: tuple[int, ...] | None) -> None:
    assert BuildOptions(compute_capabilities=capabilities).compute_capabilities == capabilities


@pytest.mark.parametrize(
    ("capabilities", "words"),
    [
        ((87,), "no compute capability 87.*Jetson Orin.*--fmt trt"),
        ((86, 90), "no compute capability 90"),
        ((86, 86), "each compute capability once"),
        ((), "each compute capability once"),
        ((75,), "no fp32 matmuls for compute capability 75.*fp16"),
    ],
)
def test_unsupported_compute_capabilities_are_an_error(capabilities: tuple[int, ...], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        BuildOptions(compute_capabilities=capabilities)


def test_turing_supports_fp16() -> None:
    assert BuildOptions(precision="fp16", compute_capabilities=(75,)).compute_capabilities == (75,)


# Builds


@needs_rtx
@pytest.mark.parametrize(("capabilities", "words"), [(None, "portable default"), ((86, 89, 120), "sm 86, 89, 120")])
def test_a_build_needs_no_gpu(
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capabilities: tuple[int, ...] | None,
    words: str,
) -> None:
    monkeypatch.delitem(sys.modules, "tensorrt_rtx", raising=False)  # other tests import it
    options = BuildOptions(precision="fp16", compute_capabilities=capabilities)
    made = TensorRtRtx().build(shift_block(tmp_path / "m.onnx"), folder, options)
    assert [file.name for file in made.files] == ["model.engine", "model.kernels.json"]
    assert sorted(file.name for file in folder.iterdir()) == ["model.engine", "model.kernels.json"]
    assert made.path.read_bytes().startswith(b"vtrt")
    assert words in made.notes[0]
    assert "tensorrt_rtx" not in sys.modules  # its native state stays in the subprocess


@needs_rtx
def test_the_kernel_list_and_precision_are_stored_beside_the_engine(folder: Path, tmp_path: Path) -> None:
    made = TensorRtRtx().build(shift_block(tmp_path / "m.onnx"), folder, FP16)
    kernels = json.loads(made.files[1].read_text())
    assert kernels["precisions"] == {"fp16": 1}
    assert built_precision(made.path).actual == "fp16"  # without a GPU
    with pytest.raises(PrecisionError, match="requested fp32"):
        built_precision(made.path).require("fp32", runtime="TensorRT-RTX")
    made.files[1].unlink()
    assert built_precision(made.path).actual == "unknown"
    assert "proxy" in kernels["proxy"].lower()


@needs_rtx
def test_a_graph_with_a_loop_is_built(folder: Path, tmp_path: Path) -> None:
    made = TensorRtRtx().build(lstm(tmp_path / "m.onnx"), folder, FP32)
    assert built_precision(made.path).layers == {"fp32": 1}


def test_an_unknown_kernel_list_does_not_cost_the_engine(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    listed = compiler.Compiled(
        engine=b"vtrt", layers="Layers:\nName: a, LayerType: kgen, Reads: []", operators={}, misread=(),
        dynamic_batch=False, version="1.8", build_s=1.0,
    )  # fmt: skip
    monkeypatch.setattr("edgevit.runtimes.tensorrt_rtx.runtime.compile_onnx", lambda *_, **__: listed)
    made = TensorRtRtx().build(tmp_path / "m.onnx", folder, FP16)
    assert [file.name for file in folder.iterdir()] == [file.name for file in made.files] == ["model.engine"]
    assert made.path.read_bytes() == b"vtrt"
    assert "the precision of the kernels is not reported: cannot parse the kernel list" in made.notes[1]
    assert built_precision(made.path).summary == "not reported"


@needs_rtx
def test_builds_are_deterministic(folder: Path, tmp_path: Path) -> None:
    model = shift_block(tmp_path / "m.onnx")
    first = TensorRtRtx().build(model, folder, FP16).path.read_bytes()
    assert TensorRtRtx().build(model, folder, FP16).path.read_bytes() == first


@needs_rtx
def test_a_dynamic_batch_becomes_a_range(folder: Path, tmp_path: Path) -> None:
    options = BuildOptions(dynamic_batch=BatchRange(1, 2, 4), compute_capabilities=(86,))
    made = TensorRtRtx().build(relu(tmp_path / "m.onnx", "batch"), folder, options)
    (kernel,) = json.loads(made.files[1].read_text())["kernels"]
    assert kernel["inputs"][0]["shape"] == [2, 4, 8, 8]  # for the optimum batch


@needs_rtx
@pytest.mark.parametrize(
    ("shape", "words"),
    [
        ("1, 4, 8, 8", "the graph has a fixed batch.*--dynamic-batch"),
        ("batch, 4, h, 8", "only the batch may be dynamic"),
    ],
)
def test_a_range_requires_a_dynamic_batch_and_nothing_else_dynamic(
    folder: Path, tmp_path: Path, shape: str, words: str
) -> None:
    model = save_graph(tmp_path / "m.onnx", f"g (float[{shape}] x) => (float[{shape}] y)", {"a/Relu": "y = Relu(x)"})
    options = BuildOptions(dynamic_batch=BatchRange(1, 2, 4), compute_capabilities=(86,))
    with pytest.raises(BuildError, match=words):
        TensorRtRtx().build(model, folder, options)
    assert not list(folder.iterdir())


@needs_rtx
def test_an_int8_build_notes_that_its_kernels_do_not_show_its_speed(folder: Path, tmp_path: Path) -> None:
    model = save_graph(
        tmp_path / "m.onnx",
        """g (float[1, 16, 8, 8] x) => (float[1, 16, 8, 8] y)
        <float scale = {0.05}, int8 zero = {0}, float weight_scale = {0.01}>""",
        {
            "a/QuantizeLinear": "q = QuantizeLinear(x, scale, zero)",
            "a/DequantizeLinear": "d = DequantizeLinear(q, scale, zero)",
            "a/QuantizeLinear_1": "p = QuantizeLinear(w, weight_scale, zero)",
            "a/DequantizeLinear_1": "v = DequantizeLinear(p, weight_scale, zero)",
            "a/Conv": "y = Conv(d, v)",
        },
        {"w": (16, 16, 1, 1)},
    )
    made = TensorRtRtx().build(model, folder, BuildOptions(precision="int8", compute_capabilities=(86,)))
    assert any("does not show their speed" in note for note in made.notes)


# Rejected graphs

Graph: TypeAlias = tuple[str, dict[str, str], dict[str, tuple[int, ...]]]
SCATTER: Graph = (
    "g (float[1, 4, 8, 8] x) => (float[1, 4, 8, 8] y) <int64[1, 2] where = {0, 1}>",
    {"stem/Relu": "r = Relu(x)", "blocks.0.mix/ScatterND": 'y = ScatterND <reduction = "add"> (r, where, update)'},
    {"update": (1, 8, 8)},
)
MIXED: Graph = (
    "g (float[1, 4, 8, 8] x) => (float[1, 4, 8, 8] y)",
    {"blocks.0/Cast": "h = Cast <to = 10> (x)", "blocks.0.mlp/Add": "y = Add(h, x)"},
    {},
)
PLUGIN: Graph = ("g (float[2, 2] x) => (float[2, 2] y)", {"my.op/Mine": "y = nobody.Mine(x)"}, {})
SMOOTH: Graph = (
    "g (float[1, 4, 8, 8] x) => (float[1, 4, 16, 16] y) <float[4] scales = {1, 1, 2, 2}>",
    {"up/Resize": 'y = Resize <antialias = 1, mode = "cubic"> (x, , scales)'},
    {},
)
ELEMENTS: Graph = (  # the parser's error names no node
    "g (float[1, 8] x) => (float[1, 8] y) <int64[1, 8] where = {0, 1, 2, 3, 4, 5, 6, 7}>",
    {
        "stem/Relu": "r = Relu(x)",
        "head.pool/ScatterElements": 's = ScatterElements <axis = 1, reduction = "add"> (x, where, r)',
        "out/Relu": "y = Relu(s)",
    },
    {},
)
UNKNOWN: Graph = ("g (float[2, 2] x) => (float y)", {"head.det/Det": "y = Det(x)"}, {})


@needs_rtx
@pytest.mark.parametrize(
    ("graph", "words"),
    [
        (
            SCATTER,
            r"blocks\.0\.mix/ScatterND \(ScatterND, PyTorch module blocks\.0\.mix\): .*reduction is not supported",
        ),
        (MIXED, r"blocks\.0\.mlp/Add \(Add, PyTorch module blocks\.0\.mlp\): .*types Half and Float; .*Cast"),
        (PLUGIN, r"my\.op/Mine \(Mine, PyTorch module my\.op\): this operator is not supported; rewrite"),
        (SMOOTH, r"up/Resize \(Resize, PyTorch module up\): Antialiasing is not supported currently; rewrite"),
        (ELEMENTS, r"head\.pool/ScatterElements \(ScatterElements, PyTorch module head\.pool\): .*reduction type"),
        (UNKNOWN, r"head\.det/Det \(Det, PyTorch module head\.det\): this operator is not supported"),
    ],
)
def test_a_rejected_node_is_named(folder: Path, tmp_path: Path, graph: Graph, words: str) -> None:
    signature, nodes, weights = graph
    model = save_graph(tmp_path / "bad.onnx", signature, nodes, weights)
    with pytest.raises(BuildError, match=r"bad\.onnx, node " + words) as raised:
        TensorRtRtx().build(model, folder, FP32)
    assert raised.value.exit_status == 5
    assert "\n" not in str(raised.value)
    assert "cudaError" not in str(raised.value)
    assert not list(folder.iterdir())


@needs_rtx
@pytest.mark.parametrize("content", [b"", b"hello" * 50, b"\x08\x0a\x3a\xff\xff\xff\x7f"])
def test_a_file_that_is_not_a_model_is_rejected(folder: Path, tmp_path: Path, content: bytes) -> None:
    model = tmp_path / "junk.onnx"
    model.write_bytes(content)
    with pytest.raises(BuildError, match=r"junk\.onnx: .*ONNX model.*; export it again"):
        TensorRtRtx().build(model, folder, FP32)


def norm(path: Path, groups: int, opset: int) -> Path:
    """Save a GroupNormalization of 4 channels; its scale is per group in opset 18, per channel in 21."""
    count = groups if opset == 18 else 4
    nodes = {"blocks.0.norm/GroupNormalization": f"y = GroupNormalization <num_groups = {groups}> (x, s, b)"}
    signature = "g (float[1, 4, 8, 8] x) => (float[1, 4, 8, 8] y)"
    return save_graph(path, signature, nodes, {"s": (count,), "b": (count,)}, opset=opset)


@needs_rtx
@pytest.mark.parametrize("opset", [18, 21])
def test_the_group_norm_that_the_parser_misreads_is_rejected(folder: Path, tmp_path: Path, opset: int) -> None:
    with pytest.raises(BuildError, match=r"issue 4756.*blocks\.0\.norm/GroupNormalization.*InstanceNormalization"):
        TensorRtRtx().build(norm(tmp_path / "m.onnx", 1, opset), folder, FP32)
    assert not list(folder.iterdir())


@needs_rtx
@pytest.mark.parametrize("groups", [2, 4])
def test_group_norms_that_the_parser_reads_correctly_are_accepted(folder: Path, tmp_path: Path, groups: int) -> None:
    assert TensorRtRtx().build(norm(tmp_path / "m.onnx", groups, 21), folder, FP32).path.exists()


# The subprocess


@needs_rtx
@pytest.mark.parametrize(
    ("number", "words"),
    [
        (signal.SIGKILL, "was killed, as systems do when memory runs out; free some"),
        (signal.SIGSEGV, "crashed with SIGSEGV"),
    ],
)
def test_a_subprocess_that_dies_is_a_build_error(
    folder: Path, tmp_path: Path, number: signal.Signals, words: str
) -> None:
    model, found = shift_block(tmp_path / "m.onnx"), []

    def build() -> None:
        try:
            TensorRtRtx().build(model, folder, FP16)
        except BuildError as error:
            found.append(str(error))

    thread = threading.Thread(target=build)
    thread.start()
    os.kill(our_compiler(), number)
    thread.join(30)
    assert len(found) == 1
    assert words in found[0]
    assert "m.onnx" in found[0]
    assert not list(folder.iterdir())


def is_our_compiler(entry: Path) -> bool:
    try:
        parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
        return parent == os.getpid() and b"tensorrt_rtx.compiler" in (entry / "cmdline").read_bytes()
    except OSError:  # the process has ended
        return False


def our_compiler() -> int:
    """Wait for this process's compiler subprocess and return its process id."""
    until = time.monotonic() + 20
    while time.monotonic() < until:
        for entry in Path("/proc").glob("[0-9]*"):
            if is_our_compiler(entry):
                return int(entry.name)
        time.sleep(0.005)
    raise AssertionError("no subprocess was started")


@needs_rtx
def test_a_build_that_takes_too_long_is_stopped(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(BuildError, match=r"did not finish m\.onnx in 0\.05 s"):
        TensorRtRtx().build(relu(tmp_path / "m.onnx"), folder, FP32, timeout_s=0.05)
    assert not list(folder.iterdir())


def test_a_missing_package_says_how_to_install_it(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compiler, "MODULE", "tensorrt_rtx_that_is_not_there")
    with pytest.raises(MissingError, match=r"pip install 'edgevit\[trt-rtx\]'") as raised:
        TensorRtRtx().build(relu(tmp_path / "m.onnx"), folder, FP32)
    assert raised.value.exit_status == 3


@pytest.mark.parametrize("broken", ["ImportError('libtensorrt_rtx.so.1: cannot open')", "ModuleNotFoundError('x')"])
def test_a_package_that_cannot_be_imported_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken: str
) -> None:
    (tmp_path / "tensorrt_rtx.py").write_text(f"raise {broken}")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(MissingError, match=r"cannot import TensorRT-RTX .*pip install 'edgevit\[trt-rtx\]'"):
        plan(relu(tmp_path / "m.onnx"))


@pytest.mark.parametrize("reason", ["Unexpected exception std::bad_alloc", "OutOfMemory (Requested size was 8 bytes)"])
def test_running_out_of_memory_does_not_blame_the_module(reason: str) -> None:
    message = compiler._refusal(Path("m.onnx"), [{"node": "", "operator": "", "reason": reason}])
    assert "free some memory" in message
    assert "rewrite" not in message


# Opening


def engine_file(path: Path, *, size: int | None = None, magic: bytes = b"vtrt", cut: int = 0) -> Path:
    """Write a file with the header of a TensorRT-RTX 1.7 engine and no engine in it."""
    content = bytearray(4096)
    content[:4] = magic
    content[16:24] = (len(content) if size is None else size).to_bytes(8, "little")
    path.write_bytes(bytes(content[: len(content) - cut]))
    return path


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"cut": 1}, "truncated: 4095 of 4096 bytes; export or copy the bundle again"),
        ({"cut": 4090}, r"is not a TensorRT-RTX engine \(6 bytes\)"),
        ({"cut": 4096}, r"is not a TensorRT-RTX engine \(0 bytes\)"),
        ({"magic": b"ftrt"}, "is not a TensorRT-RTX engine"),
        ({"size": 5000}, "truncated: 4096 of 5000 bytes"),
    ],
)
def test_a_damaged_engine_is_an_error_before_it_is_loaded(tmp_path: Path, changes: dict[str, int], words: str) -> None:
    path = engine_file(tmp_path / "model.engine", **changes)  # type: ignore[arg-type]
    with pytest.raises(BuildError, match=words):
        TensorRtRtx().open(path, FP32)


def test_a_missing_engine_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(BuildError, match="cannot read the engine"):
        TensorRtRtx().open(tmp_path / "model.engine", FP32)


@pytest.mark.skipif(cuda.has_gpu(), reason="this machine has an NVIDIA GPU")
def test_loading_requires_a_gpu(tmp_path: Path) -> None:
    with pytest.raises(MissingError, match="no NVIDIA driver|no usable NVIDIA GPU") as raised:
        TensorRtRtx().open(engine_file(tmp_path / "model.engine"), FP32)
    assert raised.value.exit_status == 3
    assert "\n" not in str(raised.value)


@needs_rtx
def test_a_truncated_engine_is_an_error(folder: Path, tmp_path: Path) -> None:
    path = TensorRtRtx().build(relu(tmp_path / "m.onnx"), folder, FP32).path
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])
    with pytest.raises(BuildError, match=f"truncated: {len(whole) - 1} of {len(whole)} bytes"):
        TensorRtRtx().open(path, FP32)


@needs_rtx
@pytest.mark.skipif(not cuda.has_gpu(), reason="no NVIDIA GPU")
def test_an_engine_computes_what_its_onnx_file_computes(folder: Path, tmp_path: Path) -> None:
    with cuda.Device() as device:
        capability = device.compute_capability
    model = shift_block(tmp_path / "m.onnx", "float")
    feeds = {"x": np.random.default_rng(0).standard_normal((1, 24, 16, 16)).astype(np.float32)}
    made = TensorRtRtx().build(model, folder, BuildOptions())
    if capability not in COMPUTE_CAPABILITIES:
        with pytest.raises(BuildError, match="does not support this compute capability.*use --fmt trt"):
            TensorRtRtx().open(made.path, BuildOptions())
        pytest.skip(f"TensorRT-RTX does not run on GPUs of compute capability {capability}")
    with TensorRtRtx().open(made.path, BuildOptions()) as engine, OnnxFile().open(model, BuildOptions()) as reference:
        np.testing.assert_allclose(engine.run(feeds)["y"], reference.run(feeds)["y"], rtol=0, atol=1e-4)
        assert engine.executed_precision().actual == "fp32"


@needs_rtx
@pytest.mark.parametrize(
    ("cls", "names"),
    [
        ("Runtime", ["deserialize_cuda_engine"]),
        (
            "ICudaEngine",
            ["create_execution_context", "num_io_tensors", "get_tensor_name", "get_tensor_mode", "get_tensor_shape",
             "get_tensor_dtype", "get_tensor_profile_shape"],
        ),
        ("IExecutionContext", ["set_input_shape", "set_tensor_address", "execute_async_v3", "get_tensor_shape"]),
        ("TensorIOMode", ["INPUT"]),
    ],
)  # fmt: skip
def test_names_used_on_a_gpu_only_exist_in_the_package(cls: str, names: list[str]) -> None:
    trt = pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed here")
    assert [name for name in names if not hasattr(getattr(trt, cls), name)] == []


# Exported graphs


def test_graphs_for_trt_rtx_have_no_group_normalization(tmp_path: Path) -> None:
    """TensorRT-RTX computes GroupNormalization with one group wrong."""
    from edgevit.export import passes

    graph = passes.specialize(OnnxGraph.load(norm(tmp_path / "m.onnx", 1, 21)), "trt-rtx")
    assert "GroupNormalization" not in graph.operators
