"""The tool that measures methods against the noise of int8, and what exports gain by those that they use."""

from __future__ import annotations

import re
import sys

import pytest

from tests.tools import int8_methods


def test_the_methods_of_an_export_gain_on_images_that_it_was_not_calibrated_on(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The trained ShiftViT: corrected biases, and smoothed channels beside them."""
    options = ["--range", "full", "--methods", "extremes", "as exported"]
    monkeypatch.setattr(sys, "argv", ["int8_methods", "shiftvit_cifar10", *options])
    int8_methods.main()
    rows = re.findall(r"^shiftvit_cifar10 +(\S.*?) +([\d.]+) +([\d.]+)$", capsys.readouterr().out, re.MULTILINE)
    (extremes, plain, corrected), (exported, *_, smoothed) = rows
    assert (extremes, exported) == ("extremes", "as exported")
    assert 20 < float(plain) < float(corrected) <= float(smoothed)
