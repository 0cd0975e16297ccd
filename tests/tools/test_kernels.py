"""Every registered model is taken by NVIDIA's compiler and costs no more kernels than the table says (kernels.py)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from edgevit.runtimes.registry import get_runtime
from edgevit.types import Precision
from tests.tools import kernels
from tests.tools.kernels import Row

ROWS = kernels.load()
EVERYDAY = {"shiftvit_cifar10", "deit_t", "shuffle_deit_t"}  # the quickest, half a minute in all
MB_CHANGE = 0.01
KEYS = [
    pytest.param(name, precision, marks=() if name in EVERYDAY else pytest.mark.large)
    for name, precision in kernels.all_keys()
]


def complaint(found: Row, known: Row) -> str:
    """What is to be done where a model no longer compiles to what the table says; "" where it does."""
    anew = f"python -m tests.tools.kernels {known.model}"
    who = f"{known.model} in {known.precision}"
    if found.kernels > known.kernels:
        return (
            f"{who} costs {found.kernels} kernels, and {known.kernels} by the table: find what has come apart in the "
            f"export (edgevit plan BUNDLE); only where that is meant: {anew}"
        )
    if found.kernels < known.kernels:
        return f"{who} costs {found.kernels} kernels, {known.kernels} by the table; keep the table true: {anew}"
    if abs(found.moved_mb - known.moved_mb) > MB_CHANGE * known.moved_mb:
        return f"{who} moves {found.moved_mb} MB, and {known.moved_mb} by the table; where that is meant: {anew}"
    if replace(found, moved_mb=known.moved_mb) != known:
        return f"{who} is {found}, and {known} by the table; where that is meant: {anew}"
    return ""


@pytest.mark.parametrize(("name", "precision"), KEYS)
def test_the_compiler_takes_it_and_makes_no_more_kernels(name: str, precision: Precision) -> None:
    version, known = get_runtime("trt-rtx").version(), ROWS.get((name, precision))
    assert known is not None, f"the table lacks it: python -m tests.tools.kernels {name}"
    if version is None:
        pytest.skip("TensorRT-RTX is not installed here (228 MB, Linux x86): pip install 'edgevit[trt-rtx]'")
    if version != known.tensorrt_rtx:
        pytest.skip(
            f"tests/kernels.tsv was measured by TensorRT-RTX {known.tensorrt_rtx}, and {version} is installed, which "
            f"may fuse otherwise: pip install tensorrt-rtx-cu13=={known.tensorrt_rtx}, or python -m tests.tools.kernels"
        )
    assert not (words := complaint(kernels.measure(name, precision), known)), words


def test_every_model_has_its_rows_and_no_other() -> None:
    lacking = [f"{name} {precision}" for name, precision in kernels.all_keys() if (name, precision) not in ROWS]
    assert lacking == [], "measure what is lacking: python -m tests.tools.kernels --missing"
    assert list(ROWS) == kernels.all_keys()


def test_one_compiler_measured_all_of_the_table() -> None:
    assert len({(row.tensorrt_rtx, row.compute_capability) for row in ROWS.values()}) == 1


def test_the_table_and_the_page_are_as_their_command_writes_them() -> None:
    anew = "write it anew: python -m tests.tools.kernels --missing"
    assert kernels.written(ROWS) == kernels.TABLE.read_text("utf-8"), anew
    assert kernels.page(ROWS) == kernels.PAGE.read_text("utf-8"), anew


def test_the_page_says_on_its_face_what_it_is() -> None:
    face = " ".join(kernels.PAGE.read_text("utf-8").partition("## ")[0].split())
    for words in ("This is a proxy.", "TensorRT-RTX 1.", "python -m tests.tools.kernels", "no GPU", "no latency"):
        assert words in face


KNOWN = Row(
    model="deit_t",
    precision="fp16",
    compute_capability=86,
    tensorrt_rtx="1.7.1.116",
    kernels=125,
    moved_mb=30.69,
    fused_attentions=12,
    unfused_softmaxes=0,
    copies=1,
)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({}, ""),
        ({"moved_mb": 30.8}, ""),
        ({"kernels": 126}, "costs 126 kernels, and 125 by the table: find what has come apart"),
        ({"kernels": 124}, "keep the table true: python -m tests.tools.kernels deit_t"),
        ({"moved_mb": 31.1}, "moves 31.1 MB"),
        ({"moved_mb": 30.2}, "moves 30.2 MB"),
        ({"fused_attentions": 11, "unfused_softmaxes": 1}, "unfused_softmaxes=1"),
        ({"copies": 2}, "copies=2"),
    ],
)
def test_a_difference_is_told_with_what_to_do(changes: dict[str, Any], words: str) -> None:
    found = complaint(replace(KNOWN, **changes), KNOWN)
    assert words in found
    assert bool(found) == bool(words)
