"""Labeled pictures of geometric shapes on textures, for the trained detector and segmenter of edgevit.

The same numbers give the same pictures. Each shape has a hue of its own, as fruit and traffic signs have, so that
minutes of training are enough; its outline has to be found on a texture.
"""

from __future__ import annotations

import colorsys
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from edgevit.types import Array

SHAPES = ("circle", "square", "triangle", "star", "cross")
_HUES = (0.0, 0.16, 0.36, 0.6, 0.84)  # of SHAPES, from 0 to 1
_SUBPIXELS = 4  # per side
_SATURATION = 0.3  # of the background
_MAX_OVERLAP = 0.1  # of a shape's box
_CORNERS = {"square": 4, "triangle": 3}


@dataclass(frozen=True, slots=True)
class Scene:
    """A picture with its labels."""

    image: Array  # (H, W, 3) uint8
    mask: Array  # (H, W) uint8: 0 for the background, 1 + the index in SHAPES
    boxes: Array  # (n, 4) float32: x1, y1, x2, y2 in pixels
    labels: Array  # (n,) int64: the index in SHAPES


def scene(seed: Sequence[int], size: tuple[int, int]) -> Scene:
    """Return the picture with this seed, of (height, width) pixels, with one to three shapes."""
    random = np.random.default_rng(seed)
    image = _background(random, size)
    mask = np.zeros(size, np.uint8)
    boxes: list[tuple[int, int, int, int]] = []
    labels: list[int] = []
    for _ in range(random.integers(1, 4)):
        label = int(random.integers(len(SHAPES)))
        coverage = _coverage(random, SHAPES[label], max(size))
        height, width = coverage.shape
        if height > size[0] or width > size[1]:
            continue
        top, left = int(random.integers(size[0] - height + 1)), int(random.integers(size[1] - width + 1))
        box = (left, top, left + width, top + height)
        if any(_overlap(box, other) > _MAX_OVERLAP for other in boxes):
            continue
        _paint(random, image[top : top + height, left : left + width], coverage, _HUES[label])
        mask[top : top + height, left : left + width][coverage >= 0.5] = 1 + label
        boxes.append(box)
        labels.append(label)
    noisy = image + random.normal(0, random.uniform(0, 8), image.shape)
    return Scene(
        image=np.clip(noisy, 0, 255).astype(np.uint8),
        mask=mask,
        boxes=np.asarray(boxes, np.float32).reshape(-1, 4),
        labels=np.asarray(labels, np.int64),
    )


def write_shapes(folder: Path, count: int, *, seed: int = 1) -> Path:
    """Write pictures of several sizes with COCO's boxes and with masks, for `edgevit eval --data`; return `folder`.

    `images`, `masks` and `annotations.json`: the same folder serves detectors and segmenters.
    """
    (folder / "images").mkdir(parents=True)
    (folder / "masks").mkdir()
    images, annotations = [], []
    for index in range(count):
        size = _photo_size(np.random.default_rng((seed, index, 1)))
        found = scene((seed, index), size)
        name = f"{index:06}.png"
        Image.fromarray(found.image).save(folder / "images" / name)
        Image.fromarray(found.mask).save(folder / "masks" / name)
        images.append({"id": index, "file_name": name, "height": size[0], "width": size[1]})
        for (left, top, right, bottom), label in zip(found.boxes.tolist(), found.labels.tolist(), strict=True):
            box = [left, top, right - left, bottom - top]
            annotations.append({"image_id": index, "category_id": label + 1, "bbox": box, "iscrowd": 0})
    categories = [{"id": place, "name": name} for place, name in enumerate(SHAPES, 1)]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (folder / "annotations.json").write_text(json.dumps(content), "utf-8")
    return folder


def _photo_size(random: np.random.Generator) -> tuple[int, int]:
    """Return (height, width): the longer side is 64 to 256 pixels, either way up."""
    longer = int(random.integers(64, 257))
    shorter = int(longer * random.uniform(0.6, 1))
    return (longer, shorter) if random.random() < 0.5 else (shorter, longer)


