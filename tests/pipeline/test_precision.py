"""Acceptance of a quantized graph: the bound on top-1 and the parity tolerance."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from edgevit.export.check import check
from edgevit.export.graph import OnnxGraph
from edgevit.export.quantization.fp16 import PrecisionPlan, to_fp16
from edgevit.images import read_batch
from edgevit.models.loading import from_name
from edgevit.pipeline import precision
from edgevit.pipeline.evaluators import graph_evaluator
from edgevit.runtimes.base import BuildOptions, Engine
from edgevit.runtimes.onnxruntime import OnnxRuntime, OnnxRuntimeEngine
from edgevit.types import Array, Feeds, Precision
from tests.helpers.cli import last_line, status
from tests.helpers.graphs import noise, parse
from tests.helpers.int8 import (
    costly,
    dark_noise_photos,
    export,
    manifest,
    save_crops,
)
from tests.helpers.quantization import int8_converter, snr_db

HEADER = '<ir_version: 10, opset_import: ["" : 20]>'


def labeled(small: Path, factory: str, views: Path, folder: Path) -> Path:
    """Sort the photos into folders by the class that the model predicts in fp32."""
    model = from_name(f"{small}:{factory}", img_size=32)
    assert model.preprocessing is not None
    for index in range(10):
        (folder / str(index)).mkdir(parents=True)
    for path in views.iterdir():
        with torch.inference_mode():
            logits = model.module(torch.from_numpy(read_batch([path], model.preprocessing)))
        shutil.copy(path, folder / str(int(logits.argmax())))
    for index in range(10):
        if not list((folder / str(index)).iterdir()):
            Image.new("RGB", (40, 40), (25 * index, 0, 0)).save(folder / str(index) / "any.png")
    return folder


def test_max_drop_of_zero_holds(small: Path, views: Path, tmp_path: Path) -> None:
    data = labeled(small, "outlier", views, tmp_path / "data")
    assert export(small, "outlier", tmp_path / "out", "--calib", views, "--eval", data, "--max-drop", "0%") == 0
    found = manifest(tmp_path / "out", "small_outlier-int8-ort")
    assert "wide/Conv" in costly(found)
    assert found["verdict"]["images"] == len(list(data.rglob("*.png")))
    assert found["verdict"]["drop_points"] <= 0
    assert found["verdict"]["top1"] >= found["verdict"]["top1_fp32"] > 0.5


def test_an_engine_that_misses_parity_gets_more_layers_in_float(
    small: Path, views: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The graph passes, and the engine is wrong as long as more than two of its layers are int8."""
    infer, built = OnnxRuntimeEngine._infer, set()

    def wrong(engine: OnnxRuntimeEngine, feeds: Mapping[str, Array]) -> dict[str, Array]:
        outputs = infer(engine, feeds)
        layers = engine.executed_layers().layers.get("int8", 0) if engine._optimized else 0
        built.add(layers)
        return {name: -array if layers > 2 else array for name, array in outputs.items()}

    monkeypatch.setattr(OnnxRuntimeEngine, "_infer", wrong)
    assert export(small, "uneven", tmp_path, "--calib", views) == 0
    found = manifest(tmp_path, "small_uneven-int8-ort")
    assert costly(found) == ["wide/Conv"] and max(built) == 3
    assert [stage["name"] for stage in found["exporter"]["stages"]].count("ort: build") == 2


def test_max_drop_counts_changed_classes_without_labels(small: Path, views: Path, tmp_path: Path) -> None:
    assert export(small, "outlier", tmp_path, "--calib", views, "--max-drop", "0%") == 0
    assert "wide/Conv" in costly(manifest(tmp_path, "small_outlier-int8-ort"))


