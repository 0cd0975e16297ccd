"""Bundles to test with: manifests made by hand, and damage done to real ones."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from edgevit.bundles.build_records import BuildRecord, PrecisionRecord, RuntimeRecord
from edgevit.bundles.manifest import Manifest
from edgevit.bundles.model_record import ModelRecord
from edgevit.types import TensorSpec


def sample_manifest(**changes: Any) -> Manifest:
    """The manifest of a bundle whose engine has yet to be built, with its files left out."""
    sections: dict[str, Any] = {
        "model": ModelRecord(name="model", source=None, weights="as given"),
        "build": BuildRecord(batch=1),
        "runtime": RuntimeRecord(fmt="ort"),
        "precision": PrecisionRecord(requested="fp32"),
        "inputs": (TensorSpec("x", "float32", (1, 3)),),
        "outputs": (TensorSpec("y", "float32", (1, 2)),),
    }
    return Manifest(**{**sections, **changes})


def manifest_json(bundle: Path) -> dict[str, Any]:
    """The manifest of the bundle folder as it is on disk."""
    content: dict[str, Any] = json.loads((bundle / "manifest.json").read_text("utf-8"))
    return content


def write_manifest_json(bundle: Path, content: Any) -> None:
    """Replace the manifest of the bundle folder, whatever its content."""
    (bundle / "manifest.json").write_text(json.dumps(content), "utf-8")


def damage(bundle: Path, place: str, value: Any = None, *, drop: bool = False) -> None:
    """Set or drop the field of the manifest at a place such as "build.batch" or "files.0.path"."""
    manifest = manifest_json(bundle)
    *parents, last = [int(part) if part.isdigit() else part for part in place.split(".")]
    section: Any = manifest
    for part in parents:
        section = section[part]
    if drop:
        del section[last]
    else:
        section[last] = value
    write_manifest_json(bundle, manifest)
