"""The sections of a report on what was measured only if it was asked for."""

from __future__ import annotations

import dataclasses

import pytest

from edgevit.latency.document.blocks import Table, Text
from edgevit.latency.document.measured_parts import part_sections
from tests.helpers import samples
from tests.helpers.documents import session


def test_the_limit_names_what_multiplied() -> None:
    limit = dataclasses.replace(samples.ROOFLINE, runtime="cuBLAS")
    ((title, blocks),) = part_sections(session(roofline=limit), "s0")
    limits, rates, _ = blocks
    assert title == "Limit of the machine" and isinstance(limits, Table) and isinstance(rates, Table)
    assert limits.rows[0][1:] == ("0.750", "compute", "0.750", "0.500", "1 %")
    assert rates.rows == (("cuBLAS", "fp32 2.00, int8 8.00", "1.00"),)  # once for all engines


@pytest.mark.parametrize(
    ("part", "title"),
    [
        ("roofline", "Limit of the machine"),
        ("layers", "Layers"),
        ("throughput", "Throughput"),
        ("sustained", "Sustained load"),
    ],
)
def test_a_study_without_a_result_says_why(part: str, title: str) -> None:
    ((found, blocks),) = part_sections(session(study_problems={part: "cuBLAS was not found"}), "s0")
    texts = [block.text for block in blocks if isinstance(block, Text)]
    assert found == title and texts and all(text.endswith(": unknown (cuBLAS was not found)") for text in texts)