def test_an_unreachable_max_drop_is_status_9(
    small: Path, views: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The cosine is close to 1 but classes change: the parity tolerance alone would accept it."""
    data, out = labeled(small, "ties", save_crops(tmp_path / "many", 20), tmp_path / "data"), tmp_path / "out"
    assert export(small, "ties", out, "--calib", views, "--eval", data, "--max-drop", "0%") == 9
    line = last_line(capsys)
    assert "int8 changes the outputs too much: top-1 drops" in line
    assert "and 0.00% are allowed" in line
    assert list(out.iterdir()) == []
    assert export(small, "ties", out, "--calib", views, "--max-drop", "90%") == 0


@pytest.mark.parametrize(("expanded", "sliced"), [(40, True), (160, False)])
def test_wide_maps_between_float_convolutions_are_sliced_in_int8(expanded: int, *, sliced: bool) -> None:
    """Convolutions with 16 to 40 channels are in float for their conversions; those with 160 are int8."""
    text = f"""{HEADER} g (float[batch, 24, 96, 96] x) => (float[batch, 24, 96, 96] y, float[batch, 32, 96, 96] z) {{
        z = Conv <pads = [1, 1, 1, 1]> (x, large)
        a = Sigmoid (x)
        b = Conv (a, expand)
        c = Relu (b)
        d = Mul (c, two)
        e = Max (c, d)
        y = Conv (e, reduce)
    }}"""
    expand, reduce = noise(expanded, 24, 1, 1, seed=0), noise(24, expanded, 1, 1, seed=1)
    large, two = noise(32, 24, 3, 3, seed=2), np.asarray(0.5, np.float32)
    graph = check(parse(text, expand=expand, reduce=reduce, large=large, two=two))
    rows = noise(1, 24, 96, 96, seed=3)
    outputs = graph_evaluator(graph)({"x": rows})
    converted, plan = int8_converter(graph, rows, fmt="ort").convert()
    assert (converted.operators["Max"] > 1) == sliced
    assert plan is not None and len(plan.kept) == (2 if sliced else 0)
    found = graph_evaluator(converted)({"x": rows})
    assert all(snr_db(outputs[name], found[name]) > 25 for name in outputs)


def test_without_labels_the_reason_names_changed_classes() -> None:
    def nearly_equal(largest: int) -> OnnxGraph:
        weight = np.ones((4, 4), np.float32)
        weight[:, largest] += 1e-3
        return check(parse(f"{HEADER} g (float[batch, 4] x) => (float[batch, 4] y) {{ y = MatMul (x, w) }}", w=weight))

    rows = np.eye(4, dtype=np.float32) + 1
    whole = nearly_equal(0)
    rejection_reason = int8_converter(whole, rows, fmt="trt", max_drop=0).acceptance_check([{"x": rows[:1]}])
    assert rejection_reason(whole) == ""
    assert rejection_reason(nearly_equal(1)) == "100.00% of the calibration inputs change class, and 0.00% are allowed"


def test_classes_are_those_of_the_logits_and_not_of_the_first_output() -> None:
    def with_weights(features: int, logits: int) -> OnnxGraph:
        weights = {"a": np.ones((4, 4), np.float32), "b": np.ones((4, 4), np.float32)}
        weights["a"][:, features] += 1e-3
        weights["b"][:, logits] += 1e-3
        text = "(float[batch, 4] x) => (float[batch, 4] features, float[batch, 4] logits)"
        return check(parse(f"{HEADER} g {text} {{ features = MatMul (x, a) logits = MatMul (x, b) }}", **weights))

    rows = np.eye(4, dtype=np.float32) + 1
    whole = with_weights(0, 0)
    rejection_reason = int8_converter(whole, rows, fmt="trt", max_drop=0).acceptance_check([{"x": rows[:1]}])
    assert rejection_reason(with_weights(1, 0)) == ""
    assert "change class" in rejection_reason(with_weights(0, 1))


@pytest.mark.parametrize("requested", ["fp16", "int8"])
def test_fp16_is_decided_on_as_many_rows_for_a_whole_graph_as_for_the_rest_of_int8(
    requested: Precision, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows: list[int] = []

    def recording(graph: OnnxGraph, feeds: Sequence[Feeds], **options: Any) -> tuple[OnnxGraph, PrecisionPlan]:
        rows.append(sum(len(feed["x"]) for feed in feeds))
        return to_fp16(graph, feeds, **options)

    monkeypatch.setattr(precision, "to_fp16", recording)
    text = f"{HEADER} g (float[batch, 64] x) => (float[batch, 64] y) {{ y = MatMul (x, w) }}"
    graph, inputs = check(parse(text, w=noise(64, 64))), noise(3 * precision.MAX_FP16_ROWS, 64, seed=1)
    converter = replace(int8_converter(graph, inputs, fmt="trt"), precision=requested, batch=4)
    converter.convert()
    assert rows == [precision.MAX_FP16_ROWS]


@pytest.mark.parametrize(
    ("wrong", "reason"), [(5, ""), (20, "80.0% of pixels keep their class, at least 92.0% required")]
)
def test_a_map_of_classes_is_accepted_by_its_pixels(wrong: int, reason: str) -> None:
    """Class 255 in place of 0 is one wrong pixel, not an error of 255."""

    def with_limit(limit: float) -> OnnxGraph:
        text = """g (float[batch, 10, 10] x) => (uint8[batch, 10, 10] classes) {
            above = Less (x, limit) number = Cast <to=1> (above)
            scaled = Mul (number, most) classes = Cast <to=2> (scaled)
        }"""
        values = {"limit": np.float32(limit), "most": np.float32(255)}
        return check(parse(f"{HEADER} {text}", **{name: np.array(value) for name, value in values.items()}))

    photos = np.arange(100, dtype=np.float32).reshape(1, 10, 10)
    whole = with_limit(0)
    stored = {"classes": graph_evaluator(whole)({"x": photos})["classes"].astype(np.float32)}
    rejection_reason = int8_converter(whole, photos, fmt="trt", outputs=stored).acceptance_check([{"x": photos}])
    assert rejection_reason(with_limit(wrong)) == reason


def test_max_drop_needs_a_classifier(
    small: Path, views: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert export(small, "tokens", tmp_path, "--calib", views, "--max-drop", "1%") == 2
    assert "--max-drop needs a classifier" in last_line(capsys)
    assert export(small, "tokens", tmp_path, "--calib", views, "--eval", views) == 2
    assert "--eval needs an image classifier" in last_line(capsys)
    assert list(tmp_path.iterdir()) == []


def test_photos_that_are_too_dark_cost_layers(small: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Ranges from dark noise clip brighter photos, and the parity check on photos notices."""
    calib = dark_noise_photos(tmp_path / "calib")
    assert export(small, "plain", tmp_path / "out", "--calib", calib) == 0
    assert costly(manifest(tmp_path / "out", "small_plain-int8-ort")) == ["stem/Conv"]
    assert "stem/Conv stays in float: costs accuracy" in capsys.readouterr().out
    assert export(small, "hopeless", tmp_path / "hopeless", "--calib", calib) == 9
    assert "Calibrate with images like those the model will see" in last_line(capsys)
    assert list((tmp_path / "hopeless").iterdir()) == []


@pytest.mark.large
def test_the_trained_model_keeps_its_accuracy_with_dark_calibration_photos(
    cifar10_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Black photos are rejected; with dark noise, layers go back to float until the reference photos pass."""
    options = [
        "--fmt",
        "ort",
        "--int8",
        "--eval",
        str(cifar10_folder / "eval"),
        "--no-latency",
        "--out",
        str(tmp_path / "out"),
    ]
    black, dim = dark_noise_photos(tmp_path / "black", 1), dark_noise_photos(tmp_path / "dim")
    assert status("export", "shiftvit_cifar10", *options, "--calib", black) == 2
    assert "show a single color" in last_line(capsys)
    assert list((tmp_path / "out").iterdir()) == []
    assert status("export", "shiftvit_cifar10", *options, "--calib", dim) == 0
    found = manifest(tmp_path / "out", "shiftvit_cifar10-int8-ort")
    assert "patch_embed.proj/Conv" in costly(found)
    assert 0.5 < found["typing"]["share"] < 0.9
    assert found["verdict"]["drop_points"] <= 1


@pytest.mark.parametrize(
    ("bound", "images", "lost", "passes"),
    [
        (0.01, 1000, 8, True),
        (0.01, 1000, 9, False),  # the margin for the engine's own rounding
        (0.01, 110, 1, True),  # with few images one may be lost, if the bound allows it
        (0.01, 110, 2, False),
        (0.01, 99, 1, False),  # one is more than the bound
        (0.0, 1000, 1, False),
    ],
)
def test_tolerance_while_layers_are_chosen(bound: float, images: int, lost: int, passes: bool) -> None:
    assert ((100 * lost / images) / 100 <= precision.tolerance(bound, images)) == passes


@pytest.mark.parametrize("options", [[], ["--max-drop", "5%"]])
def test_losing_accuracy_without_parity_is_status_6(
    options: list[str],
    small: Path,
    views: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """--no-verify skips parity only. The engine differs from the accepted graph, as on an unsuitable processor."""

    class WrongInInt8(OnnxRuntime):
        def open(self, path: Path, options: BuildOptions) -> Engine:
            engine = super().open(path, options)
            if options.precision == "int8":
                run = engine.run
                monkeypatch.setattr(engine, "run", lambda feeds: {name: -out for name, out in run(feeds).items()})
            return engine

    monkeypatch.setattr("edgevit.runtimes.onnxruntime.OnnxRuntime", WrongInInt8)
    data, out = labeled(small, "plain", views, tmp_path / "data"), tmp_path / "out"
    assert export(small, "plain", out, "--calib", views, "--eval", data, "--no-verify", *options) == 6
    line = last_line(capsys)
    assert "ort in int8 (the engine) loses " in line
    assert f"points of top-1, and {5 if options else 1} are allowed" in line
    assert list(out.iterdir()) == []
