"""Recreate the PyTorch model that a bundle was exported from."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from edgevit.bundles.bundle import Bundle
from edgevit.errors import UsageError
from edgevit.types import Reference

if TYPE_CHECKING:
    from edgevit.models.loading import LoadedModel

_TOLERANCE_STD = 1e-4  # of the stored output's standard deviation: another PyTorch or processor rounds differently


def recreate_model(bundle: Bundle) -> LoadedModel:
    """Create the model again from the name, options and weights in the manifest.

    Random weights are drawn again from the same seed. If a weights file is no longer there, the weights are random;
    `recreate_matching_model` notices that. Raises UsageError if the bundle was exported from a module in memory,
    MissingError if PyTorch is not installed.
    """
    from edgevit.runtimes.pytorch import load_torch

    load_torch()
    from edgevit.models import loading, registry
    from edgevit.models.initialization import randomise

    model = bundle.manifest.model
    source, batch, weights = model.source, bundle.options.batch, Path(model.weights)
    if source is None:
        raise UsageError(f"{bundle.name} was exported from a module in memory, which cannot be created again by name")
    if ":" in source:
        size = _image_size(bundle)
        return loading.from_name(source, weights=weights if weights.is_file() else None, img_size=size, batch=batch)
    module = registry.create_model(
        source,
        weights if weights.is_file() else None,
        model.num_classes,
        img_size=bundle.preprocessing.input_size[1:],
        **model.options,
    )
    recreated = loading.from_module(module, batch=batch)
    if str(recreated.origin["weights"]).startswith("random"):
        randomise(module, seed=loading.SEED)
    return recreated


def _image_size(bundle: Bundle) -> int:
    """Height of the images that a user's model takes."""
    shape = bundle.manifest.inputs[0].shape if bundle.manifest.inputs else ()
    if len(shape) != 4 or not isinstance(shape[2], int):
        raise UsageError(f"{bundle.name} takes no images, so its model cannot be created again from its name")
    return shape[2]


def recreate_matching_model(bundle: Bundle) -> LoadedModel:
    """Recreate the model and check its outputs against reference.npz.

    Raises UsageError if they differ: the weights or the code changed since the export.
    """
    recreated = recreate_model(bundle)
    from edgevit.models.reference import reference_outputs

    for reference in bundle.references():
        outputs = reference_outputs(recreated, tuple(reference.inputs.values()), tuple(reference.outputs))
        for name, stored in reference.outputs.items():
            if not np.allclose(outputs[name], stored, rtol=0, atol=_TOLERANCE_STD * float(stored.std())):
                raise UsageError(
                    f"the PyTorch model no longer matches {bundle.name}: its weights "
                    f"({bundle.manifest.model.weights}) changed or moved; export it again"
                )
    return recreated


def new_references(bundle: Bundle, images: Path) -> tuple[Reference, ...]:
    """PyTorch's outputs for the photos in a folder, from the model that the bundle was exported from."""
    recreated = recreate_matching_model(bundle)
    from edgevit.models.reference import compute_references

    output_names = [spec.name for spec in bundle.manifest.outputs]
    return compute_references(recreated, output_names, images=images)
