"""Pictures of answers: colors that differ, text that can be read, on photos of any size."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from PIL import Image

from edgevit.dense.draw import class_color, class_name, draw_boxes, draw_mask, ink_on
from edgevit.dense.nms import Detections

SIZES = [(1, 1), (1, 700), (700, 1), (60, 30), (1000, 700)]  # width, height


def test_the_colors_of_the_first_classes_differ() -> None:
    colors = [np.array(class_color(index)) for index in range(20)]
    assert min(np.abs(one - other).max() for one, other in combinations(colors, 2)) >= 25


@pytest.mark.parametrize("size", SIZES)
def test_boxes_and_their_labels_stay_inside(size: tuple[int, int]) -> None:
    """The photo's aspect ratio stays; a box of no area and one beyond the photo are drawn too."""
    boxes = np.array([[0, 0, *size], [size[0], size[1], size[0], size[1]], [-9, -9, 2 * size[0], 2 * size[1]]], float)
    found = Detections(boxes=boxes, scores=np.array([0.9, 0.8, 0.7]), labels=np.array([0, 1, 300]))
    picture = draw_boxes(Image.new("RGB", size), found, ["a" * 100, "\n\t"])
    assert picture.width * size[1] == picture.height * size[0]
    assert max(picture.size) >= 480


@pytest.mark.parametrize("size", SIZES)
def test_the_photo_is_at_the_top_left_of_its_mask_and_the_legend_at_the_right(size: tuple[int, int]) -> None:
    classes = np.zeros(size[::-1], np.uint8)
    classes[:, size[0] // 2 :] = 7
    picture = np.asarray(draw_mask(Image.new("RGB", size), classes, ["sky"]))
    factor = max(1, -(-480 // max(size)))
    right = picture[0, factor * size[0] - 1]
    assert np.abs(right - 0.6 * np.array(class_color(7))).max() <= 1
    legend = picture[:, factor * size[0] :].reshape(-1, 3)
    assert (legend == class_color(7)).all(1).any()


def test_a_box_is_drawn_in_its_color_on_its_edge() -> None:
    found = Detections(boxes=np.array([[100.0, 200.0, 300.0, 400.0]]), scores=np.array([0.9]), labels=np.array([2]))
    picture = np.asarray(draw_boxes(Image.new("RGB", (600, 600), (255, 255, 255)), found))
    colored = np.argwhere((picture == class_color(2)).all(2) & (np.arange(600) >= 205)[:, None])
    assert (np.abs(colored.max(0) - [399, 299]) <= 2).all()
    assert (picture[250, 150] == 255).all()


def test_text_and_its_background_contrast() -> None:
    """Black on light colors and white on dark ones: a ratio of at least 3, as the WCAG ask of large text."""
    for index in range(100):
        light, ink = luminance(class_color(index)), luminance(ink_on(class_color(index)))
        assert (max(light, ink) + 0.05) / (min(light, ink) + 0.05) >= 3


def luminance(color: tuple[int, int, int]) -> float:
    linear = [value / 255 / 12.92 if value <= 10 else ((value / 255 + 0.055) / 1.055) ** 2.4 for value in color]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_names_of_classes() -> None:
    assert [class_name(index, ["sky"]) for index in (0, 1)] == ["sky", "class 1"]
    assert class_name(3, None) == "class 3"
