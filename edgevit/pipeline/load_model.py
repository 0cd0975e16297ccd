"""Load the MODEL of an export: an ONNX file, or anything that `models.loading` makes a module of."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from edgevit.errors import UsageError
from edgevit.models.description import ModelDescription, with_preprocessing
from edgevit.pipeline.onnx_model import is_onnx_file, load_onnx_model
from edgevit.types import OutputForm


def load_named(
    name: str,
    *,
    weights: str | os.PathLike[str] | None = None,
    num_classes: int | None = None,
    img_size: int | tuple[int, int] | None = None,
    batch: int | None = None,
    input_shapes: Mapping[str, Sequence[int]] | None = None,
    arguments: Mapping[str, Any] | None = None,
    outputs: OutputForm | None = None,
    preprocessing: object = None,
) -> ModelDescription:
    """Load a model by name. PyTorch is imported unless `name` is that of an ONNX file.

    `batch` is 1 if it is None, or the fixed one of an ONNX file. The other options and the errors are those of
    `loading.from_name`; an ONNX file takes only sizes and `preprocessing`.
    """
    if is_onnx_file(name):
        refused = {"--weights": weights, "--num-classes": num_classes, "--arg": arguments or None, "--outputs": outputs}
        _refuse(refused, name)
        model = load_onnx_model(Path(name), img_size=img_size, batch=batch, input_shapes=input_shapes)
        return model if preprocessing is None else with_preprocessing(model, preprocessing)
    from edgevit.models import loading

    return loading.from_name(
        name,
        weights=weights,
        num_classes=num_classes,
        img_size=img_size,
        batch=1 if batch is None else batch,
        input_shapes=input_shapes,
        arguments=arguments,
        outputs=outputs,
        preprocessing=preprocessing,
    )


@contextmanager
def restored_mode(model: object) -> Iterator[None]:
    """Restore the training flags of a module on exit; do nothing for a name."""
    if isinstance(model, str):
        yield
        return
    from edgevit.models.loading import preserve_training_mode

    with preserve_training_mode(model):
        yield


def _refuse(options: Mapping[str, object], name: str) -> None:
    for option, value in options.items():
        if value is not None:
            raise UsageError(
                f"{option} does not apply to {name}: an ONNX file has its weights, classes and outputs; leave it out"
            )
