"""Draw boxes and masks on photos: colors that differ, and text that is legible on any photo of any size."""

from __future__ import annotations

import colorsys
import math
from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from edgevit.dense.nms import Detections
from edgevit.types import Array

Color: TypeAlias = tuple[int, int, int]
Box: TypeAlias = tuple[float, float, float, float]

MAX_NAME = 40  # characters of a class name that are drawn
_GOLDEN_RATIO = 0.618033988749895  # steps of the hue by it never come close to an earlier one
_SHADES = ((0.85, 0.95), (0.55, 1.0), (0.9, 0.65))  # saturation and value
_MIN_SIDE = 480  # pixels of the longer side; smaller photos are enlarged, so that text fits
_LEGEND_ROWS = 30
_DARK = 128  # luma below which text is white
_OPACITY = 0.6  # of a mask over its photo
_BLACK, _WHITE, _PAPER = (0, 0, 0), (255, 255, 255), (250, 250, 250)


def class_color(index: int) -> Color:
    """Return the color of a class, the same in every picture."""
    saturation, value = _SHADES[index % len(_SHADES)]
    red, green, blue = colorsys.hsv_to_rgb(index * _GOLDEN_RATIO % 1.0, saturation, value)
    return round(255 * red), round(255 * green), round(255 * blue)


def ink_on(color: Color) -> Color:
    """Return black or white, whichever is easier to read on the color (Rec. 601 luma)."""
    red, green, blue = color
    return _BLACK if 0.299 * red + 0.587 * green + 0.114 * blue > _DARK else _WHITE


def class_name(index: int, names: Sequence[str] | None) -> str:
    """Return the name of a class, or its number if it has none."""
    return names[index] if names and index < len(names) else f"class {index}"


