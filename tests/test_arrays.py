"""Differences of arrays: infinity and NaN at the same places are equal."""

from __future__ import annotations

import numpy as np

from edgevit.arrays import differences, finite_std

INF, NAN = np.inf, np.nan


def test_equal_infinities_and_nans_do_not_differ_and_others_differ_by_infinity() -> None:
    expected = np.array([1, INF, -INF, NAN, INF, INF, NAN, 1], np.float32)
    values = np.array([1.5, INF, -INF, NAN, -INF, 1, 1, NAN], np.float32)
    assert differences(values, expected).tolist() == [0.5, 0, 0, 0, INF, INF, INF, INF]


def test_the_standard_deviation_is_of_finite_values() -> None:
    assert finite_std(np.array([1, -INF, NAN, 3], np.float32)) == 1
    assert finite_std(np.array([-INF, NAN], np.float32)) == 0


def test_equal_values_have_their_magnitude_instead() -> None:
    assert finite_std(np.array([-3, -INF, -3], np.float32)) == 3
    assert finite_std(np.zeros(2, np.float32)) == 0
