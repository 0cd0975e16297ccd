"""The PyTorch model of a bundle is created again from registered models and from code that the user names."""

from __future__ import annotations

import json
import shlex
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import edgevit
from edgevit.bundles import benchmark, store
from edgevit.bundles.bundle import Bundle
from edgevit.bundles.manifest import REFERENCE_FILE
from edgevit.bundles.source_model import PytorchSource, recreate_model, references_on
from edgevit.errors import UsageError
from edgevit.files import file_sha256
from edgevit.latency.candidate import PYTORCH_MODEL
from edgevit.models.features import Backbone
from edgevit.pipeline.load_model import ModelOptions
from tests.helpers.bundles import damage
from tests.helpers.cli import PHOTO, USER_MODEL, status
from tests.helpers.samples import QUICK


@pytest.fixture(scope="module")
def user_bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A bundle of the user's own factory, with mine.py next to it. Do not change it."""
    folder = tmp_path_factory.mktemp("mine")
    (folder / "mine.py").write_text(USER_MODEL)
    arguments = ["export", f"{folder / 'mine.py'}:build", "--fmt", "ort", "--img-size", "32", "--no-latency"]
    assert status(*arguments, "--out", folder) == 0
    return Bundle.open(folder / "mine_build-fp32-ort")


def mine(bundle: Bundle, factory: str = "build") -> str:
    return f"{bundle.path.parent / 'mine.py'}:{factory}"


def labeled(folder: Path) -> Path:
    (folder / "data" / "3").mkdir(parents=True)
    shutil.copy(PHOTO, folder / "data" / "3")
    return folder / "data"


def commands(bundle: Bundle, folder: Path) -> list[list[str | Path]]:
    """The three commands that need the PyTorch model of a bundle."""
    return [
        ["verify", bundle.path, "--images", PHOTO.parent],
        ["eval", bundle.path, "--against", "torch", "--data", labeled(folder)],
        ["latency", bundle.path, "--against", "torch", "--duration", "0.1"],
    ]


EVIL = """
from pathlib import Path
from typing import Any
Path(__file__).with_name("executed").touch()
from torch import nn
def build():
    return nn.Conv2d(3, 5, 32)
"""


