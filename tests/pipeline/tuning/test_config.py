"""The options of a search, and the folder that it shares with searches of the same options."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from edgevit.errors import UsageError
from edgevit.models.loading import LoadedModel, from_module
from edgevit.pipeline.tuning.config import TuneConfig, search_key
from tests.helpers.cli import PHOTO


def model() -> LoadedModel:
    module = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten(), nn.Linear(1568, 10))
    return replace(from_module(module, example_input=torch.rand(1, 3, 16, 16)), name="tiny")


@pytest.mark.parametrize(("max_drop", "shown"), [(1.5, "150%"), (1.1, "110%"), (-0.01, "-1%")])
def test_a_loss_that_is_no_part_of_the_accuracy_is_shown_in_percent(max_drop: float, shown: str) -> None:
    with pytest.raises(UsageError, match=f"^--max-drop must be at least 0% and below 100%, got {shown}$"):
        TuneConfig(eval=Path(), max_drop=max_drop)


def test_a_search_goes_on_only_with_the_options_that_its_bundles_were_built_with(tmp_path: Path) -> None:
    folder, found, options = tmp_path / "eval", model(), TuneConfig(out=tmp_path)
    folder.mkdir()
    shutil.copy(PHOTO, folder / "other.jpg")
    preprocessing = found.preprocessing
    assert preprocessing is not None
    labeled = replace(options, eval=folder, calib=folder)
    keys = [
        search_key("graph", described, each)
        for described, each in (
            (found, options),
            (found, replace(options, images=folder)),
            (found, replace(options, strict=True)),
            (found, labeled),
            (found, replace(labeled, max_drop=0.5)),
            (found, replace(labeled, int8_range="safe" if labeled.weight_range == "full" else "full")),
            (replace(found, preprocessing=replace(preprocessing, mean=(0.1, 0.1, 0.1))), options),
            (replace(found, classes=("a", "b")), options),
            (replace(found, name="other"), options),
        )
    ]
    (folder / "labels.txt").write_text("other.jpg 1\n")
    keys.append(search_key("graph", found, labeled))
    assert len(set(keys)) == len(keys)
    free = replace(options, threads=(2,), limit_s=1.0, out=folder, throughput=True, fresh=True)
    assert search_key("graph", found, free) == keys[0]
