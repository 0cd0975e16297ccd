"""Read the settings of a Hugging Face image processor, `preprocessor_config.json`.

Most processors follow one set of rules, some have their own. A processor whose rules are not known here, or a step that
`Preprocessing` does not have, is an error that names it: the user's own settings replace it.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from edgevit.errors import UsageError
from edgevit.files import first_line, os_reason
from edgevit.images import Preprocessing, crop_fraction
from edgevit.types import Interpolation
from edgevit.untrusted import read_json

PREPROCESSOR = "preprocessor_config.json"
PROCESSORS = ("processor_config.json", PREPROCESSOR)  # the first holds that of images inside, since version 5
_ADVICE = "give your own: --mean, --std, --resize, --interpolation, or preprocessing="
_MAX_BYTES = 1 << 20
_INTERPOLATIONS: tuple[Interpolation, ...] = ("nearest", "lanczos", "bilinear", "bicubic", "box", "hamming")  # Pillow's
_CHANNELS = 3
_CLASS = re.compile(r"(ImageProcessor(Fast|Pil)?|FeatureExtractor)$")
_SQUASHED = 384  # ConvNeXt's processor crops smaller inputs by crop_pct and squashes photos to larger ones
_LEVIT_RESIZED = 256 / 224  # LeViT's processor resizes to this multiple of its setting

# The processors whose arrays for a photo were found equal to those of `Preprocessing`, but for pixels that were rounded
# differently; DINOv3ViT and DepthPro do not round.
_PLAIN = frozenset(
    [
        "Beit",
        "Bit",
        "Blip",
        "CLIP",
        "ChineseCLIP",
        "DINOv3ViT",
        "DPT",
        "DeiT",
        "DepthPro",
        "Flava",
        "MobileNetV1",
        "MobileNetV2",
        "OwlViT",
        "PromptDepthAnything",
        "Pvt",
        "RTDetr",
        "Sam2",
        "Sam3",
        "SegGpt",
        "Segformer",
        "Siglip",
        "ViT",
        "VideoMAE",
    ]
)
_WITH_OWN_RULES = frozenset({"ConvNext", "EfficientNet", "Levit", "PoolFormer"})  # found equal too
# Likewise, but that MaskFormer, Mask2Former and Yolos resize to the next multiple of some pixels.
_BY_EDGES = frozenset(
    [
        "ConditionalDetr",
        "DeformableDetr",
        "Detr",
        "Eomt",
        "GroundingDino",
        "Mask2Former",
        "MaskFormer",
        "OneFormer",
        "RfDetr",
        "Yolos",
    ]
)
_NUMBER_IS_SHORTER_SIDE = _BY_EDGES | frozenset(
    ["Bit", "CLIP", "ChineseCLIP", "ConvNext", "Levit", "MobileNetV1", "MobileNetV2", "PoolFormer", "VideoMAE"]
)
_KNOWN = _PLAIN | _BY_EDGES | _WITH_OWN_RULES

_UNSUPPORTED_STEPS = {
    "do_flip_channel_order": "swaps red and blue",
    "rescale_offset": "shifts pixels to -1 to 1",
    "keep_aspect_ratio": "keeps the aspect ratio in multiples of a size",
}


def is_processor(settings: Mapping[str, Any]) -> bool:
    """Return whether settings are those of an image processor."""
    return any(key in settings for key in ("image_mean", "image_processor_type", "feature_extractor_type"))


def saved_settings(config: object) -> Mapping[str, Any] | None:
    """Return the settings of the image processor that was saved with a model, from its folder or the hub's cache."""
    name = getattr(config, "name_or_path", None)
    if not isinstance(name, str) or not name:
        return None
    for file in PROCESSORS:
        path = Path(name) / file if Path(name).is_dir() else _cached(name, file, getattr(config, "_commit_hash", None))
        settings = _read(path) if path is not None and path.is_file() else {}
        settings = settings.get("image_processor", settings)
        if isinstance(settings, Mapping) and settings and (file == PREPROCESSOR or is_processor(settings)):
            return settings
    return None


def _cached(name: str, file: str, revision: str | None) -> Path | None:
    """Return a file of a model in Hugging Face's cache; nothing is downloaded."""
    hub: Any = sys.modules.get("huggingface_hub")  # imported if the model came from there
    found = None if hub is None else hub.try_to_load_from_cache(name, file, revision=revision)
    return Path(found) if isinstance(found, str) else None


def _read(path: Path) -> Mapping[str, Any]:
    try:
        settings = read_json(path, limit_bytes=_MAX_BYTES)
    except OSError as error:
        raise UsageError(f"cannot read {path}: {os_reason(error)}") from error
    except ValueError as error:
        raise UsageError(f"{path} is damaged: {first_line(error)}") from error
    if not isinstance(settings, Mapping):
        raise UsageError(f"{path} is damaged: it holds no settings")
    return settings


