"""`edgevit verify`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from edgevit.bundles.bundle import Bundle
from tests.helpers.cli import status


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
    from edgevit.bundles import store
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


def test_the_options_of_a_saved_part_are_refused_for_a_bundle(
    bundle: Bundle, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert status("verify", bundle.path, "--fmt", "ort") == 2
    assert "--fmt and --precision require a part of a graph" in capsys.readouterr().err
    assert status("verify", tmp_path / "part.onnx") == 2
    assert "part.npz is missing" in capsys.readouterr().err
