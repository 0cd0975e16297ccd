"""The equivalent trtexec commands."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import pytest

from edgevit.errors import MissingError, UsageError
from edgevit.runtimes.base import BatchRange, BuildOptions
from edgevit.runtimes.tensorrt.trtexec import device_steps, trtexec_build_command, trtexec_time_command
from edgevit.types import TensorSpec

DYNAMIC = TensorSpec("x", "float32", ("batch", 3, 224, 224))
RANGE = BuildOptions(dynamic_batch=BatchRange(1, 4, 16))


MODEL = Path("vit-fp16-trt/model.onnx")
ALWAYS = ["--useCudaGraph", "--useSpinWait", "--noDataTransfers", "--separateProfileRun"]


@pytest.mark.parametrize("version", ["8.6.2", "10.3.0", "11.4.1"])
@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_the_trtexec_command_means_the_same_in_every_version(version: str, precision: Any) -> None:
    flags = shlex.split(trtexec_build_command(MODEL, BuildOptions(precision=precision), version))
    assert flags[:2] == ["trtexec", "--onnx=vit-fp16-trt/model.onnx"]
    assert all(flags.count(flag) == 1 for flag in ALWAYS)
    assert ("--stronglyTyped" in flags) == (version != "8.6.2")
    assert ("--fp16" in flags) == (version == "8.6.2" and precision == "fp16")
    assert ("--int8" in flags) == (version == "8.6.2" and precision == "int8")
    assert ("--noTF32" in flags) == (precision == "fp32")
    assert "--saveEngine=vit-fp16-trt/trtexec.engine" in flags  # the bundle's engine stays as it was verified


def test_the_command_for_11_has_no_flag_that_11_removed() -> None:
    gone = {"--fp16", "--bf16", "--fp8", "--int4", "--best", "--calib", "--int8", "--precisionConstraints"}
    for precision in ("fp32", "fp16", "int8"):
        flags = shlex.split(trtexec_build_command(MODEL, BuildOptions(precision=precision), "11.4"))
        assert not gone & {flag.partition("=")[0] for flag in flags}


def test_a_dynamic_batch_names_its_shapes() -> None:
    options = BuildOptions(precision="fp16", dynamic_batch=BatchRange(1, 4, 16), workspace_mb=512)
    flags = shlex.split(trtexec_build_command(MODEL, options, "10.3", inputs=[DYNAMIC]))
    for flag in ("--minShapes=x:1x3x224x224", "--optShapes=x:4x3x224x224", "--maxShapes=x:16x3x224x224",
                 "--shapes=x:4x3x224x224", "--memPoolSize=workspace:512M"):  # fmt: skip
        assert flag in flags
    with pytest.raises(UsageError, match="inputs"):
        trtexec_build_command(MODEL, options, "10.3")


def test_a_path_with_spaces_survives_the_shell() -> None:
    line = trtexec_build_command(Path("my model/model.onnx"), BuildOptions(), "10.3")
    assert "--onnx=my model/model.onnx" in shlex.split(line)


def test_the_steps_for_a_bundle_without_an_engine() -> None:
    steps = device_steps(Path("out/vit-fp16-trt"), RANGE, "10.3", inputs=[DYNAMIC])
    assert steps.build == "edgevit build out/vit-fp16-trt"
    assert steps.sentence.endswith(f"on the device: {steps.build}")
    assert "--onnx=model.onnx" in shlex.split(steps.trtexec)


def test_an_unsupported_version_has_no_command() -> None:
    with pytest.raises(MissingError, match="JetPack 5"):
        trtexec_build_command(MODEL, BuildOptions(), "8.5.2")


def test_the_engine_of_a_bundle_is_timed_and_not_built_again() -> None:
    flags = shlex.split(trtexec_time_command(Path("model.engine"), BuildOptions(precision="fp16", workspace_mb=512)))
    assert flags[:2] == ["trtexec", "--loadEngine=model.engine"]
    assert all(flags.count(flag) == 1 for flag in ALWAYS)
    build_flags = ("--onnx", "--saveEngine", "--stronglyTyped", "--memPoolSize", "--noTF32", "--minShapes", "--shapes")
    assert not [flag for flag in flags if flag.startswith(build_flags)]


def test_an_engine_with_a_dynamic_batch_is_timed_at_the_optimum() -> None:
    flags = shlex.split(trtexec_time_command(Path("model.engine"), RANGE, inputs=[DYNAMIC]))
    assert [flag for flag in flags if "hapes" in flag] == ["--shapes=x:4x3x224x224"]
    with pytest.raises(UsageError, match="inputs"):
        trtexec_time_command(Path("model.engine"), RANGE)