def parse(settings: Mapping[str, Any]) -> Preprocessing:
    """Return the preprocessing that an image processor does. Raises UsageError if `Preprocessing` cannot express it."""
    kind = _kind(settings)
    _require_known_steps(settings, kind)
    mean, std = _normalization(settings, kind)
    plain = Preprocessing(
        input_size=(len(mean), 1, 1), interpolation=_interpolation(settings), crop_pct=1.0, mean=mean, std=std
    )
    size = _size(settings, kind)
    shortest, longest = size.get("shortest_edge"), size.get("longest_edge")
    crop = settings.get("crop_size") if settings.get("do_center_crop") else None
    if isinstance(shortest, int) and isinstance(longest, int) and crop is None:
        sides = (len(mean), min(shortest, longest), min(shortest, longest))
        return replace(plain, input_size=sides, resize="shorter_side", edges=(min(shortest, longest), longest))
    if isinstance(shortest, int):
        return _resized_by_shorter_side(settings, kind, plain, shortest, crop)
    if isinstance(size.get("height"), int) and isinstance(size.get("width"), int):
        return _squashed(plain, (size["height"], size["width"]), crop)
    raise UsageError(f"{PREPROCESSOR} resizes images to {dict(size)}, which is not supported; {_ADVICE}")


def _kind(settings: Mapping[str, Any]) -> str:
    """Return the class of the processor without its ending; empty if the settings do not name it."""
    named = settings.get("image_processor_type") or settings.get("feature_extractor_type") or ""
    kind = _CLASS.sub("", str(named))
    if kind and kind not in _KNOWN and not any(settings.get(step) for step in _UNSUPPORTED_STEPS):
        raise UsageError(f"{PREPROCESSOR} is that of a {named}, whose rules edgevit does not know; {_ADVICE}")
    return kind


def _require_known_steps(settings: Mapping[str, Any], kind: str) -> None:
    if settings.get("do_resize") is False:
        raise UsageError(f"{PREPROCESSOR} does not resize images (do_resize: false); {_ADVICE}")
    for step, action in _UNSUPPORTED_STEPS.items():
        if settings.get(step):
            raise UsageError(f"{PREPROCESSOR} {action} ({step}), which is not supported; {_ADVICE}")
    if settings.get("do_pad") and kind not in _BY_EDGES:
        raise UsageError(f"{PREPROCESSOR} pads images (do_pad), which is not supported for it; {_ADVICE}")


def _size(settings: Mapping[str, Any], kind: str) -> Mapping[str, Any]:
    """Return the size as newer processors write it; in older files it is a number, whose meaning is the class's."""
    size = settings.get("size")
    if isinstance(size, Mapping):
        return size
    if not kind and isinstance(size, int):
        raise UsageError(
            f"{PREPROCESSOR} has size {size} and names no processor, so that it can mean two things; {_ADVICE}"
        )
    if kind in _NUMBER_IS_SHORTER_SIDE:
        return {"shortest_edge": size, "longest_edge": settings.get("max_size")}
    return {"height": size, "width": size}


def _resized_by_shorter_side(
    settings: Mapping[str, Any], kind: str, plain: Preprocessing, shorter: int, crop: object
) -> Preprocessing:
    fraction = float(settings.get("crop_pct") or 1.0)
    if kind == "Levit":
        resized = int(_LEVIT_RESIZED * shorter)
    elif kind == "PoolFormer" and crop is not None:
        resized = int(shorter / fraction)
    else:
        resized = shorter
    if crop is not None:
        return _cropped(plain, _sides(crop), resized)
    square = replace(plain, input_size=(len(plain.mean), shorter, shorter))
    if settings.get("crop_pct") and shorter >= _SQUASHED:
        return replace(square, crop_mode="squash")
    return replace(square, crop_pct=fraction)


def _squashed(plain: Preprocessing, size: tuple[int, int], crop: object) -> Preprocessing:
    squash = replace(plain, crop_mode="squash")
    if crop is not None:
        return _cropped(squash, _sides(crop), min(size))
    return replace(squash, input_size=(len(plain.mean), *size))


def _cropped(plain: Preprocessing, crop: tuple[int, int], resized: int) -> Preprocessing:
    return replace(plain, input_size=(len(plain.mean), *crop), crop_pct=crop_fraction(min(crop), resized))


def _sides(crop: object) -> tuple[int, int]:
    """Return height and width of a crop: one side, or a mapping."""
    if not isinstance(crop, Mapping):
        return int(crop), int(crop)  # type: ignore[call-overload]  # anything else is an error of the file
    if "height" in crop:
        return int(crop["height"]), int(crop["width"])
    return int(crop["shortest_edge"]), int(crop["shortest_edge"])


def _normalization(settings: Mapping[str, Any], kind: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and std for pixels from 0 to 1; Hugging Face rescales (by 1/255) and normalizes separately."""
    rescales = settings.get("do_rescale") is not False
    factor = 255 * float(settings.get("rescale_factor") or 1 / 255) if rescales else 255.0
    given_mean, given_std = settings.get("image_mean"), settings.get("image_std")
    if settings.get("do_normalize") is False or given_mean is None or given_std is None:
        if settings.get("do_normalize"):
            raise UsageError(f"{PREPROCESSOR} has no image_mean or image_std; {_ADVICE}")
        return (0.0,) * _CHANNELS, (1 / factor,) * _CHANNELS
    mean, std = _per_channel(given_mean), _per_channel(given_std)
    if kind == "EfficientNet" and settings.get("include_top"):
        std = tuple(value * value for value in std)  # its processor divides by the standard deviation a second time
    return tuple(value / factor for value in mean), tuple(value / factor for value in std)


def _per_channel(values: Sequence[float] | float) -> tuple[float, ...]:
    return (float(values),) * _CHANNELS if isinstance(values, int | float) else tuple(float(each) for each in values)


def _interpolation(settings: Mapping[str, Any]) -> Interpolation:
    number = settings.get("resample")
    return _INTERPOLATIONS[2 if number is None else int(number)]
