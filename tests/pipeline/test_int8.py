"""int8 from end to end: what is published computes what fp32 computes, runs in integers, and says where it does not."""

from __future__ import annotations

import io
import json
import re
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console
from torch import nn

import edgevit
from edgevit import cpu
from edgevit.bundles import store
from edgevit.bundles.bundle import Bundle
from edgevit.bundles.manifest import read_manifest
from edgevit.cli.export import report_parts
from edgevit.errors import PrecisionError, UsageError
from edgevit.export.graph import OnnxGraph
from edgevit.export.ir_helpers import constant
from edgevit.export.quantization.int8 import needs_vnni
from edgevit.images import read_batch, read_image, sample_images
from edgevit.latency.measure import MeasurePlan
from edgevit.metrics import wilson
from edgevit.models.loading import class_names, from_module, from_name
from edgevit.pipeline import precision as lower_precision
from edgevit.pipeline import run as pipeline
from edgevit.pipeline.calibration import calibration_inputs
from edgevit.pipeline.config import ExportConfig
from edgevit.pipeline.export_run import StageTimer
from edgevit.pipeline.references import ReferenceData
from edgevit.runtimes.base import BuildOptions
from edgevit.runtimes.parity import compare, references_for
from edgevit.types import Reference
from tests.conftest import DATA, Cifar10
from tests.export.quantization.test_int8 import answer, graph
from tests.helpers.cli import status
from tests.helpers.formats import ON_CPU
from tests.helpers.onnx_files import needs_rtx
from tests.pipeline.test_tensorrt import needs_no_tensorrt

ROOT = Path(edgevit.__file__).parents[1]

CALIBRATION, LABELLED = 64, 100
COUNTED = ("ort", "openvino")  # which tell of their multiply-adds
counted = pytest.mark.parametrize("fmt", COUNTED)
OWN_PHOTOS = sample_images()[0].parent


