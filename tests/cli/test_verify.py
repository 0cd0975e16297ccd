"""`edgevit verify`."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest
from PIL import Image

import edgevit
from edgevit.bundles import store
from edgevit.bundles.bundle import Bundle
from edgevit.errors import ImageError
from edgevit.export.graph import OnnxGraph
from edgevit.files import MODEL_FILE
from edgevit.models.loading import from_name
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


def wrong_bundle(folder: Path) -> tuple[Bundle, str]:
    """A bundle of the user's mine.py and the model's name; a sign is lost in its graph, and the hashes are made to fit.

    mine.py notes in the file `created` each time that it creates the model.
    """
    note = 'def build():\n    (Path(__file__).parent / "created").open("a").write("+")'
    (folder / "mine.py").write_text("from pathlib import Path\n" + USER_MODEL.replace("def build():", note))
    model = f"{folder / 'mine.py'}:build"
    exported = ("export", model, "--fmt", "ort", "--img-size", "8", "--no-latency")
    assert status(*exported, "--out", folder) == 0
    bundle = Bundle.open(folder / "mine_build-fp32-ort")
    file = bundle.path / MODEL_FILE
    plant(OnnxGraph.load(file), Plant("a sign", "head/Gemm")).save(file)
    build_engine(get_runtime("ort"), file, bundle.path, bundle.options)
    store.write_manifest(bundle.path, bundle.manifest)
    (folder / "created").unlink()
    return Bundle.open(bundle.path), model


def photos(folder: Path, count: int) -> Path:
    """A folder of photos, which the worst of a failed check is mostly none of the bundle's two."""
    folder.mkdir()
    for index in range(count):
        Image.effect_noise((40, 50), 90).convert("RGB").save(folder / f"{index}.png")
    return folder


def test_a_bundle_that_fails_names_the_users_module_and_a_command_that_reproduces_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Only the answers notice the lost sign."""
    bundle, model = wrong_bundle(tmp_path)
    capsys.readouterr()
    assert status("verify", bundle.path, "--explain", "--model", model) == 6
    printed = capsys.readouterr().err
    assert "the first module that differs is head (Linear)" in printed
    assert "reproduce: edgevit verify " in printed
    command = printed.partition("reproduce: edgevit ")[2].splitlines()[0]
    assert status(*shlex.split(command)) == 6


def test_the_users_model_is_created_once_for_other_images_and_their_explanation(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle, model = wrong_bundle(tmp_path)
    images = photos(tmp_path / "photos", 3)
    capsys.readouterr()
    assert status("verify", bundle.path, "--explain", "--model", model, "--images", images) == 6
    assert "the first module that differs is head (Linear)" in capsys.readouterr().err
    assert (tmp_path / "created").read_text() == "+"


def test_a_module_in_memory_explains_a_failure_on_other_images(tmp_path: Path) -> None:
    """The photos are those of the folder: the worst is the ninth, and the bundle's references are fewer."""
    bundle, model = wrong_bundle(tmp_path)
    module = from_name(model).module.train()
    images = photos(tmp_path / "photos", 8)
    Image.effect_noise((40, 50), 250).convert("RGB").save(images / "8.png")
    explanation = edgevit.explain(bundle, module, images=images)
    assert explanation is not None and explanation.module == "head"
    assert module.training  # as it was
    (images / "8.png").write_bytes(b"no image")
    for path in images.glob("[0-7].png"):
        path.unlink()
    with pytest.raises(ImageError):
        edgevit.explain(bundle, module, images=images)


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
