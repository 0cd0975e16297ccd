"""`edgevit list`."""

from __future__ import annotations

import json

import pytest

from edgevit.models import registry
from tests.helpers.cli import status


def test_list_names_every_model(capsys: pytest.CaptureFixture[str]) -> None:
    assert status("list") == 0
    printed = capsys.readouterr().out
    assert all(name in printed for name in registry.list_models())
    assert status("list", "--family", "shiftvit", "--json", "-") == 0
    models = json.loads(capsys.readouterr().out)["models"]
    assert [model["name"] for model in models] == registry.list_models("shiftvit")
