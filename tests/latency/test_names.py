"""Engines that are shown together have short names."""

from __future__ import annotations

import pytest

from edgevit.latency.names import short_names


@pytest.mark.parametrize(
    ("names", "short"),
    [
        (["vit-fp32-ort", "vit-fp32-openvino"], ["ort", "openvino"]),
        (["vit-fp32-ort", "vit-int8-ort"], ["fp32-ort", "int8-ort"]),
        (["vit-fp32-trt", "vit-fp32-trt-rtx"], ["trt", "trt-rtx"]),
        (["vit-fp32-ort", "torch"], ["ort", "torch"]),
        (["vit-fp32-ort"], ["ort"]),
        (["vit-fp32-ort", "ort"], ["vit-fp32-ort", "ort"]),
    ],
)
def test_names_lose_the_parts_that_all_of_them_share(names: list[str], short: list[str]) -> None:
    assert short_names(names) == short