@pytest.mark.parametrize("source", ["evil.py:build", "evil:build", "{bundle}/evil.py:build", "../evil.py:build"])
def test_code_named_by_a_bundle_is_never_run(
    source: str,
    user_bundle: Bundle,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    own = Bundle.open(shutil.copytree(user_bundle.path, tmp_path / "work" / "own"))
    for folder in (tmp_path, tmp_path / "work", own.path):
        (folder / "evil.py").write_text(EVIL)
    monkeypatch.chdir(tmp_path / "work")
    damage(own.path, "model.source", source.format(bundle=own.path))
    for command in commands(own, tmp_path):
        capsys.readouterr()
        assert status(*command) == 2
        assert "name it again: --model file.py:FUNCTION" in capsys.readouterr().err.splitlines()[-1]
    assert list(tmp_path.rglob("executed")) == []


def test_the_users_code_is_compared_with_when_it_is_named_again(user_bundle: Bundle, tmp_path: Path) -> None:
    for command in commands(user_bundle, tmp_path):
        assert status(*command, "--model", mine(user_bundle)) == 0


def test_the_users_factory_gets_its_arguments(
    user_bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(benchmark, "peak_memory_mb", lambda *_: None)
    text = USER_MODEL.replace("def build():", "def build(seed):").replace("manual_seed(0)", "manual_seed(seed)")
    (tmp_path / "other.py").write_text(text)
    model = f"{tmp_path / 'other.py'}:build"
    source = PytorchSource(model=model, arguments={"seed": 0})
    own, pytorch = benchmark.measure_bundles([user_bundle], against=["torch"], source=source, plan=QUICK)
    assert pytorch.details[PYTORCH_MODEL] == f"--model {model} --arg seed=0"  # for the command that repeats it
    assert PYTORCH_MODEL not in own.details
    with pytest.raises(UsageError, match="does not match"):
        recreate_model(user_bundle, PytorchSource(model=model, arguments={"seed": 1}))
    with pytest.raises(UsageError, match="shiftvit_cifar10 takes none"):
        recreate_model(user_bundle, PytorchSource(model="shiftvit_cifar10", arguments={"seed": 0}))


def test_the_command_that_repeats_an_export_of_the_users_code_runs_as_printed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It was `--against torch` without --model, which is refused."""
    (tmp_path / "my code.py").write_text(USER_MODEL.replace("def build():", "def build(seed):\n    assert seed == 3"))
    export = ["export", f"{tmp_path / 'my code.py'}:build", "--arg", "seed=3", "--fmt", "onnx", "--img-size", "32"]
    assert status(*export, "--out", tmp_path) == 0
    capsys.readouterr()
    assert status("report", tmp_path / "my_code_build-fp32-onnx") == 0
    command = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("edgevit latency "))
    assert " --against torch --model " in command
    assert status(*shlex.split(command)[1:], "--duration", "0.1") == 0


def test_a_model_knows_the_options_that_name_it_again(user_bundle: Bundle) -> None:
    """None is for models that the options of `latency` cannot create: of other inputs than one photo."""
    model = mine(user_bundle)
    assert ModelOptions(img_size=32).load(model, Path()).origin.torch_options == f"--model {model}"
    assert ModelOptions().load("shiftvit_cifar10", Path()).origin.torch_options == ""
    onnx_file = str(user_bundle.path / "model.onnx")
    assert ModelOptions().load(onnx_file, Path()).origin.torch_options is None


def test_what_the_users_code_prints_does_not_mix_with_the_result(
    user_bundle: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "loud.py").write_text(USER_MODEL.replace("    return Tiny()", "    print('made')\n    return Tiny()"))
    for command in commands(user_bundle, tmp_path):
        capsys.readouterr()
        assert status(*command, "--model", f"{tmp_path / 'loud.py'}:build", "--json", "-") == 0
        printed = capsys.readouterr()
        assert json.loads(printed.out)
        assert "made" in printed.err


def test_a_model_with_other_outputs_is_refused(
    user_bundle: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "other.py").write_text(USER_MODEL.replace("manual_seed(0)", "manual_seed(1)"))
    for command in commands(user_bundle, tmp_path):
        capsys.readouterr()
        assert status(*command, "--model", f"{tmp_path / 'other.py'}:build") == 2
        assert "the PyTorch model does not match mine_build-fp32-ort" in capsys.readouterr().err.splitlines()[-1]


def test_a_model_with_another_number_of_classes_is_refused(user_bundle: Bundle, tmp_path: Path) -> None:
    (tmp_path / "other.py").write_text(USER_MODEL.replace("nn.Linear(8, 5)", "nn.Linear(8, 7)"))
    with pytest.raises(UsageError, match="does not match"):
        recreate_model(user_bundle, PytorchSource(model=f"{tmp_path / 'other.py'}:build"))


@pytest.mark.parametrize(
    "arguments", [["verify", "--model", "x.py:build"], ["latency", "--weights", "x.pth"], ["eval", "--model", "x.py:f"]]
)
def test_a_model_that_nothing_is_compared_with_is_a_wrong_request(
    arguments: Sequence[str], user_bundle: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name, *options = arguments
    more = ["--data", str(labeled(tmp_path))] if name == "eval" else []
    assert status(name, user_bundle.path, *options, *more) == 2
    assert " require" in capsys.readouterr().err


def test_a_module_that_was_in_memory_has_to_be_named(tmp_path: Path) -> None:
    torch.manual_seed(0)
    module = torch.nn.Sequential(torch.nn.Conv2d(3, 2, 8), torch.nn.Flatten())
    bundle = edgevit.export(
        module, fmt="ort", example_input=torch.zeros(1, 3, 8, 8), out=tmp_path / "out", latency=False
    )
    with pytest.raises(UsageError, match="exported from a module in memory; name it again: --model"):
        recreate_model(bundle)


def test_a_registered_model_is_recreated_with_its_weights(shared_bundle: Callable[[str], Bundle]) -> None:
    model = recreate_model(shared_bundle("ort"))
    assert model.origin.weights_sha256 == shared_bundle("ort").manifest.model.weights_sha256
    photos, noise = references_on(PHOTO.parent, shared_bundle("ort"), lambda: model)
    assert (photos.kind, noise.kind) == ("photos", "noise")
    stored = shared_bundle("ort").references()[1]
    assert np.abs(noise.outputs["logits"] - stored.outputs["logits"]).max() < 1e-4


def test_random_weights_are_drawn_again(tmp_path: Path) -> None:
    bundle = edgevit.export("shiftvit_cifar10", num_classes=7, fmt="ort", out=tmp_path, verify=False, latency=False)
    assert recreate_model(bundle).origin.weights == "random (seed 0)"


def test_random_weights_of_a_module_in_memory_are_not_drawn_again(tmp_path: Path) -> None:
    module = edgevit.create_model("shiftvit_cifar10", num_classes=7)
    bundle = edgevit.export(module, fmt="ort", out=tmp_path / "out", verify=False, latency=False)
    assert bundle.manifest.model.weights == "random (create_model)"
    assert bundle.manifest.model.has_random_weights
    with pytest.raises(UsageError, match=r"no seed draws again; save .* --weights FILE"):
        recreate_model(bundle)
    torch.save(module.state_dict(), tmp_path / "random.pt")
    model = recreate_model(bundle, PytorchSource(weights=tmp_path / "random.pt"))
    assert not model.origin.has_random_weights


def test_a_weights_file_is_found_by_its_hash_or_named_again(
    shared_bundle: Callable[[str], Bundle], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    included = Path(edgevit.__file__).parent / "data" / "shiftvit_cifar10.pth"
    monkeypatch.chdir(tmp_path)
    own = Bundle.open(shutil.copytree(shared_bundle("ort").path, tmp_path / "own"))
    damage(own.path, "model.weights", "mine.pth")
    own = Bundle.open(own.path)
    with pytest.raises(UsageError, match=r"has the weights mine\.pth; name their file again: --weights FILE"):
        recreate_model(own)
    recreate_model(own, PytorchSource(weights=included))
    shutil.copy(included, "mine.pth")
    recreate_model(own)
    Path("mine.pth").write_bytes(b"another file")
    with pytest.raises(UsageError, match="name their file again"):
        recreate_model(own)


def test_a_bundle_says_nothing_of_the_folders_it_was_exported_from(tmp_path: Path) -> None:
    """Neither of the user's model file nor of the weights; the hash identifies the weights."""
    home = tmp_path / "home" / "alice"
    home.mkdir(parents=True)
    (home / "mine.py").write_text(USER_MODEL)
    namespace: dict[str, Any] = {}
    exec(USER_MODEL, namespace)  # our own text
    torch.save(namespace["build"]().state_dict(), home / "best.pth")
    options = ["--fmt", "ort,openvino", "--img-size", "32", "--no-latency"]
    model = ["export", f"{home / 'mine.py'}:build", "--weights", str(home / "best.pth")]
    assert status(*model, *options, "--out", home / "out") == 0
    for bundle in (home / "out").iterdir():
        record = Bundle.open(bundle).manifest.model
        assert (record.source, record.weights) == ("mine.py:build", "best.pth")
        assert record.weights_sha256 == file_sha256(home / "best.pth")
        for file in bundle.iterdir():
            assert b"alice" not in file.read_bytes(), file.name


def test_references_of_other_weights_do_not_match(shared_bundle: Callable[[str], Bundle], tmp_path: Path) -> None:
    source = shared_bundle("ort")
    copy = shutil.copytree(source.path, tmp_path / source.name)
    changed = [
        replace(each, outputs={name: array + 1 for name, array in each.outputs.items()}) for each in source.references()
    ]
    store.write_references(copy / REFERENCE_FILE, changed)
    store.write_manifest(copy, source.manifest)
    with pytest.raises(UsageError, match="does not match"):
        recreate_model(Bundle.open(copy))


def test_the_model_of_the_user_is_given_images_of_the_bundles_size_and_preprocessing(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(USER_MODEL)
    name, half = f"{tmp_path / 'mine.py'}:build", "0.5,0.5,0.5"
    arguments = ["export", name, "--fmt", "onnx", "--img-size", "32x48", "--mean", half, "--no-latency"]
    assert status(*arguments, "--out", tmp_path) == 0
    bundle = Bundle.open(tmp_path / "mine_build-fp32-onnx")
    model = recreate_model(bundle, PytorchSource(model=name))
    assert model.example[0].shape == (1, 3, 32, 48)
    assert model.preprocessing == bundle.preprocessing
    assert bundle.preprocessing.mean == (0.5, 0.5, 0.5)


@pytest.mark.parametrize(("source", "again"), [("timm:resnet18", "timm:resnet18"), ("mine:build", "file.py:FUNCTION")])
def test_a_model_of_a_hub_is_named_again_by_its_name(
    user_bundle: Bundle, tmp_path: Path, source: str, again: str
) -> None:
    copy = Bundle.open(shutil.copytree(user_bundle.path, tmp_path / "copy"))
    damage(copy.path, "model.source", source)
    with pytest.raises(UsageError, match=f"name it again: --model {again}$"):
        recreate_model(Bundle.open(copy.path))


@pytest.mark.large
def test_a_backbone_is_created_again(tmp_path: Path) -> None:
    bundle = edgevit.export("mobileformer_26m", outputs="features", img_size=32, verify=False, out=tmp_path)
    assert isinstance(recreate_model(bundle).module, Backbone)
