"""timm:NAME and hf:NAME name models of other packages, which download nothing unless asked."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from edgevit.errors import ExportError, MissingError, UsageError
from edgevit.models import loading
from edgevit.models.description import is_hub_name
from edgevit.models.hubs import create_hub_model

# Stand-ins for packages that are no dependencies, with the calls that edgevit makes.
TIMM = """
import torch
from torch import nn

def is_model(name):
    return name.split(".")[0] in list_models()

def list_models():
    return ["tiny_net", "broken_net", "fixed_net"]

class Settings:
    fixed_input_size = False

def get_pretrained_cfg(name):
    settings = Settings()
    settings.fixed_input_size = name == "fixed_net"
    return settings

def create_model(name, pretrained, num_classes=10, **options):
    if name == "fixed_net":
        module = nn.Sequential(nn.Flatten(), nn.Linear(3 * options["img_size"][0] * options["img_size"][1], 2))
        module.pretrained_cfg = {}
        return module
    assert not options
    if name == "broken_net":
        raise RuntimeError("no such layer\\nand more")
    if pretrained:
        raise OSError("the hub is not reachable")
    module = nn.Sequential(nn.Conv2d(3, num_classes, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    module.pretrained_cfg = {"input_size": (3, 48, 40), "mean": (0, 0, 0), "std": (1, 1, 1), "tag": "a1"}
    return module
"""
TRANSFORMERS = """
import pathlib
from types import SimpleNamespace
from torch import nn

class AutoConfig:
    @staticmethod
    def from_pretrained(name, local_files_only):
        if not pathlib.Path(name).is_dir():
            raise OSError(f"{name}, local_files_only={local_files_only}")
        if name.endswith("broken"):
            raise ModuleNotFoundError("No module named 'scipy'")
        labels = {0: "a", 1: "b"}
        architectures = ["TinyForImageClassificationWithTeacher"]
        return SimpleNamespace(architectures=architectures, name_or_path=name, id2label=labels)

class AutoModel:
    pass

class TinyForImageClassificationWithTeacher:
    @staticmethod
    def from_pretrained(name, config, local_files_only):
        module = nn.Sequential(nn.Conv2d(3, 2, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        module.config = config
        return module
"""


@pytest.fixture
def packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Put the stand-ins before everything else."""
    (tmp_path / "timm.py").write_text(TIMM)
    (tmp_path / "transformers.py").write_text(TRANSFORMERS)
    monkeypatch.syspath_prepend(str(tmp_path))
    for name in ("timm", "transformers"):
        monkeypatch.delitem(sys.modules, name, raising=False)


@pytest.mark.usefixtures("packages")
def test_a_timm_model_has_the_size_and_settings_that_timm_declares() -> None:
    model = loading.from_name("timm:tiny_net", num_classes=7)
    assert (model.name, model.example[0].shape) == ("tiny_net", (1, 3, 48, 40))
    assert model.preprocessing is not None
    assert (model.preprocessing.input_size, model.preprocessing.mean) == ((3, 48, 40), (0, 0, 0))
    assert (model.origin.source, model.origin.weights) == ("timm:tiny_net", "random (timm)")
    assert model.origin.lacks_checkpoint  # of which exports and evaluations warn
    assert model.module(model.example[0]).shape == (1, 7)
    assert loading.from_name("timm:tiny_net", img_size=32).example[0].shape == (1, 3, 32, 32)


@pytest.mark.usefixtures("packages")
def test_a_timm_model_that_is_built_for_one_size_is_built_for_the_one_asked_for() -> None:
    model = loading.from_name("timm:fixed_net", img_size=(24, 16))
    assert model.module(model.example[0]).shape == (1, 2)


@pytest.mark.usefixtures("packages")
def test_random_weights_are_the_same_each_time_and_leave_the_generator_alone() -> None:
    before = torch.random.get_rng_state()
    first, second = (loading.from_name("timm:tiny_net").module.state_dict() for _ in range(2))
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.usefixtures("packages")
@pytest.mark.parametrize(
    ("name", "error", "words"),
    [
        ("timm:tiny_ne", UsageError, "timm has no model 'tiny_ne'.*tiny_net"),
        ("timm:broken_net", ExportError, "^timm could not create broken_net: RuntimeError: no such layer$"),
        (
            "hf:org/name",
            MissingError,
            "no Hugging Face model org/name on this machine; --weights official",
        ),
    ],
)
def test_a_model_that_cannot_be_made_is_one_line(name: str, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words) as caught:
        create_hub_model(name, num_classes=None, img_size=None, download=False)
    assert "\n" not in str(caught.value)


@pytest.mark.usefixtures("packages")
@pytest.mark.parametrize(
    ("weights", "words"), [(None, "local_files_only=True"), ("official", "local_files_only=False")]
)
def test_nothing_is_downloaded_unless_asked(weights: str | None, words: str) -> None:
    with pytest.raises(MissingError, match=words):
        loading.from_name("hf:org/name", weights=weights)


@pytest.mark.usefixtures("packages")
def test_a_hugging_face_folder_gives_its_class_names_and_not_its_place(tmp_path: Path) -> None:
    (tmp_path / "My model").mkdir()
    model = loading.from_name(f"hf:{tmp_path / 'My model'}")
    assert (model.name, model.classes) == ("my_model", ("a", "b"))
    assert (model.origin.source, model.origin.weights) == ("hf:My model", "hf:My model")


@pytest.mark.usefixtures("packages")
def test_a_folder_that_is_there_and_does_not_open_is_not_called_missing(tmp_path: Path) -> None:
    (tmp_path / "broken").mkdir()
    with pytest.raises(ExportError, match=r"^transformers could not open .*broken: ModuleNotFoundError: No module"):
        loading.from_name(f"hf:{tmp_path / 'broken'}")


@pytest.mark.usefixtures("packages")
def test_an_unreachable_hub_is_missing() -> None:
    with pytest.raises(MissingError, match="the weights of tiny_net could not be downloaded .the hub is not reachable"):
        loading.from_name("timm:tiny_net", weights="official")


@pytest.mark.parametrize("package", ["timm", "transformers"])
def test_a_package_that_is_not_installed_is_missing(package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    name = {"timm": "timm:tiny_net", "transformers": "hf:org/name"}[package]
    with pytest.raises(MissingError, match=f"pip install {package}"):
        create_hub_model(name, num_classes=None, img_size=None, download=False)


def test_only_the_two_prefixes_are_hubs() -> None:
    assert [is_hub_name(name) for name in ("timm:a", "hf:a/b", "mine.py:build", "deit_t")] == [True, True, False, False]


@pytest.mark.usefixtures("packages")
@pytest.mark.parametrize("name", ["deit_t", "timm:tiny_net"])
def test_arguments_are_for_a_factory(name: str) -> None:
    with pytest.raises(UsageError, match="--arg requires a factory"):
        loading.from_name(name, arguments={"depth": 1})
