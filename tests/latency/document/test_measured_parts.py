"""The sections of a report on what was measured only if it was asked for."""

from __future__ import annotations

import dataclasses

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


def test_a_limit_that_is_unknown_says_why() -> None:
    ((_, blocks),) = part_sections(session(limit_problem="cuBLAS was not found"), "s0")
    texts = [block.text for block in blocks if isinstance(block, Text)]
    assert texts and all(text.endswith(": unknown (cuBLAS was not found)") for text in texts)
