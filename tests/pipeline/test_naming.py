"""Two models of one class have two names; one model keeps its own."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from edgevit.bundles.store import write_manifest
from edgevit.errors import UsageError
from edgevit.models.loading import LoadedModel, from_module
from edgevit.pipeline.naming import fingerprint_of, with_distinct_name, with_name
from tests.helpers.bundles import sample_manifest


def model(width: int = 4, seed: int = 0) -> LoadedModel:
    torch.manual_seed(seed)
    return from_module(nn.Linear(4, width), example_input=torch.zeros(1, 4))


def publish(named: LoadedModel, out: Path, precision: str = "fp32") -> None:
    """Write a bundle with the name and fingerprint of a model."""
    manifest = sample_manifest()
    record = replace(manifest.model, name=named.name, source=None, fingerprint=named.origin.fingerprint)
    folder = out / f"{named.name}-{precision}-ort"
    folder.mkdir()
    write_manifest(folder, replace(manifest, model=record))


@pytest.mark.parametrize("other", [model(width=5), model(seed=1)])
def test_another_model_of_the_class_gets_a_number(
    other: LoadedModel, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first = with_distinct_name(model(), tmp_path)
    publish(first, tmp_path)
    with caplog.at_level(logging.WARNING):
        second = with_distinct_name(other, tmp_path)
    assert (first.name, second.name) == ("linear", "linear_2")
    assert caplog.messages == [
        f"edgevit: {tmp_path} has bundles of another Linear; this one is called linear_2 (choose a name with name=)"
    ]
    publish(second, tmp_path, precision="int8")  # another precision of the first would be another bundle, too
    assert [with_distinct_name(each, tmp_path).name for each in (model(), other)] == ["linear", "linear_2"]
    assert with_distinct_name(model(width=6), tmp_path).name == "linear_3"


def test_a_bundle_that_does_not_say_its_model_is_of_another_one(tmp_path: Path) -> None:
    publish(model(), tmp_path)  # without a fingerprint
    assert with_distinct_name(model(), tmp_path).name == "linear_2"


def test_a_name_that_is_given_stays(tmp_path: Path) -> None:
    publish(with_distinct_name(model(), tmp_path), tmp_path)
    named = replace(model(seed=1), origin=replace(model().origin, source="net.py:build"))
    assert with_distinct_name(named, tmp_path).name == "linear"
    assert with_name(model(seed=1), "my-net.v2").name == "my-net.v2"


@pytest.mark.parametrize("name", ["", "a/b", "../a", ".hidden", "a b", "x" * 101])
def test_a_name_that_is_no_folder_is_refused(name: str) -> None:
    with pytest.raises(UsageError, match="cannot begin a folder name; .* beginning with a letter or digit"):
        with_name(model(), name)


class Activation(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.function = object()

    def extra_repr(self) -> str:
        return str(self.function)  # with its address


def test_the_fingerprint_does_not_depend_on_addresses() -> None:
    first, second = Activation(), Activation()
    assert str(first) != str(second)
    assert fingerprint_of(first) == fingerprint_of(second)
