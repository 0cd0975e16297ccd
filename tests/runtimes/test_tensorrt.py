"""TensorRT without TensorRT: every decision before a build and after it, and the whole road on a stand-in.

The stand-in (`fake_tensorrt.py`) has the names of one version's API, and no others; it computes nothing. What a real
TensorRT and a real GPU do is not shown here.
"""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import pytest

from edgevit.errors import BuildError, BundleError, MissingError, PrecisionError, UsageError
from edgevit.runtimes.base import BatchRange, BuildOptions
from edgevit.runtimes.tensorrt_plan import (
    COPIES_OF_MODEL,
    MB,
    EngineRecord,
    Memory,
    executed_precision,
    host_free_bytes,
    profile_shapes,
    supported_line,
    tensor_spec,
    trtexec_line,
    workspace_bytes,
)
from edgevit.tensors import TensorSpec

GB = 1024 * MB
FIXED = TensorSpec("x", "float32", (1, 3, 224, 224))
DYNAMIC = TensorSpec("x", "float32", ("batch", 3, 224, 224))
RANGE = BuildOptions(dynamic_batch=BatchRange(1, 4, 16))


# Versions


@pytest.mark.parametrize(
    ("version", "line"),
    [
        ("8.6.1", "8.6"),
        ("8.6.2.3", "8.6"),
        ("10.0.1", "10"),
        ("10.3.0.30", "10"),
        ("10.16.1.11", "10"),
        ("11.4.0", "11"),
    ],
)
def test_a_version_that_is_built_with(version: str, line: str) -> None:
    assert supported_line(version) == line


@pytest.mark.parametrize(
    ("version", "words"),
    [
        ("8.5.2.2", "JetPack 5, with Python 3.8"),
        ("8.2.1", "install JetPack 6"),
        ("8.7.0", "not with 8.7.0"),
        ("9.3.0", "not with 9.3.0"),
        ("12.0.0", "newer edgevit"),
        ("unknown", "older system"),
    ],
)
def test_another_version_is_refused_by_name(version: str, words: str) -> None:
    with pytest.raises(MissingError, match=words):
        supported_line(version)


# Memory


def memory(device: int, host: int = 64 * GB, *, shared: bool = False) -> Memory:
    return Memory(device_free=device, host_free=host, shared=shared)


