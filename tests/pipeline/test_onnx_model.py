"""An ONNX file goes the road of a module, without PyTorch: proven against its own unoptimized run."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import edgevit
from edgevit.bundles.bundle import Bundle
from edgevit.bundles.source_model import load_unchecked
from edgevit.errors import BundleError, ExportError, UsageError
from edgevit.export import onnx_writer, passes, weights
from edgevit.export.graph import OnnxGraph
from edgevit.files import file_sha256
from edgevit.pipeline.onnx_model import load_onnx_model
from tests.helpers.cli import last_line, status
from tests.helpers.graphs import HEADER, batchnorm_parameters, broken_optimize, noise, parse

_WITHOUT_TORCH = """
import sys
sys.modules["torch"] = None
from edgevit.cli.main import main
sys.exit(main(sys.argv[1:]))
"""


def network(batch: str = "batch", size: str = "16, 16", *, inputs: str = "", add: str = "pooled") -> OnnxGraph:
    """A convolution with a batch normalization, a ReLU, a mean and a classifier of five classes."""
    text = f"""{HEADER} g (float[{batch}, 3, {size}] images{inputs}) => (float[{batch}, 5] logits) {{
        a = Conv <pads = [1, 1, 1, 1]> (images, w)
        b = BatchNormalization (a, scale, bias, mean, var)
        c = Relu (b)
        pooled = ReduceMean <keepdims = 0> (c, axes)
        logits = Gemm <transB = 1> ({add}, head, head_bias)
    }}"""
    arrays = {"w": noise(8, 3, 3, 3), "head": noise(5, 8, seed=1), "head_bias": noise(5, seed=2)}
    return parse(text, **arrays, axes=np.array([2, 3], np.int64), **batchnorm_parameters(8))


@pytest.fixture
def file(tmp_path: Path) -> Path:
    network().save(tmp_path / "Net v2.onnx")
    return tmp_path / "Net v2.onnx"


def test_a_file_becomes_proven_bundles_where_torch_cannot_be_imported(file: Path) -> None:
    out = file.parent / "out"
    command = [sys.executable, "-c", _WITHOUT_TORCH, "export", str(file), "--fmt", "ort", "--int8"]
    photos = Path(edgevit.__file__).parent / "data" / "photos"
    more = [
        "--calib",
        str(photos),
        "--latency-time",
        "1",
        "--out",
        str(out),
        "--json",
        str(file.with_name("report.json")),
    ]
    done = subprocess.run([*command, *more], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "the file in ONNX Runtime" in done.stdout and "PyTorch" not in done.stdout
    report = json.loads(file.with_name("report.json").read_text())
    assert report["parity"]["passed"] and report["latency"][0]["name"] == "the file (ort)"
    manifest = Bundle.open(out / "net_v2-int8-ort").manifest
    assert (manifest.model.source, manifest.model.weights) == ("onnx:Net v2.onnx", "Net v2.onnx")
    assert (manifest.model.weights_sha256, manifest.model.preprocessing_source) == (file_sha256(file), "assumed")
    assert manifest.exporter is not None and manifest.exporter.torch is None
    assert manifest.precision.executed is not None and manifest.precision.executed.layers["int8"] > 0
    assert str(file.parent) not in (out / "net_v2-int8-ort" / "manifest.json").read_text()
    with edgevit.load(out / "net_v2-int8-ort") as engine:
        assert engine.run({"images": np.zeros((1, 3, 16, 16), np.float32)})["logits"].shape == (1, 5)


def test_a_dynamic_batch_and_the_size_of_dynamic_sides(tmp_path: Path) -> None:
    network(size="H, W").save(tmp_path / "net.onnx")
    arguments = ("--fmt", "ort", "--dynamic-batch", "1:2:3", "--img-size", "12x20", "--no-latency", "--out", tmp_path)
    assert status("export", tmp_path / "net.onnx", *arguments) == 0
    bundle = Bundle.open(tmp_path / "net-fp32-ort")
    assert bundle.manifest.inputs[0].shape == ("batch", 3, 12, 20)
    with edgevit.load(bundle) as engine:
        assert engine.run({"images": np.zeros((3, 3, 12, 20), np.float32)})["logits"].shape == (3, 5)


def test_a_fixed_batch_is_kept_and_several_inputs_are_taken(tmp_path: Path) -> None:
    graph = network("2", inputs=", float[2, 8] extra", add="extra")
    graph.save(tmp_path / "net.onnx")
    bundle = edgevit.export(str(tmp_path / "net.onnx"), fmt="ort", out=tmp_path, name="two")
    assert [spec.shape for spec in bundle.manifest.inputs] == [(2, 3, 16, 16), (2, 8)]
    assert bundle.manifest.model.preprocessing is None


def test_a_graph_that_computes_something_else_fails_parity(
    file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(passes, "optimize", broken_optimize(factor=1.01))
    assert status("export", file, "--fmt", "ort", "--no-latency", "--out", file.parent) == 6
    message = last_line(capsys)
    assert "parity failed" in message and "PyTorch" not in message
    assert not (file.parent / "net_v2-fp32-ort").exists()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--weights", "net.pth"], "--weights does not apply to net.onnx"),
        (["--num-classes", "7"], "--num-classes does not apply to net.onnx"),
        (["--arg", "depth=2"], "--arg does not apply to net.onnx"),
        (["--batch", "3"], "net.onnx has a fixed batch of 2; leave --batch out"),
        (["--dynamic-batch", "1:2:4"], "net.onnx has a fixed batch of 2; leave --dynamic-batch out"),
        (["--img-size", "24"], "net.onnx takes images of 16 x 16 only; leave --img-size out"),
        (["--input-shape", "image=2,3,16,16"], "unknown input 'image'"),
        (["--input-shape", "images=2,3,8,8"], "does not fit its shape [2, 3, 16, 16]"),
        (["--classes", "names.txt"], "2 class names for 5 classes"),
    ],
)
def test_a_wrong_request_is_one_line(
    options: list[str], words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    network("2").save(Path("net.onnx"))
    Path("names.txt").write_text("cat\ndog\n")
    assert status("export", "net.onnx", "--fmt", "ort", "--no-latency", *options) == 2
    assert words in last_line(capsys)


def test_photos_are_shown_whole_as_the_command_line_says(file: Path) -> None:
    shown = ["--resize-mode", "shorter_side", "--edges", "8:12", "--pad-color", "0,0.5,1", "--pad-side", "center"]
    settings = ["--mean", "0.5,0.5,0.5", "--std", "0.5,0.5,0.5", *shown]
    assert status("export", file, "--fmt", "onnx", *settings, "--no-latency", "--no-verify", "--out", file.parent) == 0
    found = Bundle.open(file.parent / "net_v2-fp32-onnx").preprocessing
    assert (found.resize, found.edges, found.pad, found.pad_side) == ("shorter_side", (8, 12), (-1, 0, 1), "center")


def test_a_model_above_2_gb_is_exported_verified_and_built_with_its_weights_beside_it(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The limit is lowered instead: the same code writes and reads both files."""
    monkeypatch.setattr(onnx_writer, "MAX_BYTES", weights.MAX_SKELETON_BYTES)
    monkeypatch.setattr(weights, "MIN_ELEMENTS", 100)
    assert status("export", file, "--fmt", "ort,openvino", "--no-latency", "--out", file.parent) == 0
    bundle = file.parent / "net_v2-fp32-ort"
    assert Bundle.open(bundle).manifest.runtime.engine_files == ("model.onnx", "model.onnx.data")
    assert status("verify", bundle) == 0
    assert status("build", bundle, "--fmt", "onnx") == 0
    assert status("verify", file.parent / "net_v2-fp32-onnx") == 0
    (bundle / "model.onnx.data").write_bytes(bytes(1000))
    with pytest.raises(BundleError, match=r"model\.onnx\.data is not the file that was exported"):
        Bundle.open(bundle)


