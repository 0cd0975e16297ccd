"""Parity of segmentation: the class of each pixel, judged where PyTorch's best class leads."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict

import numpy as np
import pytest

from edgevit.cli.tables import parity_table
from edgevit.errors import ParityError
from edgevit.runtimes.parity import ParityReport, ParitySummary, compare
from edgevit.types import Array, Precision, Reference
from tests.helpers.graphs import noise

LOGITS = noise(2, 5, 16, 24)


def parity(
    name: str, expected: Array, actual: Array, precision: Precision = "fp32", kind: str = "photos"
) -> ParityReport:
    inputs = {"x": np.arange(len(expected), dtype=np.float32)[:, None]}

    def run(feeds: Mapping[str, Array]) -> dict[str, Array]:
        return {name: actual[feeds["x"][:, 0].astype(int)]}

    return compare("engine", run, [Reference(kind=kind, inputs=inputs, outputs={name: expected})], precision=precision)


def swapped(share: float) -> Array:
    """The logits with the best class and the worst exchanged in a share of the pixels."""
    flat = np.moveaxis(LOGITS.copy(), 1, 3).reshape(-1, 5)
    for row in flat[: int(share * len(flat))]:
        best, worst = row.argmax(), row.argmin()
        row[[best, worst]] = row[[worst, best]]
    return np.ascontiguousarray(np.moveaxis(flat.reshape(2, 16, 24, 5), 3, 1))


def test_equal_logits_agree_in_every_pixel() -> None:
    report = parity("logits", LOGITS, LOGITS)
    report.require()
    (result,) = report.results
    assert result.pixels is not None
    assert (result.pixels.all, result.pixels.decided) == (1, 1)
    assert report.to_json()["results"][0]["pixels"] == {"all": 1, "decided": 1}
    assert report.summary is not None and report.summary.pixel_agreement == 1
    assert "100.00% of pixels" in [
        str(cell) for column in parity_table(report.results).columns for cell in column.cells
    ]


def test_pixels_of_another_class_fail_in_fp16() -> None:
    with pytest.raises(ParityError, match=r"pixel agreement 9\d\.\d\d%, at least 99.50%"):
        parity("logits", LOGITS, swapped(0.02), "fp16").require()


def test_the_summary_has_the_worst_pixel_agreement_and_no_top1() -> None:
    report = parity("logits", LOGITS, LOGITS) + parity("logits", LOGITS, swapped(0.5))
    assert report.summary is not None
    assert (report.summary.pixel_agreement, report.summary.agreement) == (0.5, None)
    assert ParitySummary.from_json(asdict(report.summary)) == report.summary


def test_pixels_whose_best_classes_are_close_are_reported_and_not_judged() -> None:
    expected = LOGITS.copy()
    expected[:, 0], expected[:, 1] = 4.0, 4.0 - 1e-5
    actual = expected.copy()
    actual[:, 1] += 2e-5
    (result,) = parity("logits", expected, actual).results
    assert result.pixels is not None
    assert result.pixels.all == 0
    assert result.pixels.decided is None
    assert result.passed


@pytest.mark.parametrize(("wrong", "precision"), [(0.002, "fp32"), (0.006, "fp16"), (0.11, "int8")])
def test_a_map_of_classes_is_judged_by_its_pixels_alone(wrong: float, precision: Precision) -> None:
    """Class 149 in place of 0 is one wrong pixel, not an error of 149."""
    expected = np.zeros((1, 50, 100), np.uint8)
    expected[:, 25:] = 7
    for share, passes in ((wrong, False), (wrong * 0.4, True)):
        actual = expected.copy()
        actual.reshape(-1)[: int(share * actual.size)] = 149
        stored = expected.astype(np.float32)  # as an export and reference.npz have it
        assert parity("classes", stored, actual, precision).passed == passes


def test_feature_maps_and_noise_are_not_judged_by_pixels() -> None:
    assert parity("c2", LOGITS, LOGITS).results[0].pixels is None
    flipped = parity("logits", LOGITS, swapped(0.02), "int8", kind="noise").results[0]
    assert not any("pixel" in failure for failure in flipped.failures)