@pytest.mark.parametrize(
    ("asked_mb", "free", "model_mb", "workspace_mb"),
    [
        (None, memory(80 * GB), 100, 4096),  # bounded
        (None, memory(2 * GB), 100, (2048 - 600 - 200) // 2),  # half of what is left
        (None, memory(3 * GB, 3 * GB, shared=True), 100, (3072 - 600 - 100 * COPIES_OF_MODEL) // 2),
        (512, memory(80 * GB), 100, 512),  # as asked
        (None, memory(870 * MB), 100, 64),  # the least
    ],
)
def test_the_workspace_is_bounded_by_free_memory(
    asked_mb: int | None, free: Memory, model_mb: int, workspace_mb: int
) -> None:
    assert workspace_bytes(asked_mb, free, model_mb * MB) == workspace_mb * MB


@pytest.mark.parametrize(
    ("asked_mb", "free", "words"),
    [
        (None, memory(700 * MB), "700 MB of GPU memory is free"),
        (8192, memory(4 * GB), "a workspace of 8192 MB"),
        (None, memory(8 * GB, 900 * MB, shared=True), "900 MB of GPU memory is free"),
        (None, memory(8 * GB, 300 * MB), "needs 400 MB of memory"),
    ],
)
def test_a_build_that_would_be_killed_is_not_begun(asked_mb: int | None, free: Memory, words: str) -> None:
    with pytest.raises(BuildError, match=words):
        workspace_bytes(asked_mb, free, 100 * MB)


def test_free_host_memory_is_what_linux_can_give() -> None:
    meminfo = (
        "MemTotal:  16000000 kB\nMemFree:  100 kB\nMemAvailable:  4000 kB\nSwapTotal:  900 kB\nSwapFree:  500 kB\n"
    )
    assert host_free_bytes(meminfo) == 4500 * 1024
    if Path("/proc/meminfo").exists():
        assert host_free_bytes(Path("/proc/meminfo").read_text("ascii")) > 100 * MB


# The batch


def test_a_dynamic_batch_makes_a_profile_for_each_dynamic_input() -> None:
    mask = TensorSpec("mask", "int64", (4, 4))
    assert profile_shapes([DYNAMIC, mask], RANGE) == {"x": ((1, 3, 224, 224), (4, 3, 224, 224), (16, 3, 224, 224))}
    assert profile_shapes([FIXED], BuildOptions()) == {}


@pytest.mark.parametrize(
    ("spec", "options", "words"),
    [(DYNAMIC, BuildOptions(), "give its bounds with --dynamic-batch"), (FIXED, RANGE, "--dynamic-batch 1:4:16")],
)
def test_a_graph_and_options_that_disagree_about_the_batch_are_refused(
    spec: TensorSpec, options: BuildOptions, words: str
) -> None:
    with pytest.raises(BuildError, match=words):
        profile_shapes([spec], options)


def test_ends_are_told_in_our_words() -> None:
    assert tensor_spec("x", "FLOAT", (-1, 3, 8, 8)) == TensorSpec("x", "float32", ("batch", 3, 8, 8))
    assert tensor_spec("ids", "INT64", (1, 7)) == TensorSpec("ids", "int64", (1, 7))
    with pytest.raises(BuildError, match="float32 ends"):
        tensor_spec("x", "BF16", (1, 3))
    with pytest.raises(BuildError, match="only its first dimension"):
        tensor_spec("x", "FLOAT", (-1, 3, -1, -1))


# What an engine is bound to

ORIN = EngineRecord(tensorrt="10.3.0.30", compute_capability="8.7", gpu="Orin", system="Linux-aarch64")


def test_a_record_is_written_and_read(tmp_path: Path) -> None:
    path = ORIN.write(tmp_path, layers={"fp16": 3})
    assert EngineRecord.read(tmp_path / "model.engine") == ORIN
    assert json.loads(path.read_text("utf-8"))["layers"] == {"fp16": 3}
    assert ORIN.notes == ("tensorrt=10.3.0.30", "compute_capability=8.7", "gpu=Orin", "system=Linux-aarch64")


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"tensorrt": "10.3.0.26"}, "TensorRT 10.3.0.30, here 10.3.0.26"),
        ({"tensorrt": "11.4.1"}, "here 11.4.1"),
        ({"compute_capability": "11.0"}, "compute capability 8.7, here 11.0"),
        ({"gpu": "NVIDIA Thor"}, "GPU Orin, here NVIDIA Thor"),
        ({"system": "Linux-x86_64"}, "system Linux-aarch64, here Linux-x86_64"),
    ],
)
def test_an_engine_from_elsewhere_is_refused_with_the_command_that_builds_it(
    changed: dict[str, str], words: str
) -> None:
    values = {name: getattr(ORIN, name) for name in EngineRecord.__slots__}
    ORIN.require(ORIN, Path("vit-fp16-trt/model.engine"))
    with pytest.raises(BuildError, match=f"{words}.*edgevit build vit-fp16-trt$"):
        ORIN.require(EngineRecord(**(values | changed)), Path("vit-fp16-trt/model.engine"))


@pytest.mark.parametrize(
    "content",
    [None, "", "[]", "{}", '{"schema_version": 1}', '{"schema_version": 2, "tensorrt": "10.3"}', "\ufffd{"],
)
def test_an_engine_that_nothing_tells_of_is_refused(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "engine.json").write_text(content, "utf-8")
    with pytest.raises(BundleError, match="edgevit build"):
        EngineRecord.read(tmp_path / "model.engine")


# What the engine runs

LINEAR, CHANNELS = "Row major linear FP32", "Channel major FP16 format where channel % 8 == 0"
INT8 = "Thirty-two wide channel vectorized row major Int8 format."


