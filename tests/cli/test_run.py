"""`edgevit run`."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import nn

import edgevit
from edgevit.bundles.bundle import Bundle
from tests.helpers.cli import PHOTO, status


def test_run_classifies_a_cat(bundle: Bundle, capsys: pytest.CaptureFixture[str]) -> None:
    assert status("run", bundle.path, PHOTO, "--top", "2") == 0
    printed = capsys.readouterr().out
    assert "cat" in printed.splitlines()[1]
    assert status("run", bundle.path, PHOTO.parent, "--top", "1", "--json", "-") == 0
    answers = json.loads(capsys.readouterr().out)["answers"]
    assert answers[0]["top"][0]["name"] == "cat"
    assert len(answers) == 2


def test_an_image_that_cannot_be_read_is_left_out_wherever_it_stands(
    bundle: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The same path at both ends ended the command before the photo between them was read."""
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no image")
    assert status("run", bundle.path, broken, PHOTO, broken, "--top", "1", "--json", "-") == 0
    found = json.loads(capsys.readouterr().out)
    assert [answer["image"] for answer in found["answers"]] == [str(PHOTO)]
    assert found["notes"][0] == "2 of 3 images could not be read and were left out"
    assert status("run", bundle.path, broken, broken) == 2
    assert status("run", bundle.path, PHOTO, broken, "--strict") == 2


class TwoHeads(nn.Module):
    """A classifier of three classes that outputs its embedding first."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(12, 3)

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        embedding = x.flatten(1)
        return {"embedding": embedding, "logits": self.head(embedding)}


def test_a_model_with_an_embedding_first_is_a_classifier(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The class names were refused, and the channels of the embedding printed as classes."""
    (tmp_path / "names.txt").write_text("ant\nbee\ncat\n")
    made = edgevit.export(
        TwoHeads(),
        fmt="ort",
        example_input=torch.zeros(1, 3, 2, 2),
        classes=tmp_path / "names.txt",
        verify=False,
        out=tmp_path,
    )
    capsys.readouterr()
    assert status("run", made.path, PHOTO, "--json", "-") == 0
    top = json.loads(capsys.readouterr().out)["answers"][0]["top"]
    assert sorted(each["name"] for each in top) == ["ant", "bee", "cat"]


@pytest.mark.parametrize("ends_in_softmax", [True, False])
def test_run_prints_the_probabilities_of_a_model_that_ends_in_softmax(
    ends_in_softmax: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A second softmax made all classes about equally likely."""
    module = nn.Sequential(nn.Flatten(), nn.Linear(12, 3), *([nn.Softmax(1)] if ends_in_softmax else []))
    nn.init.zeros_(module[1].weight)  # type: ignore[arg-type]  # a Linear has one
    module[1].bias = nn.Parameter(torch.tensor([0.5, 0.3, 0.2]).log() + 1)
    made = edgevit.export(module, fmt="ort", example_input=torch.zeros(1, 3, 2, 2), verify=False, out=tmp_path)
    capsys.readouterr()
    assert status("run", made.path, PHOTO, "--json", "-") == 0
    top = json.loads(capsys.readouterr().out)["answers"][0]["top"]
    assert [each["probability"] for each in top] == pytest.approx([0.5, 0.3, 0.2], abs=1e-4)


@pytest.mark.parametrize(
    ("outputs", "bias", "expected", "message"),
    [(1, 0.0, 2, "needs an image classifier"), (2, float("nan"), 6, "contain NaN or infinity")],
)
def test_run_rejects_outputs_other_than_classes(
    outputs: int, bias: float, expected: int, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A single output was a class of 100 %, and NaN a traceback with --json."""
    module = nn.Sequential(nn.Flatten(), nn.Linear(12, outputs))
    nn.init.constant_(module[1].bias, bias)  # type: ignore[arg-type]  # a Linear has one
    made = edgevit.export(module, fmt="ort", example_input=torch.zeros(1, 3, 2, 2), verify=False, out=tmp_path)
    capsys.readouterr()
    assert status("run", made.path, PHOTO, "--json", tmp_path / "answers.json") == expected
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("option", "value"),
    [("--coco", "x.json"), ("--out", "pictures"), ("--min-score", "7"), ("--max-boxes", "3"), ("--class-agnostic", "")],
)
def test_run_rejects_the_options_of_detectors_for_a_classifier(
    option: str, value: str, shared_bundle: Callable[[str], Bundle], one_line: Callable[[], str], tmp_path: Path
) -> None:
    """They were ignored with status 0, and no file was written."""
    given = [option, *([tmp_path / value if "." in value else value] if value else [])]
    assert status("run", shared_bundle("ort").path, PHOTO, *given) == 2
    assert f"{option} is for detectors" in one_line()
    assert not list(tmp_path.iterdir())


def test_run_rejects_a_cache_that_the_runtime_does_not_use(
    shared_bundle: Callable[[str], Bundle], one_line: Callable[[], str], tmp_path: Path
) -> None:
    assert status("run", shared_bundle("onnx").path, PHOTO, "--cache", tmp_path / "cache") == 2
    assert "--cache is for compiled models, and ONNX has none: leave it out" in one_line()
    for fmt in ("openvino", "ort"):
        assert status("run", shared_bundle(fmt).path, PHOTO, "--cache", tmp_path / fmt) == 0
        assert list((tmp_path / fmt).iterdir())


def test_run_rejects_a_file_that_is_not_an_image(bundle: Bundle, one_line: Callable[[], str], tmp_path: Path) -> None:
    (tmp_path / "text.jpg").write_text("no photo")
    assert status("run", bundle.path, tmp_path / "text.jpg") == 2
    assert "text.jpg" in one_line()
    assert status("run", bundle.path, PHOTO, "--top", "0") == 2


def test_an_image_that_cannot_be_read_does_not_end_the_others(
    shared_bundle: Callable[[str], Bundle], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "photo.heic").write_bytes(b"\0\0\0\x18ftypheic")
    command: list[str | Path] = [
        "run",
        shared_bundle("ort").path,
        tmp_path / "photo.heic",
        PHOTO,
        tmp_path / "nowhere.jpg",
    ]
    assert status(*command, "--json", "-") == 0
    result = json.loads(capsys.readouterr().out)
    assert [Path(answer["image"]) for answer in result["answers"]] == [PHOTO]
    count, heic, missing = result["notes"]
    assert count == "2 of 3 images could not be read and were left out"
    assert "photo.heic: HEIC is not supported" in heic
    assert "nowhere.jpg: No such file" in missing
    assert status(*command, "--strict") == 2
    assert status("run", shared_bundle("ort").path, tmp_path / "photo.heic", tmp_path / "nowhere.jpg") == 2


def test_a_warning_of_pillow_is_not_printed(
    shared_bundle: Callable[[str], Bundle], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Image.new("RGB", (9, 9)).save(tmp_path / "odd.jpg", exif=b"Exif\0\0MM\0*\0\0\0\xff\xff\xff")
    assert status("run", shared_bundle("ort").path, tmp_path / "odd.jpg") == 0
    assert capsys.readouterr().err == ""