def test_inputs_without_a_common_batch_are_refused(tmp_path: Path) -> None:
    network("2", inputs=", float[8] extra").save(tmp_path / "net.onnx")
    with pytest.raises(UsageError, match=r"no common batch \(images: \[2, 3, 16, 16\], extra: \[8\]\)"):
        load_onnx_model(tmp_path / "net.onnx")


def test_a_file_without_inputs_is_refused(tmp_path: Path) -> None:
    parse(f"{HEADER} g () => (float[2, 4] y) {{ y = Relu (w) }}", w=noise(2, 4)).save(tmp_path / "net.onnx")
    with pytest.raises(UsageError, match=r"net\.onnx has no inputs.*give a file that takes some"):
        load_onnx_model(tmp_path / "net.onnx")


def test_an_input_that_openvino_removes_is_to_be_removed_from_the_file(tmp_path: Path) -> None:
    text = f"{HEADER} g (float[1, 4] x, float[1, 4] spare) => (float[1, 4] y) {{ y = Relu (x) }}"
    parse(text).save(tmp_path / "net.onnx")
    with pytest.raises(ExportError, match=r"no output depends on input spare.*; remove the input from the file$"):
        edgevit.export(str(tmp_path / "net.onnx"), fmt="openvino", out=tmp_path)