def layer(kind: str, *types: str, key: str = "Format/Datatype", **more: Any) -> dict[str, Any]:
    """A layer as the inspector tells it, with inputs of `types`."""
    inputs = [{"Name": f"in{index}", "Dimensions": [1, 8], key: told} for index, told in enumerate(types)]
    return {"Name": "layer", "LayerType": kind, "Inputs": inputs, "Outputs": inputs, "TacticValue": "0x0", **more}


@pytest.mark.parametrize(
    ("told", "found"),
    [
        # TensorRT 8.6 and 10: convolutions of its own libraries
        (layer("CaskConvolution", LINEAR, ParameterType="Convolution"), {"fp32": 1}),
        (layer("CaskConvolution", CHANNELS, ParameterType="Convolution"), {"fp16": 1}),
        (layer("CaskConvolution", INT8, ParameterType="Convolution", Weights={"Type": "Int8"}), {"int8": 1}),
        (layer("CaskConvolution", "Channel major BFloat16 format where channel % 8 == 0"), {"bf16": 1}),
        (layer("CaskConvolution", LINEAR, TacticName="sm80_xmma_fprop_implicit_gemm_tf32f32_tf32f32_f32"), {"tf32": 1}),
        (layer("CaskConvolution", LINEAR, TacticName="sm80_xmma_fprop_implicit_gemm_f32f32_f32f32_f32"), {"fp32": 1}),
        (layer("MatrixMultiply", "Row major linear FP16 format"), {"fp16": 1}),
        (layer("CaskDeconvolutionV2", LINEAR), {"fp32": 1}),
        # TensorRT 10: what its compiler made
        (layer("gemm", "Half", "Half", TacticName="sm80_xmma_gemm_f16f16_f16f16_f16_nn_n"), {"fp16": 1}),
        (layer("fusion", "Float", Name="__myl_FcCastAddErf_myl0_9"), {"fp32": 1}),
        (layer("kgen", "Half", Name="_gemm_mha_v2_myl0_4", TacticName="_gemm_mha_v2_0x1"), {"fp16": 1}),
        (layer("fusion", "FP8", TacticName="sm89_xmma_gemm_e4m3e4m3_e4m3f32_f32"), {"fp8": 1}),
        # TensorRT 11 tells type and format apart
        (layer("conv", "Half", key="Datatype"), {"fp16": 1}),
        # The type of a dynamic shape is not told; the weights' is
        (layer("CaskConvolution", "N/A due to dynamic shapes", Weights={"Type": "Half", "Count": 9}), {"fp16": 1}),
        (layer("CaskConvolution", "Unknown format", Outputs=[]), {"unknown": 1}),
        # What does not multiply
        (layer("kgen", "Half", Name="__myl_MoveConc_myl0_1"), {}),
        (layer("kgen", "Half", Name="__myl_AddSqrtDivMulCastAdd", TacticName="__myl_AddSqrtDiv_0x23"), {}),
        (layer("Reformat", LINEAR, Name="Reformatting CopyNode for Input Tensor 0 to /stem/Conv"), {}),
        (layer("PointWiseV2", CHANNELS, Name="PWN(/conv1/Conv)"), {}),
        (layer("kgen", "Half", Name="/conv_gemm/Add"), {}),
        # TensorRT 8.6 makes one layer of a transformer and tells nothing of its inside
        (layer("Myelin", LINEAR, Name="{ForeignNode[/MatMul.../Softmax]}"), {}),
        ("only_a_name + of_a_layer", {}),
    ],
)
def test_the_precision_that_runs_is_read_from_the_inspector(told: Any, found: dict[str, int]) -> None:
    assert dict(executed_precision(json.dumps({"Layers": [told], "Bindings": ["x"]})).layers) == found


def test_layers_are_counted_by_type() -> None:
    layers = [layer("gemm", "Half")] * 3 + [layer("CaskConvolution", LINEAR)] + [layer("kgen", "Float")] * 5
    found = executed_precision(json.dumps({"Layers": layers}))
    assert (dict(found.layers), found.found) == ({"fp16": 3, "fp32": 1}, "fp16")


