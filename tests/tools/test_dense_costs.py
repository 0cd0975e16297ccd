"""The costs in docs/dense.md are those of the backbones."""

from __future__ import annotations

import pytest

from tests.tools import dense_costs

ROWS = dense_costs.read(dense_costs.PAGE.read_text("utf-8"))


def test_the_page_has_every_backbone_in_order() -> None:
    assert list(ROWS) == dense_costs.names(), "run python -m tests.tools.dense_costs"


@pytest.mark.parametrize(("name", "side"), [("r50", 512), pytest.param("vitaev2_s", 800, marks=pytest.mark.large)])
def test_a_cell_is_what_the_counter_counts(name: str, side: int) -> None:
    cells = [cell.strip() for cell in ROWS[name].split("|")[2:-1]]
    assert cells[dense_costs.SIDES.index(side)] == dense_costs.cell(dense_costs.cost(name, side))


def test_rows_are_replaced_and_the_rest_of_the_page_is_kept() -> None:
    page = "before\n<!-- costs -->\n| `r50` | old |\n| `gone` | x |\n<!-- /costs -->\nafter\n"
    written = dense_costs.updated(page, {**dense_costs.read(page), "r50": "| `r50` | new |"})
    assert dense_costs.read(written) == {"r50": "| `r50` | new |"}
    assert written.startswith("before\n") and written.endswith("after\n")
