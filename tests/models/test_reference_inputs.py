"""Inputs that a model is compared on."""

from __future__ import annotations

import logging

import numpy as np
import pytest

from edgevit.models.reference_inputs import noise_inputs, warn_of_single_values


def test_zeros_that_are_no_indices_become_noise() -> None:
    zeros = [np.zeros((1, 3, 4, 6), dtype) for dtype in (np.uint8, np.bool_, np.int64, np.float32)]
    image, mask, indices, values = noise_inputs(zeros)
    assert [array.shape for array in (image, mask, indices, values)] == [(2, 3, 4, 6)] * 4
    assert image.dtype == np.uint8 and mask.dtype == np.bool_
    assert image.min() < 10 and image.max() > 245 and (image[0] != image[1]).any()
    assert mask.any(axis=-1).all() and not mask.all(axis=-1).any()  # no row of a mask hides everything
    assert not indices.any()
    assert values.std() > 0.5


def test_a_mask_of_one_value_has_both_in_turn() -> None:
    (mask,) = noise_inputs([np.zeros((1, 1), np.bool_)])
    assert mask.tolist() == [[False], [True]]


@pytest.mark.parametrize("example", [np.full((1, 4), 7, np.uint8), np.array([[True, False]]), np.array([[3, 5]])])
def test_an_example_with_values_of_its_own_is_repeated(example: np.ndarray) -> None:
    (array,) = noise_inputs([example])
    assert array.tolist() == [*example.tolist()] * 2


def test_a_constant_integer_input_is_named(caplog: pytest.LogCaptureFixture) -> None:
    arrays = [np.zeros((2, 4), np.int64), np.array([[3, 5]]), np.zeros((2, 4), np.float32)]
    with caplog.at_level(logging.WARNING):
        warn_of_single_values(["ids", "other", "x"], arrays)
    assert caplog.messages == ["edgevit: the integer input ids was compared with one value only (0)"]
