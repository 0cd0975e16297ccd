"""Differences of arrays: infinity and NaN at the same places are equal."""

from __future__ import annotations

import numpy as np
import pytest

from edgevit.arrays import differences, finite_or_none, finite_std, noise_to_signal, snr_db

INF, NAN = np.inf, np.nan


def test_equal_infinities_and_nans_do_not_differ_and_others_differ_by_infinity() -> None:
    expected = np.array([1, INF, -INF, NAN, INF, INF, NAN, 1], np.float32)
    values = np.array([1.5, INF, -INF, NAN, -INF, 1, 1, NAN], np.float32)
    assert differences(values, expected).tolist() == [0.5, 0, 0, 0, INF, INF, INF, INF]


@pytest.mark.parametrize("damage", [NAN, INF, -INF])
def test_the_noise_is_over_all_pairs_and_infinite_if_a_value_is_not_finite(damage: float) -> None:
    expected = [np.array([3, -INF], np.float32), np.array([4, NAN], np.float32)]
    assert noise_to_signal(expected, expected) == 0
    assert noise_to_signal([expected[0], np.array([3.5, NAN])], expected) == 0.25 / 25
    assert noise_to_signal([expected[0], np.array([damage, NAN])], expected) == INF


def test_noise_without_a_signal_is_infinite() -> None:
    zero = np.zeros(2, np.float32)
    assert noise_to_signal([zero], [zero]) == 0
    assert noise_to_signal([zero + 1], [zero]) == INF


@pytest.mark.parametrize(("ratio", "decibels"), [(0, INF), (0.01, 20), (100, -20), (INF, -INF), (NAN, -INF)])
def test_the_signal_to_noise_ratio_in_decibels(ratio: float, decibels: float) -> None:
    assert snr_db(ratio) == pytest.approx(decibels)


def test_numbers_that_json_lacks_are_none() -> None:
    assert [finite_or_none(value) for value in (1.5, INF, -INF, NAN, None)] == [1.5, None, None, None, None]


def test_the_standard_deviation_is_of_finite_values() -> None:
    assert finite_std(np.array([1, -INF, NAN, 3], np.float32)) == 1
    assert finite_std(np.array([-INF, NAN], np.float32)) == 0


def test_equal_values_have_their_magnitude_instead() -> None:
    assert finite_std(np.array([-3, -INF, -3], np.float32)) == 3
    assert finite_std(np.zeros(2, np.float32)) == 0
