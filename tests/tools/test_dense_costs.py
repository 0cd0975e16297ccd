"""The costs in docs/dense.md are those of the backbones."""

from __future__ import annotations

import pytest
import torch

from edgevit.models.dense.systems import backbone_of
from edgevit.models.registry import get_spec
from tests.helpers.macs import count
from tests.tools import dense_costs

ROWS = dense_costs.read(dense_costs.PAGE.read_text("utf-8"))


def test_the_page_has_every_backbone_in_order() -> None:
    assert list(ROWS) == dense_costs.names(), "run python -m tests.tools.dense_costs"


@pytest.mark.parametrize(("name", "side"), [("r50", 512), pytest.param("vitaev2_s", 800, marks=pytest.mark.large)])
def test_a_cell_is_what_the_counter_counts(name: str, side: int) -> None:
    cells = [cell.strip() for cell in ROWS[name].split("|")[2:-1]]
    assert cells[dense_costs.SIDES.index(side)] == dense_costs.cell(dense_costs.cost(name, side))


# G multiply-adds of the authors' modules at 224, 512 and 800 pixels.
AUTHORS = {
    "vitaev2_s": (5.75, 34.47, 101.4),
    "shiftvit_t_light": (2.96, 15.48, 37.79),
    "shiftvit_t": (4.58, 23.93, 58.43),
    "shiftvit_s": (8.74, 45.68, 111.5),
    "shiftvit_b": (15.54, 81.17, 198.2),
    "mobileformer_26m": (0.03, 0.12, 0.29),
    "mobileformer_52m": (0.05, 0.25, 0.59),
    "mobileformer_96m": (0.10, 0.47, 1.15),
    "mobileformer_151m": (0.16, 0.76, 1.81),
    "mobileformer_214m": (0.23, 1.09, 2.61),
    "mobileformer_294m": (0.31, 1.51, 3.64),
    "mobileformer_508m": (0.53, 2.64, 6.39),
}


@pytest.mark.parametrize("name", AUTHORS)
def test_a_backbone_costs_what_the_authors_module_costs(name: str) -> None:
    cells = ROWS[name].split("|")[2:-1]
    found = [float(cells[dense_costs.SIDES.index(side)].split("/")[0]) for side in (224, 512, 800)]
    assert found == pytest.approx(AUTHORS[name], rel=1e-3, abs=1e-9)


@pytest.mark.parametrize(
    ("name", "options", "expected"),
    [
        ("shiftvit_t_light", None, 63.48),
        ("mobileformer_26m", None, 0.49),
        *(
            pytest.param(*case, marks=pytest.mark.large)
            for case in (
                ("mobileformer_26m", {"spatial_relu": False}, 0.38),
                ("mobileformer_508m", None, 10.71),
                ("mobileformer_508m", {"spatial_relu": False}, 9.69),
            )
        ),
    ],
)
def test_a_backbone_costs_the_same_for_images_that_are_not_square(
    name: str, options: dict[str, bool] | None, expected: float
) -> None:
    with torch.device("meta"):
        model, image = backbone_of(get_spec(name), (800, 1344), options).eval(), torch.empty(1, 3, 800, 1344)
        found = count(lambda: model.feature_maps(image))
    assert found.macs / 1e9 == pytest.approx(expected, abs=6e-3)


def test_rows_are_replaced_and_the_rest_of_the_page_is_kept() -> None:
    page = "before\n<!-- costs -->\n| `r50` | old |\n| `gone` | x |\n<!-- /costs -->\nafter\n"
    written = dense_costs.updated(page, {**dense_costs.read(page), "r50": "| `r50` | new |"})
    assert dense_costs.read(written) == {"r50": "| `r50` | new |"}
    assert written.startswith("before\n") and written.endswith("after\n")