def draw_boxes(photo: Image.Image, found: Detections, names: Sequence[str] | None = None) -> Image.Image:
    """Return the photo with boxes in the photo's pixels, each labeled with its class and score; best boxes on top."""
    factor = _enlargement(photo)
    picture = photo.convert("RGB").resize((photo.width * factor, photo.height * factor), Image.Resampling.NEAREST)
    pen = ImageDraw.Draw(picture)
    font, width = _font(picture), _line_width(picture)
    boxes = [_corners(box * factor, picture) for box in found.boxes]
    order = range(len(found) - 1, -1, -1)
    for index in order:
        pen.rectangle(boxes[index], outline=_BLACK, width=width + 2 * max(1, width // 3))
        pen.rectangle(
            _inset(boxes[index], max(1, width // 3)), outline=class_color(int(found.labels[index])), width=width
        )
    labels: list[tuple[Box, str, Color]] = []
    for index in reversed(order):  # the best gets its place first
        label = int(found.labels[index])
        text = f"{_short(class_name(label, names))} {found.scores[index]:.2f}"
        place = _label_place(boxes[index], _text_size(pen, text, font), [each for each, _, _ in labels], picture)
        labels.append((place, text, class_color(label)))
    for place, text, color in reversed(labels):
        _draw_label(pen, place, text, color, font)
    return picture


def draw_mask(photo: Image.Image, classes: Array, names: Sequence[str] | None = None) -> Image.Image:
    """Return the photo under the colors of its classes, (H, W), and right of it a legend with their shares."""
    factor = _enlargement(photo)
    found, counts = np.unique(classes, return_counts=True)
    colors = np.zeros((int(found.max()) + 1, 3), np.uint8)
    for index in found:
        colors[index] = class_color(int(index))
    picture = Image.blend(photo.convert("RGB"), Image.fromarray(colors[classes]), _OPACITY)
    picture = picture.resize((picture.width * factor, picture.height * factor), Image.Resampling.NEAREST)
    order = np.argsort(-counts, kind="stable")
    rows = [
        (class_color(index), f"{_share(count, classes)}  {_short(class_name(index, names))}")
        for index, count in zip(found[order].tolist(), counts[order].tolist(), strict=True)
    ][:_LEGEND_ROWS]
    if len(order) > _LEGEND_ROWS:
        rows.append((_PAPER, f"and {len(order) - _LEGEND_ROWS} more"))
    return _with_legend(picture, rows)


def _share(count: int, classes: Array) -> str:
    percent = 100 * count / classes.size
    return f"{percent:.0f} %" if percent >= 1 else "< 1 %"


def _with_legend(picture: Image.Image, rows: Sequence[tuple[Color, str]]) -> Image.Image:
    """Return the picture with a legend at its right, no higher than the picture if the text stays legible."""
    pen = ImageDraw.Draw(picture)
    font = _font(picture, rows=len(rows))
    sizes = [_text_size(pen, text, font) for _, text in rows]
    line = round(1.5 * max(height for _, height in sizes))
    width = max(width for width, _ in sizes) + 3 * line
    canvas = Image.new("RGB", (picture.width + width, max(picture.height, line * (len(rows) + 1))), _PAPER)
    canvas.paste(picture)
    pen = ImageDraw.Draw(canvas)
    for row, (color, text) in enumerate(rows):
        left, top = picture.width + line // 2, line // 2 + row * line
        outline = _PAPER if color == _PAPER else _BLACK
        pen.rectangle((left, top, left + line, top + round(0.8 * line)), fill=color, outline=outline)
        pen.text((left + 1.5 * line, top + 0.4 * line), text, fill=_BLACK, font=font, anchor="lm")
    return canvas


def _enlargement(photo: Image.Image) -> int:
    return max(1, math.ceil(_MIN_SIDE / max(photo.size)))


def _line_width(picture: Image.Image) -> int:
    return max(2, round(math.sqrt(picture.width * picture.height) / 250))


def _font(picture: Image.Image, *, rows: int = 1) -> Any:
    """Return the font that comes with Pillow, in a size for the picture and so that `rows` lines fit into it."""
    size = max(14, math.sqrt(picture.width * picture.height) / 35)
    return ImageFont.load_default(max(11, min(size, picture.height / (1.9 * (rows + 1)) if rows > 1 else size)))


def _text_size(pen: ImageDraw.ImageDraw, text: str, font: Any) -> tuple[int, int]:
    """Return the width of a text, and the height of a line whatever its letters."""
    left, _, right, _ = pen.textbbox((0, 0), text, font=font)
    _, top, _, bottom = pen.textbbox((0, 0), "Ag", font=font)
    return int(right - left), int(bottom - top)


def _short(name: str) -> str:
    shown = "".join(each if each.isprintable() else " " for each in name)
    return shown if len(shown) <= MAX_NAME else f"{shown[: MAX_NAME - 1]}…"


def _corners(box: Array, picture: Image.Image) -> Box:
    """Return a box with its last pixels, as Pillow draws it, inside of the picture and at least one pixel large."""
    x1, y1, x2, y2 = (float(value) for value in np.round(box))
    x1, y1 = min(x1, picture.width - 1), min(y1, picture.height - 1)
    return x1, y1, min(max(x1, x2 - 1), picture.width - 1), min(max(y1, y2 - 1), picture.height - 1)


def _inset(box: Box, by: int) -> Box:
    x1, y1, x2, y2 = box
    by_x, by_y = min(by, (x2 - x1) // 2), min(by, (y2 - y1) // 2)
    return x1 + by_x, y1 + by_y, x2 - by_x, y2 - by_y


def _label_place(box: Box, text_size: tuple[int, int], taken: Sequence[Box], picture: Image.Image) -> Box:
    """Return where a label lies: above its box, inside at the top, below it, or inside at the bottom.

    It is the first of these places that overlaps no other label, or else the first.
    """
    margin = text_size[1] // 4
    width, height = text_size[0] + 2 * margin, text_size[1] + 2 * margin
    left = max(0.0, min(box[0], picture.width - width))
    tops = (box[1] - height, box[1], box[3] + 1, box[3] - height)
    places = [(left, top, left + width, top + height) for top in tops if 0 <= top <= picture.height - height]
    free = (place for place in places if not any(_overlap(place, other) for other in taken))
    top = max(0.0, min(box[1], picture.height - height))
    return next(free, places[0] if places else (left, top, left + width, top + height))


def _overlap(one: Box, other: Box) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


def _draw_label(pen: ImageDraw.ImageDraw, place: Box, text: str, color: Color, font: Any) -> None:
    pen.rectangle(place, fill=color)
    pen.text(((place[0] + place[2]) / 2, (place[1] + place[3]) / 2), text, fill=ink_on(color), font=font, anchor="mm")
