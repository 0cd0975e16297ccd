"""Reference inputs: photos that cannot be read."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import nn

from edgevit.errors import ExportError, ImageError
from edgevit.models.loading import LoadedModel, from_module
from edgevit.models.reference import compute_references
from edgevit.models.reference_inputs import MAX_PHOTOS


@pytest.fixture
def model() -> LoadedModel:
    return from_module(nn.Conv2d(3, 2, 3), example_input=torch.zeros(1, 3, 8, 8))


def save_photos(folder: Path, *, readable: int, torn: int) -> Path:
    """Write files that cannot be read, and photos that come after them."""
    for index in range(torn):
        (folder / f"a_torn_{index}.png").write_bytes(b"torn")
    for index in range(readable):
        Image.new("RGB", (8, 8), (index, 0, 0)).save(folder / f"photo_{index:02}.png")
    return folder


def test_the_first_photos_that_can_be_read_are_the_inputs(
    model: LoadedModel, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        photos, _ = compute_references(model, ["y"], images=save_photos(tmp_path, readable=MAX_PHOTOS + 3, torn=2))
    assert photos.inputs["input"].shape == (MAX_PHOTOS, 3, 8, 8)
    assert f"--images: 2 of {MAX_PHOTOS + 2} images could not be read and were left out" in caplog.text
    assert "a_torn_1.png" in caplog.text


@pytest.mark.parametrize(("readable", "strict"), [(3, True), (0, False)])
def test_a_photo_that_cannot_be_read_is_an_error_if_strict_or_alone(
    readable: int, strict: bool, model: LoadedModel, tmp_path: Path
) -> None:
    folder = save_photos(tmp_path, readable=readable, torn=1)
    with pytest.raises(ImageError, match=r"a_torn_0\.png"):
        compute_references(model, ["y"], images=folder, strict=strict)


class Caches(nn.Module):
    """Keeps a positional encoding in a dict from the first call on."""

    def __init__(self) -> None:
        super().__init__()
        self.cache: dict[int, torch.Tensor] = {}

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.cache.setdefault(x.shape[-1], torch.ones(x.shape[-1]))


def test_a_module_that_keeps_tensors_can_be_trained_afterwards() -> None:
    """Its cache held tensors of inference mode."""
    module = Caches()
    compute_references(from_module(module, example_input=torch.zeros(1, 4)), ["y"])
    module(torch.rand(1, 4, requires_grad=True)).sum().backward()


class Incomparable(nn.Module):
    """Outputs a second tensor that no engine can be compared on."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return x, x[:, :0] if self.kind == "empty" else torch.complex(x, x)


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("empty", r"output b of incomparable is empty, \(1, 0, 8, 8\); leave it out of what"),
        ("complex", r"output b of incomparable is complex; return torch.view_as_real\(\) of it"),
    ],
)
def test_an_empty_or_complex_output_is_named(kind: str, words: str) -> None:
    model = from_module(Incomparable(kind), example_input=torch.zeros(1, 3, 8, 8))
    with pytest.raises(ExportError, match=words):
        compute_references(model, ["a", "b"])
