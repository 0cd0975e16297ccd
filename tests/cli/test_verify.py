"""`edgevit verify`."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest
from PIL import Image

from edgevit.bundles import store
from edgevit.bundles.bundle import Bundle
from edgevit.export.graph import OnnxGraph
from edgevit.files import MODEL_FILE
from edgevit.runtimes.build import build_engine
from edgevit.runtimes.registry import get_runtime
from tests.helpers.bundles import damage
from tests.helpers.cli import USER_MODEL, status
from tests.tools.faults import Plant, plant


def test_verify_passes(bundle: Bundle, capsys: pytest.CaptureFixture[str]) -> None:
    assert status("verify", bundle.path) == 0
    assert capsys.readouterr().out.startswith(f"{bundle.path}: parity passed (max error ")
    assert status("verify", bundle.path, "--json", "-") == 0
    assert json.loads(capsys.readouterr().out)["passed"] is True


def test_verify_on_other_images_compares_with_pytorch(bundle: Bundle, tmp_path: Path) -> None:
    Image.effect_noise((40, 50), 90).save(tmp_path / "noise.png")
    assert status("verify", bundle.path, "--images", tmp_path) == 0


def test_verify_detects_different_outputs(
    own_bundle: Bundle, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """Reference answers of another model, with hashes made to fit: only the comparison itself can notice."""
    from edgevit.bundles.manifest import REFERENCE_FILE
    from edgevit.types import Reference

    other = [
        Reference(kind=r.kind, inputs=r.inputs, outputs={name: array[:, ::-1] for name, array in r.outputs.items()})
        for r in own_bundle.references()
    ]
    store.write_references(own_bundle.path / REFERENCE_FILE, other)
    store.write_manifest(own_bundle.path, own_bundle.manifest)
    assert status("verify", own_bundle.path, "--json", tmp_path / "verdict.json") == 6
    assert "parity failed" in capsys.readouterr().err
    verdict = json.loads((tmp_path / "verdict.json").read_text())
    assert verdict["exit_status"] == 6
    assert verdict["parity"]["passed"] is False
    assert status("verify", own_bundle.path, "--explain") == 6
    assert "it cannot be explained: the PyTorch model does not match" in capsys.readouterr().err


def test_a_bundle_that_fails_names_the_users_module_and_a_command_that_reproduces_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A sign is lost in the graph that the engine is built of: with hashes made to fit, only the answers notice."""
    (tmp_path / "mine.py").write_text(USER_MODEL)
    model = f"{tmp_path / 'mine.py'}:build"
    exported = ("export", model, "--fmt", "ort", "--img-size", "8", "--no-latency")
    assert status(*exported, "--out", tmp_path) == 0
    bundle = Bundle.open(tmp_path / "mine_build-fp32-ort")
    file = bundle.path / MODEL_FILE
    plant(OnnxGraph.load(file), Plant("a sign", "head/Gemm")).save(file)
    build_engine(get_runtime("ort"), file, bundle.path, bundle.options)
    store.write_manifest(bundle.path, bundle.manifest)
    capsys.readouterr()
    assert status("verify", bundle.path, "--explain", "--model", model) == 6
    printed = capsys.readouterr().err
    assert "the first module that differs is head (Linear)" in printed
    assert "reproduce: edgevit verify " in printed
    command = printed.partition("reproduce: edgevit ")[2].splitlines()[0]
    assert status(*shlex.split(command)) == 6


@pytest.mark.parametrize(
    ("place", "value"),
    [
        ("model.preprocessing.input_size", [3, 64, 64]),
        ("inputs.0.name", "x"),
        ("inputs.0.dtype", "float16"),
        ("inputs.0.shape", [1, 3, 9, 9]),
        ("inputs.0.shape", [2, 3, 32, 32]),
        ("inputs", [{"name": "x", "dtype": "float16", "shape": [1, 3, 9, 9]}]),
        ("inputs", []),
        ("outputs.0.name", "x"),
        ("outputs.0.dtype", "float16"),
        ("outputs.0.shape", ["batch", 11]),
        ("outputs", []),
    ],
)
def test_a_manifest_that_describes_other_tensors_than_the_engine_has_is_damaged(
    place: str, value: object, own_bundle: Bundle, capsys: pytest.CaptureFixture[str]
) -> None:
    damage(own_bundle.path, place, value)
    assert status("verify", own_bundle.path) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    field = place if place.startswith("model") else place.partition(".")[0]
    assert f"manifest.json is damaged: {field} is " in line
    assert "the engine " in line


def test_the_options_of_a_saved_part_are_refused_for_a_bundle(
    bundle: Bundle, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert status("verify", bundle.path, "--fmt", "ort") == 2
    assert "--fmt and --precision require a part of a graph" in capsys.readouterr().err
    assert status("verify", tmp_path / "part.onnx") == 2
    assert "part.npz is missing" in capsys.readouterr().err


@pytest.mark.parametrize(
    "option",
    [("--explain",), ("--images", "."), ("--model", "mine.py:build"), ("--arg", "depth=2"), ("--weights", "w.pt")],
)
def test_a_part_of_a_graph_takes_no_options_of_a_bundle(
    option: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert status("verify", tmp_path / "part.onnx", *option) == 2
    assert f"{option[0]} requires a bundle" in capsys.readouterr().err
