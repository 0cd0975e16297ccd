"""Recreate the PyTorch model that a bundle was exported from.

A manifest may come from anyone, so nothing that it names is imported: it only selects among the registered models.
Code of the user's own runs if the user names it again, and the result is checked against reference.npz.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from edgevit.arrays import differences, finite_std
from edgevit.bundles.bundle import Bundle
from edgevit.bundles.model_record import ModelRecord
from edgevit.errors import UsageError
from edgevit.files import file_sha256
from edgevit.latency.candidate import PYTORCH_MODEL
from edgevit.types import Array, Reference

if TYPE_CHECKING:
    from edgevit.models.loading import LoadedModel

_TOLERANCE_STD = 1e-4  # of the stored output's standard deviation: another PyTorch or processor rounds differently


@dataclass(frozen=True, slots=True, kw_only=True)
class PytorchSource:
    """The user's answer to which PyTorch model a bundle was exported from; None leaves it to the manifest.

    `model` is a registered name, `package.module:factory` or `file.py:factory`; `arguments` are that factory's;
    `weights` is a checkpoint file, or "official".
    """

    model: str | None = None
    weights: str | os.PathLike[str] | None = None
    arguments: Mapping[str, object] = field(default_factory=dict)

    @property
    def details(self) -> dict[str, str]:
        """The options that name it, for the report of a measurement and the command that repeats it."""
        options = [
            *(["--model", self.model] if self.model is not None else []),
            *(word for name, value in self.arguments.items() for word in ("--arg", f"{name}={value!r}")),
            *(["--weights", os.fspath(self.weights)] if self.weights is not None else []),
        ]
        return {PYTORCH_MODEL: shlex.join(options)} if options else {}


FROM_MANIFEST = PytorchSource()


def torch_options(record: ModelRecord) -> str | None:
    """Return the options that name a bundle's PyTorch model as far as its manifest knows them: without folders.

    They are empty if it needs none, and None if no option names the model: it was an ONNX file or a module in memory.
    """
    if record.source is None or record.onnx_file is not None:
        return None
    needs_weights = record.weights_sha256 is not None and not record.weights.startswith("included ")
    source = PytorchSource(
        model=None if record.is_registered else record.source, weights=record.weights if needs_weights else None
    )
    return source.details.get(PYTORCH_MODEL, "")


def recreate_model(bundle: Bundle, source: PytorchSource = FROM_MANIFEST) -> LoadedModel:
    """Create the model again, and check its outputs against reference.npz.

    Random weights are drawn again from the same seed. Raises UsageError if the user has to name the model or its
    weights, or if the outputs differ; MissingError if PyTorch is not installed.
    """
    record = bundle.manifest.model
    if source == FROM_MANIFEST and record.has_random_weights and not record.has_seed:
        raise UsageError(
            f"{bundle.name} was exported from a module in memory whose random weights no seed draws again; "
            "save the module's state_dict() and name that file: --weights FILE"
        )
    model = load_unchecked(bundle, source)
    require_match(bundle, model)
    return model


def references_on(
    images: Path | None, bundle: Bundle, load_model: Callable[[], LoadedModel], *, strict: bool = False
) -> tuple[Reference, ...]:
    """Return PyTorch's outputs for the photos in a folder, or those in the bundle if there is none.

    `load_model` creates the model that the bundle was exported from. Photos that cannot be read are left out, with a
    warning, or raise ImageError if `strict`.
    """
    if images is None:
        return bundle.references()
    from edgevit.models.reference import compute_references

    output_names = [spec.name for spec in bundle.manifest.outputs]
    return compute_references(load_model(), output_names, images=images, strict=strict)


def load_unchecked(bundle: Bundle, source: PytorchSource = FROM_MANIFEST) -> LoadedModel:
    """Create the model as `recreate_model` does, without the check; follow it with `require_match`."""
    from edgevit.runtimes.pytorch import load_torch

    load_torch()
    from edgevit.models import loading, registry
    from edgevit.models.description import is_hub_name

    record, batch = bundle.manifest.model, bundle.options.batch
    name = source.model or record.source
    if record.onnx_file is not None and source.model is None:
        raise UsageError(
            f"{bundle.name} was exported from the ONNX file {record.onnx_file}; name the PyTorch model of that file "
            "(--model file.py:FUNCTION), or export the file again for other photos"
        )
    if name is None or (":" in name and source.model is None):
        made_from = "a module in memory" if name is None else f"the code {name}, which a bundle cannot make edgevit run"
        again = name if name is not None and is_hub_name(name) else "file.py:FUNCTION"
        raise UsageError(f"{bundle.name} was exported from {made_from}; name it again: --model {again}")
    if ":" in name:
        return loading.from_name(
            name,
            weights=source.weights,
            img_size=_image_size(bundle),
            batch=batch,
            arguments=source.arguments,
            preprocessing=record.preprocessing,
        )
    if source.arguments:
        raise UsageError(f"--arg is for the factory of --model file.py:FUNCTION; {name} takes none")
    weights = source.weights if source.weights is not None else _recorded_weights(bundle)
    height_and_width = bundle.preprocessing.input_size[1:]
    options = dict(record.options) if record.is_registered else {}
    features = bool(options.pop("features", False))
    module = registry.create_model(
        name, weights, record.num_classes, img_size=height_and_width, features=features, options=options
    )
    loading.draw_weights(module)
    return loading.from_module(module, batch=batch)


def _recorded_weights(bundle: Bundle) -> Path | None:
    """The weights file that the manifest names, if it is there and has the recorded hash.

    None for weights that need no file: random ones, and those that come with edgevit. Raises UsageError if the user
    has to name the file.
    """
    record = bundle.manifest.model
    if record.has_random_weights or record.weights.startswith("included "):
        return None
    path = Path(record.weights)
    if path.is_file() and file_sha256(path) == record.weights_sha256:
        return path
    raise UsageError(f"{bundle.name} has the weights {record.weights}; name their file again: --weights FILE")


def _image_size(bundle: Bundle) -> tuple[int, int]:
    """Height and width of the images that a user's model takes."""
    shape = bundle.manifest.inputs[0].shape if bundle.manifest.inputs else ()
    height, width = shape[2:] if len(shape) == 4 else (None, None)
    if not isinstance(height, int) or not isinstance(width, int):
        raise UsageError(f"{bundle.name} takes no images, so its model cannot be created from a name")
    return height, width


def require_match(bundle: Bundle, model: LoadedModel) -> None:
    """Raise UsageError unless the model's outputs are those in the bundle: its weights or its code may have changed."""
    from edgevit.models.reference import reference_outputs

    for reference in bundle.references():
        outputs = reference_outputs(model, tuple(reference.inputs.values()), tuple(reference.outputs))
        if not _is_close(outputs, reference):
            raise UsageError(
                f"the PyTorch model does not match {bundle.name}: {model.name} with the weights "
                f"{model.origin.weights} does not give the reference outputs of {bundle.name}; "
                "check --model and --weights, or export it again"
            )


def _is_close(outputs: Mapping[str, Array], reference: Reference) -> bool:
    def is_close(name: str, expected: Array) -> bool:
        output = outputs[name]
        tolerance = max(_TOLERANCE_STD * finite_std(expected), reference.float32_error.get(name, 0.0))
        return output.shape == expected.shape and bool((differences(output, expected) <= tolerance).all())

    return all(name in outputs and is_close(name, expected) for name, expected in reference.outputs.items())
