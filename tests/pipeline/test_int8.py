"""int8 from end to end: bundles keep the outputs of fp32, run in integers, and name the layers that stay in float."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import edgevit
from edgevit import cpu
from edgevit.bundles import store
from edgevit.bundles.bundle import Bundle
from edgevit.bundles.manifest import read_manifest
from edgevit.cli.export_output import result_lines
from edgevit.errors import PrecisionError
from edgevit.export.graph import OnnxGraph
from edgevit.export.ir_helpers import constant
from edgevit.export.quantization.groups import GroupChoice
from edgevit.export.quantization.int8 import needs_vnni
from edgevit.metrics import wilson
from edgevit.models.loading import from_name
from edgevit.pipeline import run as pipeline
from edgevit.pipeline.config import ExportConfig
from edgevit.runtimes import openvino
from edgevit.runtimes.base import BuildOptions
from edgevit.runtimes.openvino import OpenVino, OpenVinoEngine
from edgevit.runtimes.parity import compare, references_for
from edgevit.types import Array
from tests.helpers.cifar10 import Cifar10
from tests.helpers.cli import last_line, status
from tests.helpers.formats import ON_CPU
from tests.helpers.int8 import (
    CALIBRATION_IMAGES,
    COUNTED,
    EVAL_IMAGES,
    INCLUDED_PHOTOS,
    costly,
    counted,
    export,
    manifest,
)
from tests.helpers.skips import needs_no_tensorrt, needs_rtx

ROOT = Path(edgevit.__file__).parents[1]
MAX_DROP_POINTS = 100 / EVAL_IMAGES  # one image; the export allows two, and no engine loses more than one


@pytest.fixture(scope="module")
def trained(cifar10_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Bundle]:
    """The trained model in int8 in every format that runs here, from one export. Read only."""
    out = tmp_path_factory.mktemp("int8")
    evaluation = ["--eval", str(cifar10_folder / "eval"), "--max-drop", "2%"]  # one of 100 images is 1 %
    options = [
        "--int8",
        "--calib",
        str(cifar10_folder / "calib"),
        *evaluation,
        "--dynamic-batch",
        "1:2:16",
        "--no-latency",
    ]
    assert status("export", "shiftvit_cifar10", "--fmt", ",".join(ON_CPU), *options, "--out", out) == 0
    assert {path.name for path in out.iterdir()} == {f"shiftvit_cifar10-int8-{fmt}" for fmt in ON_CPU}
    return {fmt: Bundle.open(out / f"shiftvit_cifar10-int8-{fmt}") for fmt in ON_CPU}


def test_the_manifest_lists_the_int8_layers(trained: Mapping[str, Bundle], fmt: str) -> None:
    precision_plan = trained[fmt].manifest.to_json()["typing"]
    assert (precision_plan["layers"], precision_plan["activations"], precision_plan["photos"]) == (
        23,
        "uint8",
        CALIBRATION_IMAGES,
    )
    assert [(node["name"], node["reason"].split(":")[0]) for node in precision_plan["kept"]] == [
        ("head/Gemm", "too small to gain speed")
    ]
    assert 0.999 < precision_plan["share"] < 1
    assert precision_plan["summary"].startswith("22 of 23 layers in int8")
    stages = {result["stage"]: result["precision"] for result in trained[fmt].manifest.to_json()["parity"]["results"]}
    assert stages == {
        "ONNX": "fp32",
        f"{fmt}: optimized ONNX": "fp32",
        f"{fmt}: int8 ONNX": "int8",
        f"{fmt}: engine": "int8",
    }


@counted
def test_the_requested_precision_runs(trained: Mapping[str, Bundle], fmt: str) -> None:
    manifest = trained[fmt].manifest.to_json()
    assert manifest["precision"]["asked"] == manifest["precision"]["found"] == "int8"
    assert manifest["precision"]["multiply_add_shares"]["int8"] >= 0.95 * manifest["typing"]["share"]
    with edgevit.load(trained[fmt]) as engine:
        assert engine.executed_precision().fraction("int8") >= 0.95 * manifest["typing"]["share"]


def test_the_manifest_holds_the_comparison_with_fp32(trained: Mapping[str, Bundle], fmt: str) -> None:
    verdict = trained[fmt].manifest.to_json()["verdict"]
    assert verdict["images"] == EVAL_IMAGES
    assert verdict["judged"] == ("the ONNX graph" if fmt == "onnx" else "the engine")
    assert verdict["drop_points"] <= MAX_DROP_POINTS
    assert wilson(round(EVAL_IMAGES * verdict["agreement"]), EVAL_IMAGES).high >= 0.975  # as far as so few can tell
    assert verdict["snr_db"] > 20
    assert verdict["cosine"] >= 0.99
    assert (verdict["time_ratio"], verdict["recommended"]) == (None, None)
    assert verdict["size_bytes_fp32"] / verdict["size_bytes"] > 3
    assert verdict["sentence"].startswith("int8: speed not measured here, ")
    assert f"on {EVAL_IMAGES} images" in verdict["sentence"]


@pytest.mark.parametrize("fmt", [*COUNTED, pytest.param("onnx", marks=pytest.mark.large)])
def test_int8_keeps_its_accuracy_on_2000_images(trained: Mapping[str, Bundle], cifar10: Cifar10, fmt: str) -> None:
    """At most 0.5 points worse than PyTorch, and the same class for 97.5 % of the images."""
    with edgevit.load(trained[fmt], threads=1) as engine:
        found = np.concatenate([engine.run({"images": rows})["logits"] for rows in np.split(cifar10.inputs, 125)])
    wanted = cifar10.logits.argmax(1)
    assert (wanted == cifar10.labels).mean() - (found.argmax(1) == cifar10.labels).mean() <= 0.005
    assert (wanted == found.argmax(1)).mean() >= 0.975


def test_parity_passes_at_other_batch_sizes(trained: Mapping[str, Bundle], fmt: str) -> None:
    bundle = trained[fmt]
    with edgevit.load(bundle) as engine:
        own = references_for(bundle.references(), "int8")
        compare("engine", engine.run, own, precision="int8", batches=(1, 3)).require()


def test_verify_passes(trained: Mapping[str, Bundle], fmt: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert status("verify", trained[fmt].path) == 0
    assert f"{trained[fmt].path}: parity passed (SNR " in capsys.readouterr().out.splitlines()[0]


@pytest.fixture(scope="module")
def small_bundles(small: Path, views: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with the small model's int8 bundles. Read only."""
    out = tmp_path_factory.mktemp("own")
    assert export(small, "plain", out, "--calib", views, fmt="ort,openvino") == 0
    return out


