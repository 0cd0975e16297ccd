"""The Markdown report pastes into an issue, and names in it stay plain text."""

from __future__ import annotations

import dataclasses
import re

from edgevit.latency.document.content import session_of
from edgevit.latency.document.markdown import markdown_page
from tests.helpers.documents import NAMES, document, product, report

HOSTILE = "a|b\n# c `d` **e** <img src=x> [f](https://evil.test) @someone #12 www.evil.test"


def test_every_row_of_a_table_has_the_cells_of_its_header() -> None:
    page = markdown_page(document())
    tables = re.findall(r"(?:^\|.*\|\n)+", page, re.MULTILINE)
    assert len(tables) == 12
    for table in tables:
        assert len({row.count("|") for row in table.splitlines()}) == 1
    assert page.startswith("# Latency of vit\n\nA board, A processor, measured at") and "**certified**" in page
    assert "```sh\nedgevit latency bundles/vit-fp32-ort bundles/vit-int8-ort --threads 1 --duration 60\n```" in page


def test_times_on_the_gpu_have_a_table_of_the_engines_that_run_there() -> None:
    on_gpu = dataclasses.replace(report(), compute_ms=report().samples_ms)
    page = markdown_page(document(session_of([on_gpu, report(NAMES[1])], {})))
    first, second, *_ = re.findall(r"(?:^\|.*\|\n)+", page, re.MULTILINE)
    assert "GPU" not in first and "verdict" in first
    header, _, *rows = second.splitlines()
    assert header.startswith("| engine | GPU p50 ms |") and len(rows) == 1


def test_hostile_names_format_link_and_mention_nothing() -> None:
    hostile = dataclasses.replace(report(), name=HOSTILE)
    owner = product(name=HOSTILE, path=HOSTILE, model=HOSTILE, tool_line="x```\n# y")
    page = markdown_page(document(session_of([hostile, report(NAMES[1])], {HOSTILE: owner})))
    prose = re.sub(r"^(`{3,})sh\n.*?\n\1$", "", page, flags=re.MULTILINE | re.DOTALL)
    assert not re.search(r"<img|(?<!\\)\*\*e|(?<!\\)\[f|@someone|(?<![\\&])#12|https:|www\.|^# c", prose, re.MULTILINE)
    for table in re.findall(r"(?:^\|.*\|\n)+", prose, re.MULTILINE):
        assert len({row.count("|") for row in table.splitlines()}) == 1
    assert "````sh\nx``` # y\n````" in page
