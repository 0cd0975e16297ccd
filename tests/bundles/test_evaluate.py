"""`edgevit eval` counts the predictions of PyTorch image by image, and every wrong request ends in one line."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from PIL import Image

import edgevit
from edgevit.bundles import store
from edgevit.bundles.bundle import Bundle
from edgevit.bundles.evaluate import evaluate_bundles
from edgevit.bundles.manifest import CLASSES_FILE, REFERENCE_FILE
from edgevit.bundles.source_model import FROM_MANIFEST
from edgevit.errors import UsageError
from edgevit.models.loading import class_names
from tests.helpers.cifar10 import DATA, Cifar10
from tests.helpers.cli import USER_MODEL, last_line, status
from tests.helpers.formats import ON_CPU

ROOT = Path(__file__).parents[2]
IMAGES = 200
_MEAN = "y = self.conv(x).relu().mean((2, 3))"  # of USER_MODEL
NAMES = class_names("cifar10")


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The first CIFAR-10 test images, a folder a class. Do not change it."""
    folder = tmp_path_factory.mktemp("cifar10")
    with np.load(DATA / "cifar10_sample.npz") as sample:
        for index, (pixels, label) in enumerate(zip(sample["test_images"], sample["test_labels"], strict=True)):
            if index < IMAGES:
                (folder / NAMES[label]).mkdir(exist_ok=True)
                Image.fromarray(pixels).save(folder / NAMES[label] / f"{index:04}.png")
    return folder


