"""Preprocessing and class names: as a model declares them, as the user sets them.

timm keeps the settings in `module.pretrained_cfg`, Hugging Face in `module.config` and a `preprocessor_config.json`
next to the weights, torchvision in the transforms of a weights entry. A declaration that `Preprocessing` cannot express
is an error: a model that is fed in another way silently loses accuracy.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from edgevit.errors import UsageError
from edgevit.files import class_and_first_line
from edgevit.images import IMAGENET_MEAN, IMAGENET_STD, Preprocessing, crop_fraction
from edgevit.models import hf_processor
from edgevit.types import INTERPOLATIONS, CropMode, Interpolation, PadSide, ResizeMode

if TYPE_CHECKING:
    from torch import nn

_HF_UNSET = "LABEL_"  # transformers names classes LABEL_0, LABEL_1, ... if nothing else is known
_TIMM_DEFAULT_CROP = 0.875  # timm's value if a configuration has none


@dataclass(frozen=True, slots=True, kw_only=True)
class PreprocessingOptions:
    """Settings that the user gives; each that is not None replaces the model's own.

    `input_range` are the values of a black and a white pixel before `mean` and `std`, which are in its units:
    0:1 if it is None, 0:255 for the means of Caffe and OpenCV, -1:1 for TensorFlow's models. `pad_color` is in the
    same units.
    """

    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    input_range: tuple[float, float] | None = None
    resize: int | None = None  # the shorter side from which the input is cropped
    crop_pct: float | None = None
    crop_mode: CropMode | None = None
    interpolation: Interpolation | None = None
    resize_mode: ResizeMode | None = None  # how the whole image is shown, for boxes and masks
    edges: tuple[int, int] | None = None  # the shortest and the longest, of "shorter_side"
    pad_color: tuple[float, ...] | None = None
    pad_side: PadSide | None = None

    @property
    def given(self) -> bool:
        """Whether any setting is given."""
        return self != PreprocessingOptions()

    def apply(self, base: Preprocessing) -> Preprocessing:
        """Return `base` with the given settings. Raises UsageError if they contradict each other."""
        if self.resize is not None and self.crop_pct is not None:
            raise UsageError("--resize and --crop-pct exclude each other: crop_pct is the input's side over --resize")
        crop = (self.resize, self.crop_pct, self.crop_mode)
        mode = self.resize_mode or base.resize
        if mode != "crop" and any(each is not None for each in crop):
            raise UsageError(
                "--resize, --crop-pct and --crop-mode are for images that are cropped, and this model is given the "
                f"whole image ({mode}); use --img-size"
            )
        if mode in ("crop", "stretch") and (self.pad_color, self.pad_side) != (None, None):
            raise UsageError("--pad-color and --pad-side need --resize-mode fit or shorter_side")
        if mode != "shorter_side" and self.edges is not None:
            raise UsageError("--edges needs --resize-mode shorter_side")
        mean, std = self._normalization(base)
        fraction = base.crop_pct if self.crop_pct is None else self.crop_pct
        if self.resize is not None:
            fraction = crop_fraction(min(base.input_size[1:]), self.resize)
        return replace(
            base,
            interpolation=self.interpolation or base.interpolation,
            crop_pct=fraction,
            crop_mode=self.crop_mode or base.crop_mode,
            mean=mean,
            std=std,
            resize=mode,
            edges=self.edges or (base.edges if mode == "shorter_side" else None),
            pad=base.pad if self.pad_color is None else self._pad(mean, std),
            pad_side=self.pad_side or base.pad_side,
        )

    def _pad(self, mean: tuple[float, ...], std: tuple[float, ...]) -> tuple[float, ...]:
        """Return the padding's color after normalization."""
        low, high = self.input_range or (0.0, 1.0)
        color = self.pad_color or ()
        if len(color) != len(mean):
            raise UsageError(f"--pad-color needs one value per channel, {len(mean)}, not {len(color)}")
        if not all(low <= value <= high for value in color):
            raise UsageError(f"a --pad-color is from {low:g} to {high:g}, as pixels are; 114 of 255 is 0.447")
        pixels = ((value - low) / (high - low) for value in color)
        return tuple((value - center) / spread for value, center, spread in zip(pixels, mean, std, strict=True))

    def _normalization(self, base: Preprocessing) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Return mean and std for pixels from 0 to 1."""
        if self.input_range is None:
            if self.mean is not None and max(self.mean) > 1:
                raise UsageError(
                    f"a mean of {max(self.mean):g} is for pixels from 0 to 255, and pixels are from 0 to 1 here; "
                    "add --input-range 0:255"
                )
            return self.mean or base.mean, self.std or base.std
        low, high = self.input_range
        if not low < high:
            raise UsageError(f"--input-range {low:g}:{high:g} is empty; give LOW:HIGH, such as 0:255 or -1:1")
        channels, scale = base.input_size[0], high - low
        mean, std = self.mean or (0.0,) * channels, self.std or (1.0,) * channels
        return tuple((value - low) / scale for value in mean), tuple(value / scale for value in std)


def declared_preprocessing(module: nn.Module) -> Preprocessing | None:
    """Return the preprocessing that a module carries, or None.

    Raises UsageError if it carries one that `Preprocessing` cannot express.
    """
    config = getattr(module, "config", None)  # of Hugging Face; for a model of timm it holds timm's
    for owner, name in ((module, "pretrained_cfg"), (module, "default_cfg"), (config, "pretrained_cfg")):
        settings = _as_mapping(getattr(owner, name, None))
        if settings and "mean" in settings:
            return parse_preprocessing(settings)
    found = hf_processor.saved_settings(config)
    return None if found is None else parse_preprocessing(found)


def declared_size(module: nn.Module) -> tuple[int, int] | None:
    """Return the height and width of the images that a module is for, as it declares them, or None."""
    with contextlib.suppress(UsageError):  # it is raised with the preprocessing
        declared = declared_preprocessing(module)
        if declared is not None:
            return declared.input_size[1], declared.input_size[2]
    config = getattr(module, "config", None)  # of Hugging Face
    size = getattr(getattr(config, "vision_config", config), "image_size", None)
    given = list(size) if isinstance(size, list | tuple) else [size]
    sides = [side for side in given if isinstance(side, int)]
    return _sides(sides) if len(sides) == len(given) and len(sides) in (1, 2) else None


def declared_classes(module: nn.Module) -> tuple[str, ...] | None:
    """Return the class names in `module.config.id2label` in the order of the logits, or None."""
    labels = getattr(getattr(module, "config", None), "id2label", None)
    if not isinstance(labels, Mapping) or set(labels) != set(range(len(labels))):
        return None
    names = tuple(str(labels[index]) for index in range(len(labels)))
    return None if not names or all(name.startswith(_HF_UNSET) for name in names) else names


def parse_preprocessing(source: object) -> Preprocessing:
    """Return the preprocessing that `source` describes.

    `source` is a `Preprocessing`, a timm configuration, a Hugging Face image processor or its configuration, or the
    transforms of a torchvision weights entry (`ResNet18_Weights.DEFAULT.transforms()`).
    Raises UsageError if it is none of these, or needs a step that `Preprocessing` does not have.
    """
    if isinstance(source, Preprocessing):
        return source
    if hasattr(source, "resize_size") and hasattr(source, "crop_size"):
        return _from_torchvision(source)
    settings = _as_mapping(source)
    try:
        if settings and hf_processor.is_processor(settings):
            return hf_processor.parse(settings)
        if settings and ("mean" in settings or "crop_pct" in settings):
            return _from_timm(settings)
    except UsageError:
        raise
    except (TypeError, ValueError, KeyError, IndexError) as error:
        raise UsageError(f"the preprocessing of the model is damaged: {class_and_first_line(error)}") from error
    raise UsageError(
        f"cannot read the preprocessing from a {type(source).__name__}; pass an edgevit.images.Preprocessing, a timm "
        "pretrained_cfg, a Hugging Face image processor, or the transforms() of a torchvision weights entry"
    )


def _from_timm(settings: Mapping[str, Any]) -> Preprocessing:
    interpolation = settings.get("interpolation") or "bilinear"
    return Preprocessing(
        input_size=_three(settings.get("input_size") or (3, 224, 224)),
        interpolation=_interpolation(interpolation),
        crop_pct=float(settings.get("crop_pct") or _TIMM_DEFAULT_CROP),
        crop_mode=settings.get("crop_mode") or "center",
        mean=tuple(settings.get("mean") or IMAGENET_MEAN),
        std=tuple(settings.get("std") or IMAGENET_STD),
    )


def _from_torchvision(transforms: Any) -> Preprocessing:
    height, width = _sides(list(transforms.crop_size))
    resized = list(transforms.resize_size)
    if len(resized) == 2 and resized[0] != resized[1]:
        raise UsageError(f"torchvision's transforms resize images to {resized}; only one size is supported")
    interpolation = getattr(transforms.interpolation, "value", transforms.interpolation)
    return Preprocessing(
        input_size=(len(transforms.mean), height, width),
        interpolation=_interpolation(interpolation),
        crop_pct=crop_fraction(min(height, width), resized[0]),
        crop_mode="center" if len(resized) == 1 else "squash",
        mean=tuple(transforms.mean),
        std=tuple(transforms.std),
    )


def _interpolation(name: str) -> Interpolation:
    for known in INTERPOLATIONS:
        if name == known:
            return known
    raise UsageError(f"interpolation {name!r} is not supported; give --interpolation {'|'.join(INTERPOLATIONS)}")


def _sides(sizes: Sequence[int]) -> tuple[int, int]:
    """Return height and width from one side of a square or both."""
    return (sizes[0], sizes[0]) if len(sizes) == 1 else (sizes[0], sizes[1])


def _three(size: Sequence[int]) -> tuple[int, int, int]:
    channels, height, width = size
    return channels, height, width


def _as_mapping(settings: object) -> Mapping[str, Any] | None:
    """Return settings as a mapping: a dict, or an object that has `to_dict()`."""
    if isinstance(settings, Mapping):
        return settings
    to_dict = getattr(settings, "to_dict", None)
    found = to_dict() if callable(to_dict) else None
    return found if isinstance(found, Mapping) else None
