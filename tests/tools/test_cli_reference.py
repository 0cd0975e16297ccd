"""docs/cli.md describes the command line as it is."""

from __future__ import annotations

from tests.tools import cli_reference


def test_the_page_is_up_to_date() -> None:
    assert cli_reference.PAGE.read_text("utf-8") == cli_reference.page(), "run make docs"


def test_the_page_has_every_option() -> None:
    page = cli_reference.page()
    for words in ("## edgevit export\n", "`--dynamic-batch MIN:OPT:MAX`", "`--max-drop P%`", "| 70 |", r"BUNDLE"):
        assert words in page