def evaluated(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> dict[str, Any]:
    capsys.readouterr()
    assert status("eval", *arguments, "--threads", "1", "--json", "-") == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def test_predictions_are_those_of_pytorch(
    bundle: Bundle, photos: Path, cifar10: Cifar10, capsys: pytest.CaptureFixture[str]
) -> None:
    """Read from files and folders and run in batches, every prediction equals that of the authors' code."""
    found = evaluated(capsys, bundle.path, "--data", photos, "--against", "torch")
    torch, engine = found["accuracy"]
    assert [torch["name"], engine["name"]] == ["torch", bundle.name]
    order = [int(Path(path).stem) for path in found["paths"]]
    assert sorted(order) == list(range(IMAGES))
    expected = cifar10.logits[order].argmax(1)
    labels = cifar10.labels[order]
    for row in (torch, engine):
        assert row["evidence"]["labels"] == labels.tolist()
        assert row["evidence"]["answers"] == expected.tolist()
        assert row["top1"] == pytest.approx((expected == labels).mean())
        assert row["top1_interval"]["low"] < row["top1"] < row["top1_interval"]["high"]
    top5 = (np.argsort(-cifar10.logits[order], axis=1)[:, :5] == labels[:, None]).any(1).mean()
    assert engine["top5"] == pytest.approx(top5)
    assert engine["agreement"] == 1
    assert engine["drop_points"] == 0


def test_the_table_shows_accuracy_and_agreement(
    shared_bundle: Callable[[str], Bundle], photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = [shared_bundle(fmt).path for fmt in ("ort", "openvino")]
    assert status("eval", *paths, "--data", photos, "--limit", "50") == 0
    out, err = capsys.readouterr()
    for part in ("top-1 %", "same %", "points lost", "100.00", "0.00 (", "class name", "50 of 200 images"):
        assert part in out
    assert err.splitlines()[-1] == "  images: 50 of 50"


def test_a_model_given_by_name_runs_in_pytorch(
    photos: Path, cifar10: Cifar10, capsys: pytest.CaptureFixture[str]
) -> None:
    found = evaluated(capsys, "shiftvit_cifar10", "--data", photos)
    (row,) = found["accuracy"]
    order = [int(Path(path).stem) for path in found["paths"]]
    assert row["name"] == "shiftvit_cifar10 (torch)"
    assert row["evidence"]["answers"] == cifar10.logits[order].argmax(1).tolist()


def test_bundles_and_a_model_side_by_side(
    shared_bundle: Callable[[str], Bundle], photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """PyTorch is the reference, also if it is not the first argument."""
    found = evaluated(capsys, shared_bundle("ort").path, "shiftvit_cifar10", "--data", photos, "--limit", "20")
    assert [row["name"] for row in found["accuracy"]] == ["shiftvit_cifar10 (torch)", shared_bundle("ort").name]
    assert found["accuracy"][1]["agreement"] == 1


def test_a_limit_is_spread_over_the_classes(
    shared_bundle: Callable[[str], Bundle], photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = (evaluated(capsys, shared_bundle("ort").path, "--data", photos, "--limit", "40") for _ in range(2))
    assert first == second
    assert len(first["paths"]) == 40
    for name in NAMES:
        share = len(list((photos / name).iterdir())) / IMAGES
        assert abs(sum(f"/{name}/" in path for path in first["paths"]) - 40 * share) <= 1
    assert "40 of 200 images" in first["how"]


def test_a_file_of_labels_gives_the_same(
    shared_bundle: Callable[[str], Bundle], photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = [f"val/{path.name} {NAMES.index(path.parent.name)}" for path in sorted(photos.rglob("*.png"))]
    (tmp_path / "val").mkdir()
    for path in photos.rglob("*.png"):
        shutil.copy(path, tmp_path / "val")
    (tmp_path / "val.txt").write_text("\n".join(lines))
    by_file, by_folder = (evaluated(capsys, shared_bundle("ort").path, "--data", data) for data in (tmp_path, photos))
    assert by_file["accuracy"][0]["top1"] == by_folder["accuracy"][0]["top1"]
    assert by_file["accuracy"][0]["evidence"]["ranks"] == by_folder["accuracy"][0]["evidence"]["ranks"]


def permuted(source: Bundle, folder: Path) -> Bundle:
    """The bundle with another engine, whose logits are shifted by one class."""
    copy = shutil.copytree(source.path, folder / "permuted")
    engine = next(path for path in copy.glob("*.onnx") if path == source.engine_path or path.name == "model.onnx")
    model = onnx.load(engine)
    last = model.graph.output[0].name
    node = next(node for node in model.graph.node if last in node.output)
    node.output[list(node.output).index(last)] = "unshifted"
    order = onnx.numpy_helper.from_array(np.roll(np.arange(10), 1), "order")
    model.graph.initializer.append(order)
    model.graph.node.append(onnx.helper.make_node("Gather", ["unshifted", "order"], [last], axis=1))
    onnx.save(model, engine)
    store.write_manifest(copy, source.manifest)
    return Bundle.open(copy)


def test_a_wrong_engine_has_a_low_accuracy(
    shared_bundle: Callable[[str], Bundle], photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wrong = permuted(shared_bundle("onnx"), tmp_path)
    found = evaluated(capsys, wrong.path, shared_bundle("onnx").path, "--data", photos, "--against", "torch")
    torch, broken, right = found["accuracy"]
    assert torch["top1"] == right["top1"] > 0.7
    assert broken["top1"] < 0.2
    assert broken["agreement"] == 0
    assert broken["drop_points"] == pytest.approx(100 * (torch["top1"] - broken["top1"]))
    assert broken["drop_points_interval"]["low"] > 40


def test_a_fixed_batch_and_a_range_side_by_side(
    shared_bundle: Callable[[str], Bundle], photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A batch of 3 does not divide 40 images: the images that fill up the last batch are not counted."""
    fixed = edgevit.export("shiftvit_cifar10", fmt="ort", out=tmp_path, batch=3)
    found = evaluated(
        capsys, shared_bundle("ort").path, fixed.path, "--data", photos, "--limit", "40", "--against", "torch"
    )
    assert [row["images"] for row in found["accuracy"]] == [40, 40, 40]
    assert len({tuple(row["evidence"]["answers"]) for row in found["accuracy"]}) == 1


def test_a_user_factory_is_evaluated(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Without class names, folders are named by index; five classes have no top-5."""
    (tmp_path / "mine.py").write_text(USER_MODEL)
    for index in range(5):
        (tmp_path / "data" / str(index)).mkdir(parents=True)
        Image.effect_noise((40, 50), 90).convert("RGB").save(tmp_path / "data" / str(index) / "noise.png")
    (row,) = evaluated(capsys, f"{tmp_path / 'mine.py'}:build", "--data", tmp_path / "data")["accuracy"]
    assert row["images"] == 5
    assert row["top5"] is None


def test_a_user_factory_with_several_outputs_is_evaluated_by_its_logits(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The first output has as many columns, and its largest is another one: the name decides."""
    features = 'return {"features": -self.head(y), "logits": self.head(y), "map": self.conv(x), "none": None}'
    several = USER_MODEL.replace("return self.head(self.conv(x).relu().mean((2, 3)))", f"{_MEAN}; {features}")
    assert features in several
    for name, source in (("one", USER_MODEL), ("several", several)):
        (tmp_path / f"{name}.py").write_text(source)
    for index in range(5):
        (tmp_path / "data" / str(index)).mkdir(parents=True)
        Image.effect_noise((40, 50), 90).convert("RGB").save(tmp_path / "data" / str(index) / "noise.png")
    (one,) = evaluated(capsys, f"{tmp_path / 'one.py'}:build", "--data", tmp_path / "data")["accuracy"]
    (named,) = evaluated(capsys, f"{tmp_path / 'several.py'}:build", "--data", tmp_path / "data")["accuracy"]
    assert named["evidence"]["answers"] == one["evidence"]["answers"]


def test_outputs_that_are_not_finite_are_counted(
    shared_bundle: Callable[[str], Bundle],
    photos: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from edgevit.runtimes.onnxruntime import OnnxRuntimeEngine

    infer = OnnxRuntimeEngine._infer
    monkeypatch.setattr(OnnxRuntimeEngine, "_infer", lambda *given: {"logits": infer(*given)["logits"] * np.nan})
    assert status("eval", shared_bundle("ort").path, "--data", photos, "--limit", "20") == 0
    printed = capsys.readouterr().out
    assert "20 outputs contain NaN or infinity" in printed
    assert " 0.00 (0.00 to" in printed


def broken_data(photos: Path, folder: Path, case: str) -> Path:
    """The photos in another folder, with one thing wrong."""
    if case == "nowhere":
        return folder / "nowhere"
    if case == "empty":
        (folder / "empty").mkdir()
        return folder / "empty"
    data = shutil.copytree(photos, folder / "data")
    if case == "another class":
        (data / "cat").rename(data / "lion")
    elif case == "broken image":
        next((data / "dog").iterdir()).write_bytes(b"no image")
    elif case == "label out of range":
        (folder / "labels.txt").write_text(f"data/cat/{next((data / 'cat').iterdir()).name} 10")
        return folder
    return data


def test_images_that_cannot_be_read_are_left_out_and_named(
    shared_bundle: Callable[[str], Bundle], photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = broken_data(photos, tmp_path, "broken image")
    found = evaluated(capsys, shared_bundle("ort").path, "--data", data)
    assert len(found["paths"]) == found["accuracy"][0]["images"] == IMAGES - 1
    assert f"1 of {IMAGES} images could not be read and were left out" in found["notes"]
    assert any("cannot read the image" in note and "dog" in note for note in found["notes"])
    for path in data.rglob("*.png"):
        path.write_bytes(b"no image")
    assert status("eval", shared_bundle("ort").path, "--data", data) == 2
    assert "cannot read the image" in last_line(capsys, progress="  images: ")


@pytest.mark.parametrize(
    ("case", "message"),
    [
        ("nowhere", "no folder of images"),
        ("empty", "no image in"),
        ("another class", "'lion' is not a class of this model"),
        ("broken image", "cannot read the image"),
        ("label out of range", "labels.txt, line 1: '10' is not a class of this model; use an index from 0 to 9"),
    ],
)
def test_wrong_data_is_one_line(
    case: str,
    message: str,
    shared_bundle: Callable[[str], Bundle],
    photos: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert status("eval", shared_bundle("ort").path, "--data", broken_data(photos, tmp_path, case), "--strict") == 2
    assert message in last_line(capsys, progress="  images: ")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["shiftvit_t"], "shiftvit_t has random weights"),
        (["shiftvit_cifar11"], "no bundle at shiftvit_cifar11, and no model of that name. Did you mean"),
        (["shiftvit_shapes_retinanet"], "shiftvit_shapes_retinanet is for detection; detectors and segmentation"),
        (["nowhere-fp32-ort"], "no bundle at"),
        (["./nowhere"], "no bundle at"),
        (["BUNDLE", "--weights", "x.pth"], "--weights requires exactly one MODEL"),
        (["BUNDLE", "--against", "openvino"], "--against accepts only torch, got 'openvino'"),
        (["shiftvit_cifar10", "--against", "torch"], "runs in PyTorch already"),
        (["BUNDLE", "BUNDLE"], "-ort is given twice; give it once"),
        (["OTHER", "BUNDLE", "BUNDLE"], "-ort is given twice; give it once"),
        (["shiftvit_cifar10", "shiftvit_cifar10"], "shiftvit_cifar10 (torch) is given twice"),
        (["BUNDLE", "--limit", "0"], "must be at least 1, not 0"),
    ],
)
def test_a_wrong_request_is_one_line(
    arguments: list[str],
    message: str,
    shared_bundle: Callable[[str], Bundle],
    photos: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    paths = {"BUNDLE": str(shared_bundle("ort").path), "OTHER": str(shared_bundle("openvino").path)}
    assert status("eval", *(paths.get(word, word) for word in arguments), "--data", photos) == 2
    assert message in last_line(capsys, progress="  images: ")


@pytest.mark.parametrize(
    ("change", "message"),
    [({"preprocessing": {"crop_pct": 0.5}}, "differ in preprocessing"), ({"classes": None}, "different classes")],
)
def test_candidates_that_do_not_compare_are_refused(
    change: dict[str, Any], message: str, shared_bundle: Callable[[str], Bundle], photos: Path, tmp_path: Path
) -> None:
    source = shared_bundle("ort")
    copy = shutil.copytree(source.path, tmp_path / "other")
    preprocessing = replace(source.preprocessing, **change.get("preprocessing", {}))
    manifest = replace(source.manifest, model=replace(source.manifest.model, preprocessing=preprocessing))
    if "classes" in change:
        (copy / CLASSES_FILE).unlink()
    store.write_manifest(copy, manifest)
    with pytest.raises(UsageError, match=message):
        evaluate_bundles([source, Bundle.open(copy)], data=photos)


def test_changed_weights_are_refused_as_a_reference(
    shared_bundle: Callable[[str], Bundle], photos: Path, tmp_path: Path
) -> None:
    """PyTorch with other weights than the bundle was made with would be a wrong reference."""
    source = shared_bundle("ort")
    copy = shutil.copytree(source.path, tmp_path / source.name)
    other = [
        replace(one, outputs={name: array + 1 for name, array in one.outputs.items()}) for one in source.references()
    ]
    store.write_references(copy / REFERENCE_FILE, other)
    store.write_manifest(copy, source.manifest)
    with pytest.raises(UsageError, match="does not match"):
        evaluate_bundles([Bundle.open(copy)], data=photos, pytorch=FROM_MANIFEST)


def test_random_weights_are_noted(photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    module = edgevit.create_model("shiftvit_cifar10", num_classes=7, embed_dim=12)
    random = edgevit.export(module, fmt="ort", out=tmp_path / "out", verify=False, latency=False)
    (tmp_path / "data" / "3").mkdir(parents=True)
    shutil.copy(next(photos.rglob("*.png")), tmp_path / "data" / "3")
    found = evaluated(capsys, random.path, "--data", tmp_path / "data")
    assert found["notes"] == [f"{random.name} has random weights: its accuracy means nothing"]


def test_weights_in_a_file_called_random_are_not_random(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither the export nor the evaluation, in PyTorch or of the bundle, may doubt the predictions."""
    monkeypatch.chdir(tmp_path)
    shutil.copy(Path(edgevit.__file__).parent / "data" / "shiftvit_cifar10.pth", "random_crops.pth")
    weights = ("--weights", "random_crops.pth")
    assert status("export", "shiftvit_cifar10", *weights, "--fmt", "ort", "--no-verify", "--no-latency") == 0
    assert "random weights" not in capsys.readouterr().out
    data = ("--data", photos, "--limit", "10")
    assert evaluated(capsys, "shiftvit_cifar10-fp32-ort", *data)["notes"] == []
    assert evaluated(capsys, "shiftvit_cifar10", *data, *weights)["notes"] == []


def test_a_device_needs_no_torch(shared_bundle: Callable[[str], Bundle], photos: Path) -> None:
    paths = [str(shared_bundle(fmt).path) for fmt in ON_CPU]
    code = f"""
import sys
class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {{"torch", "onnx", "onnx_ir", "onnxscript", "safetensors"}}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Missing())
from edgevit.cli.main import main
data = ["--data", {str(photos)!r}, "--limit", "10"]
assert main(["eval", *{paths}, *data]) == 0
assert main(["eval", {paths[0]!r}, "--against", "torch", *data]) == 3
assert main(["eval", "shiftvit_cifar10", *data]) == 3
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr + done.stdout
