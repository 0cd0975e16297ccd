"""bf16: the fp32 graph in a session that OpenVINO runs in bf16, on processors that have the arithmetic."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import edgevit
from edgevit.bundles import benchmark
from edgevit.bundles.bundle import Bundle
from edgevit.bundles.engine import load_engine
from edgevit.errors import ParityError, PrecisionError
from edgevit.latency.studies import Studies
from edgevit.pipeline.explain.explanation import Explanation
from edgevit.runtimes import openvino, openvino_product
from edgevit.runtimes.base import BuildOptions
from edgevit.runtimes.precision import ExecutedPrecision
from edgevit.runtimes.registry import get_runtime
from tests.helpers.bundles import damage, manifest_json
from tests.helpers.cli import status

needs_bf16 = pytest.mark.skipif(
    not get_runtime("openvino").runs_precision("bf16"), reason="this processor has no bf16 arithmetic"
)
NAME = "shiftvit_cifar10-bf16-openvino"
RECORD = {"asked": "bf16", "found": "bf16", "layers": {"bf16": 23}, "multiply_adds": {"bf16": 14}}


@pytest.fixture
def without_bf16(monkeypatch: pytest.MonkeyPatch) -> None:
    """A processor without bf16 arithmetic."""
    for module in (openvino, openvino_product):
        monkeypatch.setattr(module, "capabilities", lambda _: ("FP32", "INT8"))


def export(out: Path, *options: str) -> int:
    return status("export", "shiftvit_cifar10", "--fmt", "openvino", "--bf16", "--no-latency", "--out", out, *options)


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("bf16")
    assert export(out) == 0
    return out / NAME


def asking_for_bf16(shared_bundle: Callable[[str], Bundle], folder: Path) -> Path:
    """Return a bundle that says it was built in bf16, on whatever processor."""
    path = Path(shutil.copytree(shared_bundle("openvino").path, folder / NAME))
    damage(path, "precision", RECORD)
    return path


# On a processor that has bf16


@needs_bf16
def test_the_engine_runs_in_bf16_and_passes_parity(exported: Path) -> None:
    found = manifest_json(exported)
    assert found["precision"]["asked"] == found["precision"]["found"] == "bf16"
    assert found["precision"]["multiply_add_shares"]["bf16"] >= 0.95
    assert status("verify", exported) == 0
    with edgevit.load(exported) as engine:
        assert engine.executed_precision().actual == "bf16"


@needs_bf16
@pytest.mark.parametrize("name", ["mobileformer_26m"])
def test_a_layer_that_openvino_keeps_in_fp32_is_allowed(name: str, tmp_path: Path) -> None:
    options = ("--fmt", "openvino", "--bf16", "--no-latency", "--out", tmp_path)
    assert status("export", name, *options) == 0
    found = manifest_json(tmp_path / f"{name}-bf16-openvino")["precision"]["multiply_add_shares"]
    assert found["bf16"] >= 0.95


@needs_bf16
def test_the_graph_stays_fp32(exported: Path, shared_bundle: Callable[[str], Bundle]) -> None:
    with load_engine(Bundle.open(exported)) as engine:
        assert {spec.dtype for spec in (*engine.inputs, *engine.outputs)} == {"float32"}
    assert "quantization" not in manifest_json(exported)
    weights = shared_bundle("openvino").engine_path
    assert weights is not None
    assert (exported / "model.bin").stat().st_size == weights.with_suffix(".bin").stat().st_size


@needs_bf16
def test_an_engine_that_runs_fp32_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(openvino, "_inference_precision", lambda _: "f32")
    assert export(tmp_path) == 9
    assert "requested bf16, but OpenVINO runs 23 fp32 layers" in capsys.readouterr().err.splitlines()[-1]
    assert list(tmp_path.iterdir()) == []


@needs_bf16
def test_a_compiled_model_from_the_cache_runs_in_bf16(exported: Path, tmp_path: Path) -> None:
    for _ in range(2):
        with edgevit.load(exported, cache_dir=tmp_path) as engine:
            assert set(engine.executed_layers().layers) == {"bf16"}


@needs_bf16
def test_the_limit_counts_bf16_products_and_half_the_bytes(exported: Path) -> None:
    bundle = Bundle.open(exported)
    plan = benchmark.measure_plan(0.05)
    (report,) = benchmark.measure_bundles([bundle], threads=1, plan=plan, studies=Studies(roofline=True))
    assert report.roofline is not None and bundle.manifest.work is not None
    assert set(report.roofline.macs) == {"bf16"} and {"fp32", "bf16"} <= set(report.roofline.macs_per_s)
    work = bundle.manifest.work
    assert report.roofline.moved_bytes == work.weight_bytes // 2 + work.io_bytes


@needs_bf16
@pytest.mark.parametrize("own", ["fp32", "bf16"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_products_are_timed_in_the_precision_that_is_asked_for(exported: Path, own: Any, precision: str) -> None:
    options = BuildOptions(precision=own, threads=1)
    with get_runtime("openvino").open(exported / "model.xml", options) as engine:
        assert engine.matmul((4, 64, 32), precision) is not None


def shift(by: float) -> nn.Conv2d:
    """A layer that adds a number."""
    layer = nn.Conv2d(4, 4, 1)
    nn.init.dirac_(layer.weight)
    nn.init.constant_(layer.bias, by)  # type: ignore[arg-type]
    return layer


@needs_bf16
def test_an_explanation_names_the_module_and_proposes_nothing_that_bf16_lacks(tmp_path: Path) -> None:
    torch.manual_seed(0)
    # A large number between two layers costs bf16 all digits behind the point.
    module = nn.Sequential(nn.Conv2d(3, 4, 4, 4), shift(1500), shift(-1500), nn.Flatten(), nn.Linear(16, 5))
    with pytest.raises(ParityError, match=r"the module that costs the most accuracy is [12] \(Conv2d\)") as caught:
        edgevit.export(
            module, fmt="openvino", precision="bf16", example_input=torch.rand(1, 3, 8, 8), out=tmp_path, name="net"
        )
    assert isinstance(caught.value.explanation, Explanation)
    assert caught.value.explanation.keep_float == ()


# On a processor that does not


@pytest.mark.usefixtures("without_bf16")
def test_an_export_needs_bf16_arithmetic(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert export(tmp_path) == 9
    (line,) = capsys.readouterr().err.splitlines()  # before any stage
    assert "no bf16 arithmetic in this processor" in line and "--precision fp32 or int8" in line
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("without_bf16")
def test_a_bf16_bundle_does_not_open_without_the_arithmetic(
    shared_bundle: Callable[[str], Bundle], tmp_path: Path
) -> None:
    path = asking_for_bf16(shared_bundle, tmp_path)
    with pytest.raises(PrecisionError, match="no bf16 arithmetic in this processor"):
        edgevit.load(path)
    assert status("verify", path) == 9
    assert status("build", path, "--no-latency") == 9


@pytest.mark.usefixtures("without_bf16")
def test_products_in_bf16_have_no_rate_without_the_arithmetic(shared_bundle: Callable[[str], Bundle]) -> None:
    with load_engine(shared_bundle("openvino"), threads=1) as engine:
        assert engine.matmul((4, 64, 32), "bf16") is None
        assert engine.matmul((4, 64, 32), "fp32") is not None


# On any


def test_another_inference_precision_in_the_manifest_is_refused(
    shared_bundle: Callable[[str], Bundle], tmp_path: Path
) -> None:
    path = asking_for_bf16(shared_bundle, tmp_path)
    damage(path, "build.session", {"inference_precision": "f16"})
    with pytest.raises(PrecisionError, match="requested bf16, but the session settings ask OpenVINO for f16"):
        edgevit.load(path)


def test_benchmark_app_gets_the_precision(tmp_path: Path) -> None:
    for precision, word in (("fp32", "f32"), ("bf16", "bf16"), ("int8", "f32")):
        command = get_runtime("openvino").time_command(tmp_path, BuildOptions(precision=precision))  # type: ignore[arg-type]
        assert command is not None and f"-infer_precision {word} " in command.line


@pytest.mark.parametrize(
    ("executed", "refused"),
    [
        (ExecutedPrecision({"bf16": 190, "fp32": 1}, {"bf16": 995, "fp32": 5}), False),
        (ExecutedPrecision({"bf16": 190, "fp32": 1}, {"bf16": 90, "fp32": 10}), True),
        (ExecutedPrecision({"bf16": 3, "fp32": 1}), False),  # from the cache, without MACs
        (ExecutedPrecision({"fp32": 23}, {"fp32": 14}), True),
    ],
)
def test_nearly_all_of_the_work_has_to_run_in_bf16(executed: ExecutedPrecision, refused: bool) -> None:
    if not refused:
        executed.require("bf16", runtime="OpenVINO")
    else:
        with pytest.raises(PrecisionError, match="requested bf16"):
            executed.require("bf16", runtime="OpenVINO")


@pytest.mark.parametrize("fmt", ["onnx", "ort", "trt", "trt-rtx"])
def test_other_formats_have_no_bf16(fmt: str) -> None:
    with pytest.raises(PrecisionError, match="does not run bf16"):
        get_runtime(fmt).require_precision("bf16")
