"""The HTML report stands alone, and nothing in it comes from a bundle unescaped."""

from __future__ import annotations

import dataclasses
import re
from html.parser import HTMLParser

import pytest

from edgevit.latency.document.content import session_of
from edgevit.latency.document.html_page import html_page
from edgevit.runtimes.layer_profile import LayerProfile, LayerTime
from tests.helpers import samples
from tests.helpers.documents import NAMES, document, product, report, session

HOSTILE = '"><script src=//evil.test></script><img onerror=alert(1)>&lt;\x1b[31m'
_VOID = {"meta", "link", "img", "br", "line", "polyline", "polygon", "rect", "circle"}


class Page(HTMLParser):
    """Tags, attributes and text of a page, whose elements must nest."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.text = ""
        self._open: list[str] = []
        self.feed(page)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]
        if tag not in _VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture(scope="module")
def page() -> str:
    return html_page(document())


@pytest.fixture(scope="module")
def both() -> str:
    """The page of two runs."""
    return html_page(document(session(), session()))


def test_the_page_takes_nothing_from_elsewhere(page: str) -> None:
    parsed = Page(page)
    assert not {"script", "link", "img", "iframe", "object"} & set(parsed.tags)
    assert not {"src", "href", "srcset", "action", "style"} & {name for name, _ in parsed.attributes}
    assert not re.search(r"url\(|@import|@font-face|javascript:", page)
    assert set(re.findall(r"https?://[^\s\"<]+", page)) == {"http://www.w3.org/2000/svg"}
    assert len(page) < 60_000


def test_every_picture_has_a_text_alternative_and_a_table(both: str) -> None:
    parsed = Page(both)
    identifiers = [value for name, value in parsed.attributes if name == "id"]
    assert len(identifiers) == len(set(identifiers)) > 0
    named = [value.split() for name, value in parsed.attributes if name == "aria-labelledby"]
    assert sorted(each for pair in named for each in pair) == sorted(identifiers)
    assert parsed.tags.count("svg") == parsed.tags.count("details") == len(named) == 6


def test_hostile_text_stays_text() -> None:
    layer = LayerTime(name=HOSTILE, kind=HOSTILE, module=HOSTILE, ms=1.0)
    layers = LayerProfile(layers=(layer,), runs=1, profiled_ms=1.0)
    board = dataclasses.replace(samples.BOARD, board=HOSTILE, cpu=HOSTILE, packages={HOSTILE: HOSTILE}, gpus=(HOSTILE,))
    board = dataclasses.replace(board, device_clocks={f"{HOSTILE} gpu": HOSTILE}, power_mode=HOSTILE)
    details = {"precision": HOSTILE, "engine_sha256": HOSTILE, "gpu": HOSTILE}
    hostile = dataclasses.replace(report(environment=board, layers=layers, details=details), name=HOSTILE)
    texts = ("name", "path", "model", "weights", "runtime", "executed", "engine_sha256", "tool_line")
    owner = product(**dict.fromkeys(texts, HOSTILE), requested="fp32", onnx_sha256=HOSTILE)
    other = dataclasses.replace(report(NAMES[1]), environment=board, layers=layers, measured_at=HOSTILE)
    one = session_of([hostile, other], {HOSTILE: owner, NAMES[1]: product(NAMES[1])})
    page = html_page(dataclasses.replace(document(one, one), notes=(HOSTILE,)))
    plain = Page(html_page(dataclasses.replace(document(*[session(layers=layers)] * 2), notes=("plain",))))
    parsed = Page(page)
    assert set(parsed.tags) == set(plain.tags)
    assert {name for name, _ in parsed.attributes} == {name for name, _ in plain.attributes}
    assert "\x1b" not in page and parsed.text.count("evil.test") > 20


def test_the_page_says_first_whether_the_run_is_certified(page: str) -> None:
    assert '<p class="status yes">Certified</p>' in page
    busy = html_page(document(session(after=samples.BUSY_AFTER)))
    assert '<p class="status no">Not certified: other processes took 37 % of the cores</p>' in busy


def test_a_run_has_all_its_sections_and_several_have_an_overview(page: str, both: str) -> None:
    titles = ["Results", "Pictures", "Validity", "Machine", "Settings", "Engines", "Protocol", "Repeat"]
    assert re.findall(r"<h2>([^<]*)", page) == titles
    assert re.findall(r"<h2>([^<]*)", both) == ["Overview", "1. A board, A processor", "2. A board, A processor"]
