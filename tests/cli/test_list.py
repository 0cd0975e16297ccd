"""`edgevit list`."""

from __future__ import annotations

import json

import pytest

from edgevit.models import registry
from tests.helpers.cli import status


def test_list_names_every_model(capsys: pytest.CaptureFixture[str]) -> None:
    assert status("list") == 0
    printed = capsys.readouterr().out
    assert all(name in printed for name in registry.list_models(task=None))
    assert status("list", "--family", "shiftvit", "--json", "-") == 0
    models = json.loads(capsys.readouterr().out)["models"]
    assert [model["name"] for model in models] == registry.list_models("shiftvit", task=None)


def test_list_selects_a_task_and_names_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert status("list", "--task", "detection", "--json", "-") == 0
    models = json.loads(capsys.readouterr().out)["models"]
    assert "mobileformer_151m_retinanet" in [model["name"] for model in models]
    assert {model["task"] for model in models} == {"detection"}
    assert status("list", "--task", "drawing") == 2


def test_list_says_where_weights_come_from(capsys: pytest.CaptureFixture[str]) -> None:
    assert status("list", "--json", "-") == 0
    weights = {model["name"]: model["weights"] for model in json.loads(capsys.readouterr().out)["models"]}
    assert weights["shiftvit_cifar10"]["availability"] == "included"
    assert weights["shiftvit_t"]["availability"] == "official"
    assert weights["shiftvit_t"]["address"].startswith("https://")
    assert weights["vitae_t"]["availability"] == "manual"
    assert "Google Drive" in weights["vitae_t"]["address"]
    assert weights["shuffle_swin_t"] == {"availability": "none", "address": ""}
    assert status("list", "-v") == 0
    assert f"shiftvit_t: {weights['shiftvit_t']['address']}\n" in capsys.readouterr().out


def test_the_first_line_of_list_says_that_tensorrt_has_not_run(capsys: pytest.CaptureFixture[str]) -> None:
    assert status("list") == 0
    assert "have not run on a GPU in edgevit's own tests" in capsys.readouterr().out.splitlines()[0]
    assert status("list", "-q") == 0
    assert "GPU" not in capsys.readouterr().out