@pytest.fixture(scope="module", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """No reach of another run."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("cache")
        patch.setenv("EDGEVIT_CACHE", str(folder))
        yield folder


# The trained model


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """CIFAR-10: images to calibrate by, and others in a folder a class. Do not change them."""
    folder, names = tmp_path_factory.mktemp("cifar10"), class_names("cifar10")
    (folder / "calib").mkdir()
    with np.load(DATA / "cifar10_sample.npz") as sample:
        for index, pixels in enumerate(sample["calibration_images"][:CALIBRATION]):
            Image.fromarray(pixels).save(folder / "calib" / f"{index:04}.png")
        images, labels = sample["test_images"][:LABELLED], sample["test_labels"][:LABELLED]
        for index, (pixels, label) in enumerate(zip(images, labels, strict=True)):
            (folder / "eval" / names[label]).mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(folder / "eval" / names[label] / f"{index:04}.png")
    return folder


@pytest.fixture(scope="module")
def trained(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Bundle]:
    """The trained model in int8 in every format that runs here, made and judged in one go. Do not change them."""
    out = tmp_path_factory.mktemp("int8")
    judged = ["--eval", str(photos / "eval"), "--max-drop", "2%"]  # by 100 images, of which one is 1 %
    options = ["--int8", "--calib", str(photos / "calib"), *judged, "--dynamic-batch", "1:2:16", "--no-latency"]
    assert status("export", "shiftvit_cifar10", "--fmt", ",".join(ON_CPU), *options, "--out", out) == 0
    assert {path.name for path in out.iterdir()} == {f"shiftvit_cifar10-int8-{fmt}" for fmt in ON_CPU}
    return {fmt: Bundle.open(out / f"shiftvit_cifar10-int8-{fmt}") for fmt in ON_CPU}


def test_the_manifest_says_what_is_int8(trained: Mapping[str, Bundle], fmt: str) -> None:
    typing = trained[fmt].manifest.to_json()["typing"]
    assert (typing["layers"], typing["activations"], typing["photos"]) == (23, "uint8", CALIBRATION)
    assert [(node["name"], node["reason"].split(":")[0]) for node in typing["kept"]] == [
        ("head/Gemm", "too small to gain by it")
    ]
    assert 0.999 < typing["share"] < 1
    assert typing["summary"].startswith("22 of 23 layers in int8")
    stages = {result["stage"]: result["precision"] for result in trained[fmt].manifest.to_json()["parity"]["results"]}
    assert stages == {
        "ONNX": "fp32",
        f"{fmt}: optimized ONNX": "fp32",
        f"{fmt}: int8 ONNX": "int8",
        f"{fmt}: engine": "int8",
    }


@counted
def test_what_runs_is_what_was_asked_for(trained: Mapping[str, Bundle], fmt: str) -> None:
    manifest = trained[fmt].manifest.to_json()
    assert manifest["precision"]["asked"] == manifest["precision"]["found"] == "int8"
    assert manifest["precision"]["multiply_add_shares"]["int8"] >= 0.95 * manifest["typing"]["share"]
    with edgevit.load(trained[fmt]) as engine:
        assert engine.executed_precision().fraction("int8") >= 0.95 * manifest["typing"]["share"]


def test_the_verdict_is_kept(trained: Mapping[str, Bundle], fmt: str) -> None:
    verdict = trained[fmt].manifest.to_json()["verdict"]
    assert verdict["images"] == LABELLED
    assert verdict["judged"] == ("the ONNX graph" if fmt == "onnx" else "the engine")
    assert verdict["drop_points"] <= 0.5 or verdict["drop_points_interval"][0] <= 0.5
    assert wilson(round(LABELLED * verdict["agreement"]), LABELLED).high >= 0.975  # as far as so few can tell
    assert verdict["snr_db"] > 20
    assert verdict["cosine"] >= 0.99
    assert (verdict["time_ratio"], verdict["recommended"]) == (None, None)
    assert verdict["size_bytes_fp32"] / verdict["size_bytes"] > 3
    assert verdict["sentence"].startswith("int8: speed not measured here, ")
    assert f"on {LABELLED} images" in verdict["sentence"]


@pytest.mark.parametrize("fmt", [*COUNTED, pytest.param("onnx", marks=pytest.mark.large)])
def test_it_keeps_its_accuracy_on_2000_images(trained: Mapping[str, Bundle], cifar10: Cifar10, fmt: str) -> None:
    """At most 0.5 points worse than PyTorch, and the same class for 97.5 % of the images."""
    with edgevit.load(trained[fmt], threads=1) as engine:
        found = np.concatenate([engine.run({"images": rows})["logits"] for rows in np.split(cifar10.inputs, 125)])
    wanted = cifar10.logits.argmax(1)
    assert (wanted == cifar10.labels).mean() - (found.argmax(1) == cifar10.labels).mean() <= 0.005
    assert (wanted == found.argmax(1)).mean() >= 0.975


def test_other_batches_hold_the_parity_too(trained: Mapping[str, Bundle], fmt: str) -> None:
    bundle = trained[fmt]
    with edgevit.load(bundle) as engine:
        own = references_for(bundle.references(), "int8")
        compare("engine", engine.run, own, precision="int8", batches=(1, 3)).require()


def test_it_verifies(trained: Mapping[str, Bundle], fmt: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert status("verify", trained[fmt].path) == 0
    assert "parity holds" in capsys.readouterr().out.splitlines()[-1]


# A small model of the user's own

SMALL = """
import torch
from torch import nn


class Small(nn.Module):
    \"\"\"Channel 0 of what the second layer reads is `gain` times as large as the others, and counts like them.\"\"\"

    def __init__(self, gain):
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Conv2d(3, 16, 4, 4)
        self.wide = nn.Conv2d(16, 32, 3, padding=1)
        self.narrow = nn.Conv2d(32, 64, 3, padding=1)
        self.head = nn.Linear(64, 10)
        self.register_buffer("gains", torch.ones(16, 1, 1))
        self.gains[0] = gain
        self.wide.weight.data[:, 0] /= gain

    def forward(self, x):
        x = self.wide(self.stem(x).relu() * self.gains).relu()
        return self.head(self.narrow(x).relu().mean((2, 3)))


class Hopeless(nn.Module):
    \"\"\"One layer and no other, whose input holds what is far too large for the rest of it.\"\"\"

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.only = nn.Conv2d(3, 10, 3, padding=1, bias=False)
        self.only.weight.data[:, 0] = 0

    def forward(self, x):
        x = torch.cat((1e4 * x[:, :1] ** 2, x[:, 1:]), 1)
        return self.only(x).relu().mean((2, 3))


def plain():
    return Small(1.0)


def outlier():
    return Small(3000.0)


def hopeless():
    return Hopeless()


class Ties(Small):
    \"\"\"Whose classes are hardly told apart, and hang on the last digits of what it sees.\"\"\"

    def forward(self, x):
        return 1 + 0.03 * torch.sin(500 * super().forward(x))


def ties():
    return Ties(1.0)


def tokens():
    return nn.Conv2d(3, 10, 4, 4)
"""


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file with factories."""
    path = tmp_path_factory.mktemp("small") / "small.py"
    path.write_text(SMALL)
    return path


@pytest.fixture(scope="module")
def views(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pieces of edgevit's own photos. Do not change them."""
    return pieces(tmp_path_factory.mktemp("views"), 6)


def pieces(folder: Path, count: int) -> Path:
    """So many pieces of each of edgevit's own photos."""
    folder.mkdir(exist_ok=True)
    for path in sample_images():
        photo = read_image(path)
        for index in range(count):
            left, top = 240 * index // count, 60 * index // count
            photo.crop((left, top, left + 120, top + 120)).save(folder / f"{path.stem}{index}.png")
    return folder


def export(small: Path, factory: str, out: Path, *options: str | Path, fmt: str = "ort") -> int:
    model = f"{small}:{factory}"
    return status("export", model, "--img-size", "32", "--fmt", fmt, "--int8", "--no-latency", "--out", out, *options)


def last_line(capsys: pytest.CaptureFixture[str]) -> str:
    """The error, behind the lines of progress."""
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("edgevit: ")
    return line


def manifest(out: Path, name: str) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((out / name / "manifest.json").read_text())
    return content


def costly(manifest: Mapping[str, Any]) -> list[str]:
    """The layers that went back to float for the sake of accuracy."""
    return [node["name"] for node in manifest["typing"]["kept"] if node["reason"].startswith("costs accuracy")]


@pytest.fixture(scope="module")
def own(small: Path, views: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with the small model's bundles in int8. Do not change them."""
    out = tmp_path_factory.mktemp("own")
    assert export(small, "plain", out, "--calib", views, fmt="ort,openvino") == 0
    return out


@counted
def test_a_module_of_the_users_own(own: Path, fmt: str) -> None:
    found = manifest(own, f"small_plain-int8-{fmt}")
    assert found["typing"]["share"] >= 0.99
    assert found["precision"]["multiply_add_shares"]["int8"] >= 0.95 * found["typing"]["share"]
    assert found["verdict"]["images"] == 0
    assert found["verdict"]["agreement"] == 1
    sentence = "int8: speed not measured here, accuracy not measured (--eval DIR), "
    assert found["verdict"]["sentence"].startswith(sentence)


@pytest.fixture(scope="module")
def in_fp32(small: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with the small model's bundles in fp32. Do not change them."""
    out = tmp_path_factory.mktemp("fp32")
    options = ["--img-size", "32", "--fmt", "ort,openvino", "--no-latency", "--out", str(out)]
    assert status("export", f"{small}:plain", *options) == 0
    return out


@counted
def test_a_bundle_that_runs_in_fp32_after_all_is_status_9(
    own: Path, in_fp32: Path, fmt: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The engine is right in every number and every hash, and is not what the manifest says."""
    name = f"small_plain-int8-{fmt}"
    source = in_fp32 / f"small_plain-fp32-{fmt}"
    copy = Path(shutil.copytree(own / name, tmp_path / "swapped"))
    for file in manifest(own, name)["runtime"]["engine_files"]:
        shutil.copy(source / file, copy / file)
    store.write_manifest(copy, read_manifest(own / name))
    capsys.readouterr()
    assert status("verify", copy) == 9
    (line,) = capsys.readouterr().err.splitlines()
    assert "requested int8" in line
    assert "'fp32': 4" in line


def test_it_is_measured_against_fp32_in_the_same_run(small: Path, views: Path, tmp_path: Path) -> None:
    recipe = ExportConfig(
        formats=("ort",),
        options=BuildOptions(precision="int8", threads=1),
        out=tmp_path,
        calib=views,
        plan=MeasurePlan(min_runs=16, min_duration_s=0.1, warmup_max_s=0.5, turn_s=0.01),
    )
    found = pipeline.run(from_name(f"{small}:plain", img_size=32), recipe)
    verdict = found.bundles[0].comparison
    assert verdict is not None and verdict.time_ratio is not None
    assert verdict.time_ratio.verdict in ("faster", "slower", "cannot tell")
    kept = manifest(tmp_path, "small_plain-int8-ort")["verdict"]
    assert (kept["sentence"], kept["time_ratio"]) == (verdict.sentence, verdict.time_ratio.value)
    printed = io.StringIO()
    Console(width=10**4, file=printed).print(*report_parts(found))
    assert verdict.sentence in printed.getvalue()
    latency = json.loads((tmp_path / "small_plain-int8-ort" / "latency.json").read_text())
    assert {each["name"] for each in latency} == {"torch", "ort", "ort fp32"}


def test_the_layer_that_costs_accuracy_is_named(
    small: Path, views: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The parity policy alone asks for it."""
    assert export(small, "outlier", tmp_path, "--calib", views, fmt="ort,openvino") == 0
    printed = " ".join(capsys.readouterr().out.split())
    for fmt in COUNTED:
        found = manifest(tmp_path, f"small_outlier-int8-{fmt}")
        assert costly(found) == ["wide/Conv"]
        assert 0.5 < found["typing"]["share"] < 0.9
        assert found["precision"]["multiply_add_shares"]["int8"] >= 0.95 * found["typing"]["share"]
        assert f"{fmt}: wide/Conv stays in float: costs accuracy" in printed
        assert status("verify", tmp_path / f"small_outlier-int8-{fmt}") == 0


def test_int8_that_does_not_keep_the_answers_is_status_9(
    small: Path, views: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """An unreachable bound, for the parity policy allows no cosine like that."""
    assert export(small, "hopeless", tmp_path, "--calib", views) == 9
    line = last_line(capsys)
    assert "int8 does not keep the answers: cosine" in line
    assert "most sensitive: only/Conv" in line
    assert list(tmp_path.iterdir()) == []


# Processors without VNNI


def pretend(monkeypatch: pytest.MonkeyPatch, flags: str) -> None:
    """Be an x86 processor with these flags."""
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    monkeypatch.setattr(cpu, "cpu_flags", lambda: frozenset(flags.split()))


@counted
def test_weights_are_safe_unless_the_full_range_is_requested(own: Path, fmt: str) -> None:
    path = own / f"small_plain-int8-{fmt}"
    typing = manifest(own, path.name)["typing"]
    assert (typing["weight_range"], typing["needs_vnni"]) == ("safe", False)
    assert not needs_vnni(OnnxGraph.load(path / "model.onnx"))


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
    typing = manifest(tmp_path, path.name)["typing"]
    assert (typing["weight_range"], typing["needs_vnni"]) == ("full", True)
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
    own: Path, views: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = Path(shutil.copytree(own / "small_plain-int8-ort", tmp_path / "old"))
    current = read_manifest(copy)
    assert current.precision_plan is not None
    plan = {key: value for key, value in current.precision_plan.items() if key != "needs_vnni"}
    store.write_manifest(copy, replace(current, precision_plan=plan))
    refused_without_vnni(copy, views, capsys, monkeypatch)


# A bound


def labelled(small: Path, factory: str, views: Path, folder: Path) -> Path:
    """The photos, each in the folder of the class that the model answers in fp32."""
    subject = from_name(f"{small}:{factory}", img_size=32)
    assert subject.preprocessing is not None
    for index in range(10):
        (folder / str(index)).mkdir(parents=True)
    for path in views.iterdir():
        with torch.inference_mode():
            logits = subject.module(torch.from_numpy(read_batch([path], subject.preprocessing)))
        shutil.copy(path, folder / str(int(logits.argmax())))
    for index in range(10):
        if not list((folder / str(index)).iterdir()):
            Image.new("RGB", (40, 40), (25 * index, 0, 0)).save(folder / str(index) / "any.png")
    return folder


def test_the_strictest_bound_holds(small: Path, views: Path, tmp_path: Path) -> None:
    data = labelled(small, "outlier", views, tmp_path / "data")
    assert export(small, "outlier", tmp_path / "out", "--calib", views, "--eval", data, "--max-drop", "0%") == 0
    found = manifest(tmp_path / "out", "small_outlier-int8-ort")
    assert "wide/Conv" in costly(found)
    assert found["verdict"]["images"] == len(list(data.rglob("*.png")))
    assert found["verdict"]["drop_points"] <= 0
    assert found["verdict"]["top1"] >= found["verdict"]["top1_fp32"] > 0.5


def test_a_bound_counts_changed_classes_where_nothing_is_labelled(small: Path, views: Path, tmp_path: Path) -> None:
    assert export(small, "outlier", tmp_path, "--calib", views, "--max-drop", "0%") == 0
    assert "wide/Conv" in costly(manifest(tmp_path, "small_outlier-int8-ort"))


def test_a_bound_that_cannot_be_reached_is_status_9(
    small: Path, views: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The cosine is as good as 1 and the classes are another: the parity policy alone would not mind."""
    data, out = labelled(small, "ties", pieces(tmp_path / "many", 20), tmp_path / "data"), tmp_path / "out"
    assert export(small, "ties", out, "--calib", views, "--eval", data, "--max-drop", "0%") == 9
    line = last_line(capsys)
    assert "int8 does not keep the answers: top-1 drops" in line
    assert "and 0.00% are allowed" in line
    assert list(out.iterdir()) == []
    assert export(small, "ties", out, "--calib", views, "--max-drop", "90%") == 0


def test_what_is_counted_without_labels_is_not_called_accuracy() -> None:
    def nearly_equal(largest: int) -> OnnxGraph:
        weight = np.ones((4, 4), np.float32)
        weight[:, largest] += 1e-3
        return graph("(float[batch, 4] x) => (float[batch, 4] y) { y = MatMul (x, w) }", w=weight)

    rows = np.eye(4, dtype=np.float32) + 1
    whole = nearly_equal(0)
    references = ReferenceData(
        outputs=(Reference(kind="photos", inputs={"x": rows}, outputs={"y": answer(whole, rows)}),),
        calibration={"x": rows},
        eval_dataset=None,
    )
    converter = lower_precision.PrecisionConverter(
        precision="int8",
        references=references,
        batch=1,
        threads=None,
        check_parity=True,
        max_drop=0,
        timer=StageTimer(),
    )
    rejection_reason = converter.acceptance_check(whole, [{"x": rows[:1]}])
    assert rejection_reason(whole) == ""
    assert rejection_reason(nearly_equal(1)) == "100.00% of the calibration inputs change class, and 0.00% are allowed"


def test_a_bound_needs_classes(small: Path, views: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert export(small, "tokens", tmp_path, "--calib", views, "--max-drop", "1%") == 2
    assert "--max-drop needs a classifier" in last_line(capsys)
    assert export(small, "tokens", tmp_path, "--calib", views, "--eval", views) == 2
    assert "--eval needs an image classifier" in last_line(capsys)
    assert list(tmp_path.iterdir()) == []


# What is refused


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--int8"], "give a folder of a hundred or more with --calib DIR"),
        (["--calib", "DIR"], "--calib requires --precision fp16 or int8"),
        (["--eval", "DIR"], "--eval requires --precision"),
        (["--max-drop", "1%"], "--max-drop requires --precision"),
        (["--int8", "--calib", "DIR", "--max-drop", "100%"], "a fraction from 0 to below 1"),
        (["--int8", "--calib", "DIR", "--max-drop", "-1%"], "--max-drop"),
        (["--int8", "--calib", "DIR", "--max-drop", "nan"], "--max-drop"),
        (["--int8", "--calib", "DIR", "--max-drop", "much"], "not a percentage"),
        (["--int8", "--calib", "DIR", "--max-drop", "1%", "--no-verify"], "leave one of them out"),
        (["--fp16", "--max-drop", "0%"], "needs labelled images; add --eval DIR"),
        (["--int8", "--fp16", "--calib", "DIR"], "fp16 and int8 were both requested; choose one precision"),
        (["--int8-range", "full"], "--int8-range requires --precision int8"),
        (["--int8", "--calib", "DIR", "--int8-range", "9"], "--int8-range"),
    ],
)
def test_a_contradiction_is_status_2(
    options: list[str], message: str, views: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own = [str(views) if word == "DIR" else word for word in options]
    assert status("export", "shiftvit_cifar10", "--fmt", "ort", "--out", tmp_path, *own) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line
    assert list(tmp_path.iterdir()) == []


def bad_folder(case: str, views: Path, folder: Path) -> Path:
    if case == "missing":
        return folder
    folder.mkdir()
    if case == "broken":
        shutil.copy(next(views.iterdir()), folder / "fine.png")
        (folder / "torn.png").write_bytes(next(views.iterdir()).read_bytes()[:200])
    elif case == "no image":
        (folder / "notes.txt").write_text("no image")
    elif case != "empty":
        colours = {"black": [(0, 0, 0)], "of one colour each": [(0, 0, 0), (255, 255, 255), (200, 30, 40)]}[case]
        for index in range(6):
            Image.new("RGB", (40, 40), colours[index % len(colours)]).save(folder / f"{index}.png")
    return folder


@pytest.mark.parametrize(
    ("case", "message"),
    [
        ("missing", "no folder of images at"),
        ("empty", "no image in"),
        ("no image", "no image in"),
        ("broken", "torn.png"),
        ("black", "6 of 6 photos in"),
        ("of one colour each", "show a single color"),
    ],
)
def test_a_folder_that_nothing_is_told_from_is_refused(
    case: str, message: str, small: Path, views: Path, tmp_path: Path
) -> None:
    calib = bad_folder(case, views, tmp_path / "calib")
    with pytest.raises(UsageError, match=message) as caught:
        calibration_inputs(from_name(f"{small}:plain", img_size=32), calib)
    assert str(calib) in str(caught.value)
    assert caught.value.exit_status == 2


@pytest.mark.parametrize("case", ["missing", "black"])
def test_such_a_folder_leaves_nothing_behind(
    case: str, small: Path, views: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert export(small, "plain", tmp_path / "out", "--calib", bad_folder(case, views, tmp_path / "calib")) == 2
    assert str(tmp_path / "calib") in last_line(capsys)
    assert list((tmp_path / "out").iterdir()) == []


def test_photos_that_are_much_too_dim_are_noticed(
    small: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Noise in the dark: what is brighter would be cut off, and the parity on photos says so."""
    calib = noise_in_the_dark(tmp_path / "calib")
    assert export(small, "plain", tmp_path / "out", "--calib", calib) == 0
    assert costly(manifest(tmp_path / "out", "small_plain-int8-ort")) == ["stem/Conv"]
    assert "stem/Conv stays in float: costs accuracy" in capsys.readouterr().out
    assert export(small, "hopeless", tmp_path / "hopeless", "--calib", calib) == 9
    assert "Calibrate with photos like those it will see" in last_line(capsys)
    assert list((tmp_path / "hopeless").iterdir()) == []


def noise_in_the_dark(folder: Path, brightest: int = 12) -> Path:
    folder.mkdir()
    random = np.random.default_rng(0)
    for index in range(8):
        pixels = random.integers(0, brightest, (40, 40, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"{index}.png")
    return folder


@pytest.mark.large
def test_the_trained_model_keeps_its_bound_in_the_dark(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Black is refused; in noise that is hardly brighter, layers go back to float by the photos it is judged on."""
    options = ["--fmt", "ort", "--int8", "--eval", str(photos / "eval"), "--no-latency", "--out", str(tmp_path / "out")]
    black, dim = noise_in_the_dark(tmp_path / "black", 1), noise_in_the_dark(tmp_path / "dim")
    assert status("export", "shiftvit_cifar10", *options, "--calib", black) == 2
    assert "show a single color" in last_line(capsys)
    assert list((tmp_path / "out").iterdir()) == []
    assert status("export", "shiftvit_cifar10", *options, "--calib", dim) == 0
    found = manifest(tmp_path / "out", "shiftvit_cifar10-int8-ort")
    assert "patch_embed.proj/Conv" in costly(found)
    assert 0.5 < found["typing"]["share"] < 0.9
    assert found["verdict"]["drop_points"] <= 1


# What photos may be


MODES = {"grey": "L", "bits": "1", "palette": "P", "transparent": "RGBA", "print": "CMYK"}


def in_every_mode(source: Path, folder: Path) -> int:
    """One photo in every way that files hold them; how many."""
    folder.mkdir()
    photo = read_image(source).resize((64, 64))
    for name, mode in MODES.items():
        photo.convert(mode).save(folder / f"{name}.{'png' if mode in ('L', '1', 'P', 'RGBA') else 'tiff'}")
    deep = np.asarray(photo.convert("L"), np.uint16) * 257
    Image.fromarray(deep).save(folder / "deep.png")
    photo.convert("CMYK").save(folder / "print.jpg")
    return len(list(folder.iterdir()))


def test_photos_of_every_kind_are_read(small: Path, views: Path, tmp_path: Path) -> None:
    count = in_every_mode(sorted(views.iterdir())[0], tmp_path / "calib")
    for path in views.iterdir():  # so that the answers hold
        shutil.copy(path, tmp_path / "calib")
    assert export(small, "plain", tmp_path / "out", "--calib", tmp_path / "calib") == 0
    typing = manifest(tmp_path / "out", "small_plain-int8-ort")["typing"]
    assert typing["photos"] == count + len(list(views.iterdir())) == 7 + 12


@pytest.mark.parametrize(
    "name",
    ["grey.png", "palette.png", "transparent.png", "print.tiff", "print.jpg", "deep.png"],
)
def test_photos_of_every_kind_are_read_right(name: str, views: Path, tmp_path: Path) -> None:
    """Within what the kind of file loses."""
    source = sorted(views.iterdir())[0]
    in_every_mode(source, tmp_path / "photos")
    found = np.asarray(read_image(tmp_path / "photos" / name).convert("L"), float)
    wanted = np.asarray(read_image(source).resize((64, 64)).convert("L"), float)
    assert np.abs(found - wanted).mean() < 16


# Arrays instead of photos


class Mlp(nn.Module):
    """Takes no photos."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(nn.Linear(24, 48), nn.ReLU(), nn.Linear(48, 48), nn.ReLU(), nn.Linear(48, 5))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.layers(x)
        return found


ROWS = np.random.default_rng(1).standard_normal((64, 24)).astype(np.float32)


@pytest.mark.parametrize(
    "fmt",
    [
        "ort",
        pytest.param(
            "openvino",
            marks=pytest.mark.xfail(
                raises=PrecisionError,
                strict=False,  # on processors with AVX2 alone it does not
                reason="OpenVINO joins it all to one Subgraph, which is read back as fp32",
            ),
        ),
    ],
)
def test_arrays_calibrate_what_takes_no_photos(fmt: str, tmp_path: Path) -> None:
    module = Mlp()
    bundle = edgevit.export(module, fmt=fmt, precision="int8", calib={"x": ROWS}, example_input=torch.zeros(1, 24),
                            batch=4, out=tmp_path)  # fmt: skip
    typing = bundle.manifest.to_json()["typing"]
    assert typing["photos"] == 16  # batches of four
    assert typing["share"] > 0.9
    assert bundle.manifest.to_json()["precision"]["multiply_add_shares"]["int8"] >= 0.95 * typing["share"]
    with edgevit.load(bundle) as engine, torch.inference_mode():
        found = next(iter(engine.run({"x": ROWS[:4]}).values()))
        wanted = module(torch.from_numpy(ROWS[:4])).numpy()
    assert np.abs(found - wanted).max() < 0.1 * wanted.std()


@pytest.mark.parametrize(
    ("calib", "message"),
    [
        ({"images": ROWS}, r"calib has the inputs \['images'\]; the model takes \['x'\]"),
        ({"x": ROWS, "z": ROWS}, "calib has the inputs"),
        ({}, "calib has the inputs"),
        ({"x": ROWS[:0]}, "at least one"),
        ({"x": ROWS.tolist()}, r"calib has a list for x; pass a NumPy array, float32 of shape \['rows', 24\]"),
        ({"x": ROWS[:, :23]}, r"calib has float32 of shape \[64, 23\] for x; expected float32 of shape"),
        ({"x": ROWS[0]}, r"calib has float32 of shape \[24\] for x"),
        ({"x": ROWS.astype(np.float64)}, r"calib has float64 of shape \[64, 24\] for x"),
        ({"x": np.where(ROWS > 2, np.nan, ROWS)}, "calib has NaN or infinity for x"),
        (OWN_PHOTOS, "--calib needs a model with one image input"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(calib: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        calibration_inputs(from_module(Mlp(), example_input=torch.zeros(1, 24)), calib)


def test_python_says_no_with_the_same_class(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--calib DIR"):
        edgevit.export(Mlp(), fmt="ort", precision="int8", example_input=torch.zeros(1, 24), out=tmp_path)
    with pytest.raises(PrecisionError, match="no layer that would gain by int8"):
        edgevit.export(
            nn.ReLU(),
            fmt="ort",
            precision="int8",
            calib={"input": ROWS},
            example_input=torch.zeros(1, 24),
            out=tmp_path,
        )
    assert list(tmp_path.iterdir()) == []


# TensorRT


@needs_no_tensorrt
def test_trt_writes_a_graph_of_symmetric_int8_and_fp16(small: Path, views: Path, tmp_path: Path) -> None:
    assert export(small, "plain", tmp_path, "--calib", views, fmt="trt") == 3
    path = tmp_path / "small_plain-int8-trt"
    found = manifest(tmp_path, path.name)
    assert (found["typing"]["activations"], found["typing"]["rest"]) == ("int8", "fp16")
    assert found["verdict"]["judged"] == "the ONNX graph"
    assert found["precision"]["found"] is None
    check_types_of_tensorrt(OnnxGraph.load(path / "model.onnx"))


def check_types_of_tensorrt(graph: OnnxGraph) -> None:
    """Zero points are 0, weights are int8, and what is neither is fp16 but for the ends."""
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


# Every family

SMALLEST = ("mobileformer_26m", "vitae_t", "shuffle_deit_t", "t2t_vit_7", "swin_xt", "vt_resnet18", "vitaev2_s",
            "shiftvit_t_light")  # fmt: skip


def families(*quick: tuple[str, str], each: tuple[str, ...]) -> pytest.MarkDecorator:
    """Everyday the quick pairs, and else every family in each way."""
    slow = [pytest.param(name, way, marks=pytest.mark.large) for name in SMALLEST for way in each]
    cases = [case for case in slow if case.values not in quick]
    return pytest.mark.parametrize(("name", "way"), [*quick, *cases])


@families(("vt_resnet18", "ort"), ("t2t_vit_7", "ort"), each=("ort,openvino",))
def test_every_family_runs_in_int8(name: str, way: str, tmp_path: Path) -> None:
    """Or says which part does not, and why."""
    options: list[str | Path] = ["--int8", "--calib", OWN_PHOTOS, "--threads", "1", "--no-latency", "--out", tmp_path]
    assert status("export", name, "--fmt", way, *options) == 0
    for fmt in way.split(","):
        found = manifest(tmp_path, f"{name}-int8-{fmt}")
        assert found["parity"]["passed"] is True
        assert found["typing"]["share"] > 0.4  # of Mobile-Former, whose convolutions are small and in groups
        assert found["precision"]["multiply_add_shares"]["int8"] >= 0.95 * found["typing"]["share"]
        assert all(node["name"] and node["reason"] for node in found["typing"]["kept"])
        assert status("verify", tmp_path / f"{name}-int8-{fmt}", "--threads", "1") == 0


@needs_rtx
@families(("vt_resnet18", "int8"), each=("fp16", "int8"))
def test_every_family_builds_for_tensorrt_rtx(name: str, way: str, tmp_path: Path) -> None:
    calib: list[str | Path] = ["--calib", OWN_PHOTOS] if way == "int8" else []
    options: list[str | Path] = ["--precision", way, *calib, "--sm", "86", "--no-latency", "--out", tmp_path]
    assert status("export", name, "--fmt", "trt-rtx", *options) == 0
    path = tmp_path / f"{name}-{way}-trt-rtx"
    found = manifest(tmp_path, path.name)
    assert found["parity"]["passed"] is True
    assert found["runtime"]["engine_files"]
    assert found["precision"]["layers"].get(way, 0) > 0
    assert found["verdict"]["judged"] == "the ONNX graph"


# The house


@pytest.mark.parametrize("package", ["nncf", "openvino_telemetry", "modelopt"])
def test_nothing_of_others_quantises_or_tells(package: str) -> None:
    statement = re.compile(rf"^\s*(import|from)\s+{package}\b", re.MULTILINE)
    sources = [
        path for folder in ("edgevit", "export", "runtimes", "latency") for path in (ROOT / folder).rglob("*.py")
    ]
    assert len(sources) > 100
    assert [str(path) for path in sources if statement.search(path.read_text("utf-8"))] == []


@pytest.mark.parametrize(
    ("bound", "images", "lost", "passes"),
    [
        (0.01, 1000, 8, True),
        (0.01, 1000, 9, False),  # what the engine rounds otherwise has to fit in too
        (0.01, 110, 1, True),  # of few images one may go, where the bound allows it
        (0.01, 110, 2, False),
        (0.01, 99, 1, False),  # one is more than the bound
        (0.0, 1000, 1, False),
    ],
)
def test_what_may_be_lost_while_layers_are_chosen(bound: float, images: int, lost: int, passes: bool) -> None:
    assert ((100 * lost / images) / 100 <= lower_precision.tolerance(bound, images)) == passes