@pytest.mark.parametrize("text", ["", "not JSON", "[]", "{}", '{"Layers": 3}'])
def test_an_answer_that_is_not_the_inspectors_is_an_error(text: str) -> None:
    with pytest.raises(BuildError, match="engine inspector"):
        executed_precision(text)


@pytest.mark.parametrize(
    ("asked", "told", "passes"),
    [
        ("fp16", layer("gemm", "Half"), True),
        ("fp16", layer("gemm", "Float"), False),  # what TensorRT 11 does with an fp32 graph, whatever was wished for
        ("fp32", layer("gemm", "Float"), True),
        ("fp32", layer("gemm", "Half"), False),
        ("fp32", layer("gemm", "Float", TacticName="sm80_xmma_gemm_tf32f32"), False),
        ("int8", layer("gemm", "Int8"), True),
        ("int8", layer("gemm", "Half"), False),
    ],
)
def test_another_precision_than_asked_for_is_an_error(asked: Any, told: dict[str, Any], passes: bool) -> None:
    found = executed_precision(json.dumps({"Layers": [told]}))
    if passes:
        found.require(asked, runtime="TensorRT")
    else:
        with pytest.raises(PrecisionError, match=f"{asked} was asked for"):
            found.require(asked, runtime="TensorRT")


# trtexec

MODEL = Path("vit-fp16-trt/model.onnx")
ALWAYS = ["--useCudaGraph", "--useSpinWait", "--noDataTransfers", "--separateProfileRun"]


@pytest.mark.parametrize("version", ["8.6.2", "10.3.0", "11.4.1"])
@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_the_trtexec_command_means_the_same_in_every_version(version: str, precision: Any) -> None:
    flags = shlex.split(trtexec_line(MODEL, BuildOptions(precision=precision), version))
    assert flags[:2] == ["trtexec", "--onnx=vit-fp16-trt/model.onnx"]
    assert all(flags.count(flag) == 1 for flag in ALWAYS)
    assert ("--stronglyTyped" in flags) == (version != "8.6.2")
    assert ("--fp16" in flags) == (version == "8.6.2" and precision == "fp16")
    assert ("--int8" in flags) == (version == "8.6.2" and precision == "int8")
    assert ("--noTF32" in flags) == (precision == "fp32")
    assert "--saveEngine=vit-fp16-trt/model.engine" in flags


def test_no_flag_that_11_removed_stands_in_its_command() -> None:
    gone = {"--fp16", "--bf16", "--fp8", "--int4", "--best", "--calib", "--int8", "--precisionConstraints"}
    for precision in ("fp32", "fp16", "int8"):
        flags = shlex.split(trtexec_line(MODEL, BuildOptions(precision=precision), "11.4"))  # type: ignore[arg-type]
        assert not gone & {flag.partition("=")[0] for flag in flags}


def test_a_dynamic_batch_names_its_shapes() -> None:
    options = BuildOptions(precision="fp16", dynamic_batch=BatchRange(1, 4, 16), workspace_mb=512)
    flags = shlex.split(trtexec_line(MODEL, options, "10.3", inputs=[DYNAMIC]))
    for flag in ("--minShapes=x:1x3x224x224", "--optShapes=x:4x3x224x224", "--maxShapes=x:16x3x224x224",
                 "--shapes=x:4x3x224x224", "--memPoolSize=workspace:512M"):  # fmt: skip
        assert flag in flags
    with pytest.raises(UsageError, match="inputs"):
        trtexec_line(MODEL, options, "10.3")


def test_a_path_with_spaces_survives_the_shell() -> None:
    line = trtexec_line(Path("my model/model.onnx"), BuildOptions(), "10.3")
    assert "--onnx=my model/model.onnx" in shlex.split(line)


def test_no_command_for_a_version_that_is_refused() -> None:
    with pytest.raises(MissingError, match="JetPack 5"):
        trtexec_line(MODEL, BuildOptions(), "8.5.2")
