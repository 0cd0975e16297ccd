"""Every registered model compiles with TensorRT-RTX into no more kernels than tests/tools/kernels.tsv says."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
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

QUICK = {"shiftvit_cifar10", "mobileformer_26m", "vt_resnet18"}  # to export
NAMES = [
    pytest.param(name, marks=() if name in QUICK else pytest.mark.large)
    for name in dict.fromkeys(name for name, _ in kernels.all_keys())
]


def difference(found: Row, known: Row) -> str:
    """Return how a measured row differs from the table and what to do, or an empty string."""
    update = f"python -m tests.tools.kernels {known.model}"
    name = f"{known.model} in {known.precision}"
    if found.kernels > known.kernels:
        return (
            f"{name} has {found.kernels} kernels, {known.kernels} in the table: find what is no longer fused "
            f"(edgevit plan BUNDLE); if this is intended: {update}"
        )
    if found.kernels < known.kernels:
        return f"{name} has {found.kernels} kernels, {known.kernels} in the table; update the table: {update}"
    if abs(found.moved_mb - known.moved_mb) > MB_CHANGE * known.moved_mb:
        return f"{name} moves {found.moved_mb} MB, {known.moved_mb} in the table; if this is intended: {update}"
    if replace(found, moved_mb=known.moved_mb) != known:
        return f"{name} is {found}, {known} in the table; if this is intended: {update}"
    return ""


@pytest.mark.parametrize(("name", "precision"), KEYS)
def test_a_model_has_no_more_kernels_than_the_table_says(name: str, precision: Precision) -> None:
    version, known = get_runtime("trt-rtx").version(), ROWS.get((name, precision))
    if known is None:
        pytest.skip(f"not measured yet: python -m tests.tools.kernels {name}")
    if version is None:
        pytest.skip(kernels.NOT_INSTALLED)
    if version != known.tensorrt_rtx:
        pytest.skip(
            f"measured with TensorRT-RTX {known.tensorrt_rtx}, but {version} is installed, which may fuse differently: "
            f"pip install tensorrt-rtx-cu13=={known.tensorrt_rtx}, or python -m tests.tools.kernels --all"
        )
    assert not (text := difference(kernels.measure(name, precision), known)), text


@pytest.mark.parametrize("name", NAMES)
def test_a_row_is_of_the_graph_that_is_exported_today(name: str) -> None:
    """The compiler is rarely installed, so that rows went out of date unseen; this needs none."""
    rows = [row for row in ROWS.values() if row.model == name]
    if not rows:
        pytest.skip(f"not measured yet: python -m tests.tools.kernels {name}")
    assert {row.nodes for row in rows} == {kernels.count_nodes(name)}, (
        f"{name} is exported as another graph than its rows were measured with: python -m tests.tools.kernels {name}"
    )


def test_the_table_has_rows_of_registered_models_only() -> None:
    assert list(ROWS) == [key for key in kernels.all_keys() if key in ROWS]


def test_every_model_has_its_rows() -> None:
    missing = [f"{name} {precision}" for name, precision in kernels.all_keys() if (name, precision) not in ROWS]
    if missing:  # measuring needs the compiler, which a contributor of a model may not have
        pytest.skip(f"no rows for {', '.join(missing)}: python -m tests.tools.kernels --missing")


def test_one_compiler_measured_all_of_the_table() -> None:
    assert len({(row.tensorrt_rtx, row.compute_capability) for row in ROWS.values()}) == 1


def test_the_table_and_the_page_are_up_to_date() -> None:
    assert kernels.format_table(ROWS) == kernels.TABLE.read_text("utf-8"), "run make docs"
    assert kernels.page(ROWS) == kernels.PAGE.read_text("utf-8"), "run make docs"


def test_the_page_is_written_without_the_compiler(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def no_compiler(_fmt: str) -> None:
        raise AssertionError("only measuring needs TensorRT-RTX")

    monkeypatch.setattr(kernels, "get_runtime", no_compiler)
    monkeypatch.setattr(kernels, "PAGE", tmp_path / "kernels.md")
    assert kernels.main([]) == 0
    assert (tmp_path / "kernels.md").read_text("utf-8") == kernels.page(ROWS)


def test_the_page_starts_with_what_it_is() -> None:
    introduction = " ".join(kernels.PAGE.read_text("utf-8").partition("## ")[0].split())
    for words in ("This is a proxy.", "TensorRT-RTX 1.", "python -m tests.tools.kernels", "no GPU", "no latency"):
        assert words in introduction


KNOWN = Row(
    model="deit_t",
    precision="fp16",
    compute_capability=86,
    tensorrt_rtx="1.7.1.116",
    nodes=300,
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
        ({"kernels": 126}, "has 126 kernels, 125 in the table: find what is no longer fused"),
        ({"kernels": 124}, "update the table: python -m tests.tools.kernels deit_t"),
        ({"moved_mb": 31.1}, "moves 31.1 MB"),
        ({"moved_mb": 30.2}, "moves 30.2 MB"),
        ({"fused_attentions": 11, "unfused_softmaxes": 1}, "unfused_softmaxes=1"),
        ({"copies": 2}, "copies=2"),
    ],
)
def test_a_difference_is_reported_with_what_to_do(changes: dict[str, Any], words: str) -> None:
    text = difference(replace(KNOWN, **changes), KNOWN)
    assert words in text
    assert bool(text) == bool(words)