@pytest.mark.parametrize(
    ("precision", "code", "reason"),
    [
        ("fp16", 2, "is in a lower precision already (it has DequantizeLinear); give the fp32 file"),
        (
            "fp32",
            9,
            "has QuantizeLinear, so that it runs in int8 and not in the requested fp32; give the fp32 file, or",
        ),
    ],
)
def test_a_file_in_int8_is_not_converted_again(
    precision: str, code: int, reason: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = f"""{HEADER} g (float[1, 4] x) => (float[1, 4] y)
        <float scale = {{0.1}}, int8 zero = {{0}}> {{
        q = QuantizeLinear (x, scale, zero)
        y = DequantizeLinear (q, scale, zero)
    }}"""
    parse(text).save(tmp_path / "net.onnx")
    options = ("--fmt", "onnx", "--precision", precision, "--no-latency", "--out", tmp_path)
    assert status("export", tmp_path / "net.onnx", *options) == code
    assert reason in last_line(capsys)


def test_the_bundle_of_a_file_has_no_pytorch_model(file: Path) -> None:
    bundle = edgevit.export(str(file), fmt="onnx", out=file.parent, verify=False)
    with pytest.raises(UsageError, match=r"exported from the ONNX file Net v2\.onnx; name the PyTorch model"):
        load_unchecked(bundle)


def test_another_batch_is_that_of_an_export_unless_the_file_fixes_it(file: Path) -> None:
    assert load_onnx_model(file).with_batch(4).inputs == load_onnx_model(file, batch=4).inputs
    network("2").save(file)
    assert load_onnx_model(file).with_batch(2).batch == 2
    with pytest.raises(UsageError, match=r"Net v2.onnx has a fixed batch of 2; leave --batch out"):
        load_onnx_model(file).with_batch(4)


def test_a_file_with_random_outputs_is_refused_with_the_node(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = f"""{HEADER} g (float[N, 3, 8, 8] x) => (float[N, 3, 8, 8] y) {{
        drawn = RandomNormalLike (x)
        y = Add (x, drawn)
    }}"""
    parse(text).save(tmp_path / "net.onnx")
    assert status("export", tmp_path / "net.onnx", "--fmt", "ort", "--no-latency", "--out", tmp_path) == 4
    message = last_line(capsys)
    assert "gives different outputs for the same input" in message
    assert "RandomNormalLike draws 'drawn' at random; export the model without it" in message
    assert not (tmp_path / "net-fp32-ort").exists()


def test_inputs_of_bytes_are_compared_on_noise_and_indices_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    text = f"""{HEADER} g (uint8[N, 3, 8, 8] x, int64[N, 4] ids) => (float[N, 2, 6, 6] y, float[N, 4, 6] z) {{
        floats = Cast <to = 1> (x)
        y = Conv (floats, w)
        z = Gather (table, ids)
    }}"""
    parse(text, w=noise(2, 3, 3, 3), table=noise(5, 6)).save(tmp_path / "net.onnx")
    arguments = ("--fmt", "ort", "--no-latency", "--out", tmp_path)
    with caplog.at_level(logging.WARNING):
        assert status("export", tmp_path / "net.onnx", *arguments) == 0
    assert "the integer input ids was compared with one value only (0)" in caplog.text
    with np.load(tmp_path / "net-fp32-ort" / "reference.npz") as reference:
        (image,) = [reference[name] for name in reference.files if reference[name].dtype == np.uint8]
    assert image.max() > 200


def test_weights_in_fp16_are_exported_in_fp32(tmp_path: Path) -> None:
    text = f"""{HEADER} g (float[N, 4] x) => (float[N, 2] y) {{
        weights = Cast <to = 1> (half)
        y = MatMul (x, weights)
    }}"""
    parse(text, half=noise(4, 2).astype(np.float16)).save(tmp_path / "net.onnx")
    assert status("export", tmp_path / "net.onnx", "--fmt", "ort", "--no-latency", "--out", tmp_path) == 0
