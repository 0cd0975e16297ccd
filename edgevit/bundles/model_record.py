"""The exported model in a manifest: its origin, weights and preprocessing."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, cast

from edgevit.errors import UsageError
from edgevit.images import MAX_CROP_PCT, Preprocessing
from edgevit.types import (
    CROP_MODES,
    INTERPOLATIONS,
    OUTPUT_FORMS,
    PAD_SIDES,
    PREPROCESSING_SOURCES,
    RESIZE_MODES,
    TASKS,
    CropMode,
    Interpolation,
    OutputForm,
    PadSide,
    PreprocessingSource,
    ResizeMode,
    Task,
)
from edgevit.untrusted import (
    SHA256,
    InvalidError,
    Json,
    JsonObject,
    any_object,
    integer,
    list_of,
    nullable,
    number,
    one_of,
    text,
)

# Limits that no real bundle comes near; a damaged or hostile manifest must not make edgevit allocate gigabytes.
MAX_CLASSES = 1 << 16
MAX_INPUT_SIDE = 1 << 13  # pixels of a preprocessed photo
MIN_CROP_PCT = 0.05


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelRecord:
    """The model that was exported.

    `source` is a registered name, the user's `file.py:factory`, or `onnx:FILE`; None for a module that was in memory.
    `weights` is the origin of the weights: a file, an address, "included ..." or "random ...". Both omit folders,
    because a bundle is passed on to others.
    """

    name: str
    source: str | None
    weights: str
    weights_sha256: str | None = None
    weights_key: str | None = None  # container in the checkpoint, such as "model_ema"
    weights_tensors: int | None = None
    family: str | None = None
    options: Json = field(default_factory=dict)
    num_classes: int | None = None  # of registered models with classes
    preprocessing: Preprocessing | None = None  # None if the input is not an image
    preprocessing_source: PreprocessingSource | None = None  # None in bundles of earlier versions
    fingerprint: str | None = None  # hash of class, structure and weights of a module in memory
    task: Task = "classification"
    output_form: OutputForm = "logits"

    @property
    def onnx_file(self) -> str | None:
        """The name of the ONNX file that was exported; None for a PyTorch model."""
        return self.source.removeprefix("onnx:") if self.source and self.source.startswith("onnx:") else None

    @property
    def is_registered(self) -> bool:
        return self.source is not None and ":" not in self.source

    @property
    def lacks_checkpoint(self) -> bool:
        """Whether the weights are known to be random. A checkpoint called random.pt has a hash."""
        return self.weights.startswith("random") and self.weights_sha256 is None

    @property
    def has_random_weights(self) -> bool:
        """Whether this is a registered model without a checkpoint."""
        return self.is_registered and self.lacks_checkpoint

    @property
    def has_seed(self) -> bool:
        """Whether the weights are random and can be drawn again; those of `create_model` cannot."""
        return self.has_random_weights and "seed" in self.weights

    def to_json(self) -> dict[str, Any]:
        classes = {} if self.num_classes is None else {"num_classes": self.num_classes}
        read: dict[str, Any] = {}  # absent in schema version 1
        if self.weights_tensors is not None:
            read = {"weights_key": self.weights_key, "weights_tensors": self.weights_tensors}
        return {
            "name": self.name,
            "family": self.family,
            "source": self.source,
            "options": dict(self.options),
            **classes,
            "weights": self.weights,
            "weights_sha256": self.weights_sha256,
            **read,
            **({} if self.fingerprint is None else {"fingerprint": self.fingerprint}),
            "task": self.task,
            "output_form": self.output_form,
            "preprocessing": self.preprocessing.to_json() if self.preprocessing else None,
            "preprocessing_source": self.preprocessing_source,
        }

    @classmethod
    def parse(cls, value: Any, place: str) -> ModelRecord:
        fields = JsonObject.of(value, place)
        return cls(
            name=fields.read("name", text(most=255)),
            source=fields.read("source", nullable(text())),
            weights=fields.read("weights", text()),
            weights_sha256=fields.read_or("weights_sha256", nullable(SHA256), None),
            weights_key=fields.read_or("weights_key", nullable(text()), None),
            weights_tensors=fields.read_or("weights_tensors", nullable(integer(0, 1_000_000)), None),
            family=fields.read_or("family", nullable(text(most=255)), None),
            options=fields.read("options", any_object),
            num_classes=fields.read_or("num_classes", nullable(integer(1, MAX_CLASSES)), None),
            preprocessing=fields.read("preprocessing", nullable(_parse_preprocessing)),
            preprocessing_source=cast(
                "PreprocessingSource | None",
                fields.read_or("preprocessing_source", nullable(one_of(*PREPROCESSING_SOURCES)), None),
            ),
            fingerprint=fields.read_or("fingerprint", nullable(SHA256), None),
            task=cast("Task", fields.read_or("task", one_of(*TASKS), "classification")),
            output_form=cast("OutputForm", fields.read_or("output_form", one_of(*OUTPUT_FORMS), "logits")),
        )


def _parse_preprocessing(value: Any, place: str) -> Preprocessing:
    fields = JsonObject.of(value, place)
    channel_values = list_of(number(-1e6, 1e6), least=1, most=4)
    channels, height, width = fields.read("input_size", list_of(integer(1, MAX_INPUT_SIDE), least=3, most=3))
    try:
        return Preprocessing(
            input_size=(channels, height, width),
            interpolation=cast("Interpolation", fields.read("interpolation", one_of(*INTERPOLATIONS))),
            crop_pct=fields.read("crop_pct", number(MIN_CROP_PCT, MAX_CROP_PCT)),
            crop_mode=cast("CropMode", fields.read_or("crop_mode", one_of(*CROP_MODES), "center")),
            mean=fields.read("mean", channel_values),
            std=fields.read("std", channel_values),
            resize=cast("ResizeMode", fields.read_or("resize", one_of(*RESIZE_MODES), "crop")),
            edges=_pair(fields.read_or("edges", nullable(list_of(integer(1, MAX_INPUT_SIDE), least=2, most=2)), None)),
            pad=_unless_zero(fields.read_or("pad", nullable(channel_values), None)),
            pad_side=cast("PadSide", fields.read_or("pad_side", one_of(*PAD_SIDES), "bottom_right")),
        )
    except UsageError as error:
        raise InvalidError(f"{place}: {error}") from error


def _unless_zero(pad: tuple[float, ...] | None) -> tuple[float, ...] | None:
    return pad if pad is not None and any(pad) else None


def _pair(values: tuple[int, ...] | None) -> tuple[int, int] | None:
    return None if values is None else (values[0], values[1])