def _background(random: np.random.Generator, size: tuple[int, int]) -> Array:
    """Return a texture (H, W, 3) float32: smooth, pale colors, stripes, and a few thin lines."""
    height, width = size
    cells = random.integers(2, 9, 2)
    coarse = Image.fromarray(random.integers(0, 256, (*cells, 3), dtype=np.uint8))
    smooth = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC), np.float32)
    y, x = np.mgrid[:height, :width].astype(np.float32) / max(size)
    angle, frequency = random.uniform(0, math.pi), random.uniform(5, 60)
    wave = np.sin(frequency * (x * math.cos(angle) + y * math.sin(angle)))[..., None]
    image = Image.fromarray(np.clip(smooth + wave * random.uniform(-30, 30, 3), 0, 255).astype(np.uint8))
    draw = ImageDraw.Draw(image)
    for _ in range(random.integers(0, 4)):
        ends = [float(value * side) for value, side in zip(random.random(4), (width, height) * 2, strict=True)]
        color = tuple(random.integers(0, 256, 3).tolist())
        draw.line(ends, fill=color, width=1 + max(size) // 128)
    texture = np.asarray(image, np.float32)
    gray = texture.mean(2, keepdims=True)
    return np.asarray(gray + _SATURATION * (texture - gray))


def _coverage(random: np.random.Generator, shape: str, side: int) -> Array:
    """Return the share of each pixel that the shape covers, cut to its bounding box: (h, w) float32."""
    radius = side * random.uniform(0.19, 0.32)
    extent = math.ceil(2 * radius) + 2
    canvas = Image.new("L", (extent * _SUBPIXELS,) * 2)
    outline = _outline(shape, random.uniform(0, 2 * math.pi))
    points = (extent / 2 + radius * outline) * _SUBPIXELS
    ImageDraw.Draw(canvas).polygon([(float(x), float(y)) for x, y in points], fill=255)
    covered = np.asarray(canvas.reduce(_SUBPIXELS), np.float32) / 255
    rows, columns = (np.flatnonzero((covered >= 0.5).any(axis)) for axis in (1, 0))
    return covered[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]


def _outline(shape: str, angle: float) -> Array:
    """Return the corners of a shape in a circle of radius 1, (n, 2)."""
    if shape == "cross":
        arm, end = 0.32, 0.95
        quarter = np.array([[arm, arm], [arm, end], [-arm, end]])
        turn = np.array([[0, 1], [-1, 0]])  # by 90 degrees
        corners = np.concatenate([quarter @ np.linalg.matrix_power(turn, count) for count in range(4)])
    else:
        count = {"circle": 48, "star": 10}.get(shape) or _CORNERS[shape]
        angles = np.arange(count) * 2 * math.pi / count
        radii = np.where(np.arange(count) % 2, 0.42, 1.0) if shape == "star" else np.ones(count)
        corners = radii[:, None] * np.stack([np.cos(angles), np.sin(angles)], 1)
    cosine, sine = math.cos(angle), math.sin(angle)
    return np.asarray(corners @ np.array([[cosine, sine], [-sine, cosine]]))


def _paint(random: np.random.Generator, patch: Array, coverage: Array, hue: float) -> None:
    """Blend a color of about this hue into the patch (h, w, 3), with a slight gradient."""
    near = (hue + random.uniform(-0.05, 0.05)) % 1
    color = 255 * np.array(colorsys.hsv_to_rgb(near, random.uniform(0.6, 1), random.uniform(0.5, 1)))
    shade = np.linspace(-1, 1, patch.shape[0])[:, None, None] * random.uniform(-25, 25)
    patch += coverage[..., None] * (color + shade - patch)


def _overlap(one: tuple[int, int, int, int], two: tuple[int, int, int, int]) -> float:
    """Return the intersection of two boxes over the area of the smaller."""
    width, height = (min(one[axis + 2], two[axis + 2]) - max(one[axis], two[axis]) for axis in (0, 1))
    areas = ((box[2] - box[0]) * (box[3] - box[1]) for box in (one, two))
    return max(0, width) * max(0, height) / min(areas)