@counted
def test_a_module_from_a_user_file(small_bundles: Path, fmt: str) -> None:
    found = manifest(small_bundles, f"small_plain-int8-{fmt}")
    assert found["typing"]["share"] >= 0.99
    assert found["precision"]["multiply_add_shares"]["int8"] >= 0.95 * found["typing"]["share"]
    assert found["verdict"]["images"] == 0
    assert found["verdict"]["agreement"] == 1
    sentence = "int8: speed not measured here, accuracy not measured (--eval DIR), "
    assert found["verdict"]["sentence"].startswith(sentence)


@pytest.fixture(scope="module")
def fp32_bundles(small: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with the small model's fp32 bundles. Read only."""
    out = tmp_path_factory.mktemp("fp32")
    options = ["--img-size", "32", "--fmt", "ort,openvino", "--no-latency", "--out", str(out)]
    assert status("export", f"{small}:plain", *options) == 0
    return out


@counted
def test_a_bundle_whose_engine_runs_in_fp32_is_status_9(
    small_bundles: Path, fp32_bundles: Path, fmt: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The outputs and hashes are right, but the manifest claims int8."""
    name = f"small_plain-int8-{fmt}"
    source = fp32_bundles / f"small_plain-fp32-{fmt}"
    copy = Path(shutil.copytree(small_bundles / name, tmp_path / "swapped"))
    for file in manifest(small_bundles, name)["runtime"]["engine_files"]:
        shutil.copy(source / file, copy / file)
    store.write_manifest(copy, read_manifest(small_bundles / name))
    capsys.readouterr()
    assert status("verify", copy) == 9
    (line,) = capsys.readouterr().err.splitlines()
    assert "requested int8" in line
    assert re.search("runs 4 (fp32|bf16) layers", line)  # bf16 with AMX


def test_fp32_is_measured_in_the_same_run(small: Path, views: Path, tmp_path: Path) -> None:
    config = ExportConfig(
        formats=("ort",),
        options=BuildOptions(precision="int8", threads=1),
        out=tmp_path,
        calib=views,
        latency_time_s=5,
    )
    found = pipeline.run(from_name(f"{small}:plain", img_size=32), config)
    verdict = found.bundles[0].comparison
    assert verdict is not None and verdict.time_ratio is not None
    assert verdict.time_ratio.verdict in ("faster", "slower", "cannot tell")
    kept = manifest(tmp_path, "small_plain-int8-ort")["verdict"]
    assert (kept["sentence"], kept["time_ratio"]) == (verdict.sentence, verdict.time_ratio.value)
    assert any(verdict.sentence in line for line in result_lines(found))
    latency = json.loads((tmp_path / "small_plain-int8-ort" / "latency.json").read_text())
    assert {each["name"] for each in latency} == {"torch (CPU)", "ort", "ort fp32"}


ATTENDING = """
import torch
from torch import nn


class Attending(nn.Module):
    def __init__(self):
        super().__init__()
        self.patches = nn.Conv2d(3, 64, 4, stride=4)
        self.query, self.key, self.value = nn.Linear(64, 64), nn.Linear(64, 64), nn.Linear(64, 64)
        self.head = nn.Linear(64, 10)

    def forward(self, x):
        tokens = self.patches(x).flatten(2).transpose(1, 2)  # (N, 64, 64)
        weights = (self.query(tokens) @ self.key(tokens).transpose(1, 2)).softmax(2)
        return self.head((weights @ self.value(tokens)).mean(1))


def attending():
    torch.manual_seed(0)
    return Attending()
"""


@pytest.mark.parametrize("moved", [True, False])
def test_products_of_activations_are_int8_if_that_was_measured_to_be_faster(
    views: Path, tmp_path: Path, *, moved: bool
) -> None:
    (module := tmp_path / "attending.py").write_text(ATTENDING)
    choice = GroupChoice(group="product-of-activations", in_int8=moved, moved=moved, ratio=0.8 if moved else 1.2)
    config = ExportConfig(
        formats=("ort",),
        options=BuildOptions(precision="int8", threads=1),
        out=tmp_path,
        calib=views,
        latency=False,
        groups=(choice,),
    )
    (bundle,) = pipeline.run(from_name(f"{module}:attending", img_size=32), config).bundles
    found = manifest(tmp_path, bundle.path.name)
    assert found["typing"]["layers"] == (7 if moved else 5)
    assert (found["typing"]["share"] > 0.99) == moved
    assert (found["precision"]["multiply_add_shares"]["int8"] > 0.99) == moved  # as the engine runs


def test_the_layer_that_costs_accuracy_is_named(
    small: Path, views: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The parity tolerance alone requires it."""
    assert export(small, "outlier", tmp_path, "--calib", views, fmt="ort,openvino") == 0
    printed = " ".join(capsys.readouterr().out.split())
    for fmt in COUNTED:
        found = manifest(tmp_path, f"small_outlier-int8-{fmt}")
        assert costly(found) == ["wide/Conv"]
        assert 0.5 < found["typing"]["share"] < 0.9
        assert found["precision"]["multiply_add_shares"]["int8"] >= 0.95 * found["typing"]["share"]
        assert f"{fmt}: wide/Conv stays in float: costs accuracy" in printed
        assert status("verify", tmp_path / f"small_outlier-int8-{fmt}") == 0


def test_int8_that_does_not_keep_the_outputs_is_status_9(
    small: Path, views: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """No choice of layers reaches the cosine of the parity tolerance."""
    assert export(small, "hopeless", tmp_path, "--calib", views) == 9
    line = last_line(capsys)
    assert "int8 changes the outputs too much: cosine" in line
    assert "most sensitive: only/Conv" in line
    assert list(tmp_path.iterdir()) == []


# Processors without VNNI


def pretend(monkeypatch: pytest.MonkeyPatch, flags: str) -> None:
    """Be an x86 processor with these flags."""
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    monkeypatch.setattr(cpu, "cpu_flags", lambda: frozenset(flags.split()))


@counted
def test_weights_are_safe_unless_the_full_range_is_requested(small_bundles: Path, fmt: str) -> None:
    path = small_bundles / f"small_plain-int8-{fmt}"
    precision_plan = manifest(small_bundles, path.name)["typing"]
    assert (precision_plan["weight_range"], precision_plan["needs_vnni"]) == ("safe", False)
    assert not needs_vnni(OnnxGraph.load(path / "model.onnx"))


@pytest.mark.parametrize(
    ("fmt", "flags", "matmuls"),
    [("openvino", "avx2", 0), ("openvino", "avx2 avx512_vnni", 2), ("ort", "avx2", 2)],
)
def test_openvino_runs_int8_linear_layers_as_convolutions_without_vnni(
    small: Path, views: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fmt: str, flags: str, matmuls: int
) -> None:
    pretend(monkeypatch, flags)
    assert export(small, "linears", tmp_path, "--calib", views, fmt=fmt) == 0
    path = tmp_path / f"small_linears-int8-{fmt}"
    operators = OnnxGraph.load(path / "model.onnx").operators
    assert (operators["MatMul"], operators["Conv"]) == (matmuls, 3 - matmuls)
    found = manifest(tmp_path, path.name)
    assert found["precision"]["multiply_add_shares"]["int8"] >= 0.95 * found["typing"]["share"]


@pytest.mark.parametrize(
    ("flags", "options", "session"),
    [
        ("avx512_vnni amx_bf16", [], {"inference_precision": "bf16"}),
        ("avx512_vnni amx_bf16", ["--keep-float", "mlp.0"], {}),  # in float for its accuracy
        ("avx512_vnni avx512_bf16", [], {"inference_precision": "bf16"}),
        ("avx512_vnni", [], {}),
    ],
)
def test_openvino_runs_what_is_in_float_for_its_speed_in_bf16(
    small: Path,
    views: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    flags: str,
    options: list[str],
    session: dict[str, str],
) -> None:
    pretend(monkeypatch, flags)
    monkeypatch.setattr(OpenVino, "usable_values", lambda _, setting: setting.values)
    assert export(small, "linears", tmp_path, "--calib", views, *options, fmt="openvino") == 0
    assert manifest(tmp_path, "small_linears-int8-openvino")["build"].get("session", {}) == session


def test_an_engine_that_misses_parity_in_bf16_is_built_in_f32(
    small: Path, views: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its layers stay as they are: what is in float for its speed breaks it in bf16."""
    pretend(monkeypatch, "avx512_vnni amx_bf16")
    monkeypatch.setattr(OpenVino, "usable_values", lambda _, setting: setting.values)
    monkeypatch.setattr(openvino, "capabilities", lambda _: ("FP32", "BF16"))
    infer = OpenVinoEngine._infer

    def wrong_in_bf16(engine: OpenVinoEngine, feeds: Mapping[str, Array]) -> dict[str, Array]:
        is_bf16 = engine._settings["INFERENCE_PRECISION_HINT"] == "bf16"
        return {name: -array if is_bf16 else array for name, array in infer(engine, feeds).items()}

    monkeypatch.setattr(OpenVinoEngine, "_infer", wrong_in_bf16)
    assert export(small, "linears", tmp_path, "--calib", views, fmt="openvino") == 0
    found = manifest(tmp_path, "small_linears-int8-openvino")
    assert found["build"].get("session", {}) == {} and costly(found) == []
    assert [stage["name"] for stage in found["exporter"]["stages"]].count("openvino: build") == 2


def test_a_bundle_that_asks_for_bf16_runs_in_f32_without_it(
    small: Path, views: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend(monkeypatch, "avx512_vnni amx_bf16")
    monkeypatch.setattr(OpenVino, "usable_values", lambda _, setting: setting.values)
    assert export(small, "linears", tmp_path, "--calib", views, fmt="openvino") == 0
    monkeypatch.setattr(openvino, "capabilities", lambda _: ("FP32",))
    with edgevit.load(tmp_path / "small_linears-int8-openvino") as engine:
        assert isinstance(engine, OpenVinoEngine)
        assert engine._settings["INFERENCE_PRECISION_HINT"] == "f32"


def test_a_bundle_with_full_weights_is_status_9_without_vnni(
    small: Path, views: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    options: list[str | Path] = ["--int8-range", "full", "--calib", views, "--no-verify"]
    pretend(monkeypatch, "avx2")
    assert export(small, "plain", tmp_path, *options) == 9
    assert "without VNNI (this one has avx2)" in last_line(capsys)
    assert list(tmp_path.iterdir()) == []
    pretend(monkeypatch, "avx2 avx512_vnni")
    assert export(small, "plain", tmp_path, *options) == 0
    path = tmp_path / "small_plain-int8-ort"
    precision_plan = manifest(tmp_path, path.name)["typing"]
    assert (precision_plan["weight_range"], precision_plan["needs_vnni"]) == ("full", True)
    refused_without_vnni(path, views, capsys, monkeypatch)


def refused_without_vnni(
    bundle: Path, images: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """By every command that runs the bundle; with VNNI it runs."""
    commands = [
        ("verify", bundle),
        ("run", bundle, next(images.iterdir())),
        ("eval", bundle, "--data", images),
        ("latency", bundle, "--duration", "0.1"),
        ("build", bundle),
    ]
    pretend(monkeypatch, "avx2")
    for command in commands:
        capsys.readouterr()
        assert status(*command) == 9, command
        (line,) = capsys.readouterr().err.splitlines()
        assert "without VNNI (this one has avx2)" in line
    with pytest.raises(PrecisionError, match="without VNNI"):
        edgevit.load(bundle)
    pretend(monkeypatch, "avx2 avx_vnni")
    assert status("run", bundle, next(images.iterdir())) == 0
    monkeypatch.setattr("platform.machine", lambda: "aarch64")
    monkeypatch.setattr(cpu, "cpu_flags", lambda: frozenset({"asimd"}))
    assert status("run", bundle, next(images.iterdir())) == 0


def test_a_bundle_from_before_safe_weights_needs_vnni(
    small_bundles: Path,
    views: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    copy = Path(shutil.copytree(small_bundles / "small_plain-int8-ort", tmp_path / "old"))
    current = read_manifest(copy)
    assert current.precision_plan is not None
    plan = {key: value for key, value in current.precision_plan.items() if key != "needs_vnni"}
    store.write_manifest(copy, replace(current, precision_plan=plan))
    refused_without_vnni(copy, views, capsys, monkeypatch)


@needs_no_tensorrt
def test_trt_graphs_are_symmetric_int8_and_fp16(small: Path, views: Path, tmp_path: Path) -> None:
    assert export(small, "plain", tmp_path, "--calib", views, fmt="trt") == 3
    path = tmp_path / "small_plain-int8-trt"
    found = manifest(tmp_path, path.name)
    assert (found["typing"]["activations"], found["typing"]["rest"]) == ("int8", "fp16")
    assert found["verdict"]["judged"] == "the ONNX graph"
    assert found["precision"]["found"] is None
    check_types_of_tensorrt(OnnxGraph.load(path / "model.onnx"))


def check_types_of_tensorrt(graph: OnnxGraph) -> None:
    """Assert that zero points are 0, weights int8, and all other values fp16 except inputs and outputs."""
    pairs = [node for node in graph.model.graph if node.op_type in ("QuantizeLinear", "DequantizeLinear")]
    assert pairs
    for node in pairs:
        scale, zero = constant(node.inputs[1]), constant(node.inputs[2])
        assert scale is not None and zero is not None
        assert (str(scale.dtype), str(zero.dtype)) == ("float16", "int8")
        assert not zero.any()
        assert (scale >= np.float32(2.0**-14)).all()
    layers = [node for node in graph.model.graph if node.op_type in ("Conv", "Gemm", "MatMul")]
    assert layers
    for node in layers:
        assert {str(value.dtype) for value in node.inputs if value is not None} == {"FLOAT16"}
    floats = {name for name, value in graph.model.graph.initializers.items() if str(value.dtype) == "FLOAT"}
    assert floats == set()
    assert [spec.dtype for spec in (*graph.inputs, *graph.outputs)] == ["float32", "float32"]


SMALLEST = ("mobileformer_26m", "vitae_t", "shuffle_deit_t", "t2t_vit_7", "swin_xt", "vt_resnet18", "vitaev2_s",
            "shiftvit_t_light")  # fmt: skip


def families(*quick: tuple[str, str], each: tuple[str, ...]) -> pytest.MarkDecorator:
    """Parametrize: the `quick` pairs in the everyday suite, every family with each variant in the large one."""
    slow = [pytest.param(name, way, marks=pytest.mark.large) for name in SMALLEST for way in each]
    cases = [case for case in slow if case.values not in quick]
    return pytest.mark.parametrize(("name", "way"), [*quick, *cases])


@families(("vt_resnet18", "ort"), each=("ort,openvino",))
def test_every_family_runs_in_int8(name: str, way: str, tmp_path: Path) -> None:
    """Layers that stay in float are named with a reason."""
    options: list[str | Path] = [
        "--int8",
        "--calib",
        INCLUDED_PHOTOS,
        "--threads",
        "1",
        "--no-latency",
        "--out",
        tmp_path,
    ]
    assert status("export", name, "--fmt", way, *options) == 0
    for fmt in way.split(","):
        found = manifest(tmp_path, f"{name}-int8-{fmt}")
        assert found["parity"]["passed"] is True
        assert found["typing"]["share"] > 0.4  # Mobile-Former: its convolutions are small and grouped
        assert found["precision"]["multiply_add_shares"]["int8"] >= 0.95 * found["typing"]["share"]
        assert all(node["name"] and node["reason"] for node in found["typing"]["kept"])
        assert status("verify", tmp_path / f"{name}-int8-{fmt}", "--threads", "1") == 0


@needs_rtx
@families(("vt_resnet18", "int8"), each=("fp16", "int8"))
def test_every_family_builds_for_tensorrt_rtx(name: str, way: str, tmp_path: Path) -> None:
    calib: list[str | Path] = ["--calib", INCLUDED_PHOTOS] if way == "int8" else []
    options: list[str | Path] = ["--precision", way, *calib, "--sm", "86", "--no-latency", "--out", tmp_path]
    assert status("export", name, "--fmt", "trt-rtx", *options) == 0
    path = tmp_path / f"{name}-{way}-trt-rtx"
    found = manifest(tmp_path, path.name)
    assert found["parity"]["passed"] is True
    assert found["runtime"]["engine_files"]
    assert found["precision"]["layers"].get(way, 0) > 0
    assert found["verdict"]["judged"] == "the ONNX graph"


@pytest.mark.parametrize("package", ["nncf", "openvino_telemetry", "modelopt"])
def test_no_other_quantization_package_is_imported(package: str) -> None:
    statement = re.compile(rf"^\s*(import|from)\s+{package}\b", re.MULTILINE)
    sources = [
        path for folder in ("edgevit", "export", "runtimes", "latency") for path in (ROOT / folder).rglob("*.py")
    ]
    assert len(sources) > 100
    assert [str(path) for path in sources if statement.search(path.read_text("utf-8"))] == []
