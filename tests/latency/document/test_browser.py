"""The HTML report in a real browser: as wide as a phone, nothing fetched, nothing on the console."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from edgevit.latency.document.html_page import html_page
from edgevit.runtimes.layer_profile import LayerProfile, LayerTime
from tests.helpers.documents import document, session

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update", "--enable-logging=stderr", "--hide-scrollbars"),
)
pytestmark = pytest.mark.skipif(BROWSER is None, reason="no browser on PATH: apt-get install chromium")

# Frames of the page: narrow, wide, dark, and as on A4 paper. The script reports their widths, all that the page itself
# fetched, the tables that leave their picture's column, and the color of the page.
FRAMES = """<!DOCTYPE html><link rel="icon" href="data:,"><iframe width=320 height=600 src=page.html></iframe>
<iframe width=1200 height=600 src=page.html></iframe>
<iframe width=600 height=600 src=page.html style="color-scheme:dark"></iframe>
<iframe width=688 height=600 src=paper.html></iframe><script>
onload = () => document.body.textContent = JSON.stringify([...document.querySelectorAll("iframe")].map(frame => {
  const root = frame.contentDocument.documentElement, inside = [...root.querySelectorAll("main *")];
  return {
    width: frame.clientWidth, page: root.scrollWidth, fetched: frame.contentWindow.performance.getEntries()
      .filter(each => each.entryType == "resource").length, drawn: inside.filter(each => each.matches("svg")
      && each.getBoundingClientRect().height > 20).length, small: inside.filter(each => each.matches("svg text")
      && each.getBoundingClientRect().height < 9).length,
    outside: inside.filter(each => each.matches("figure table") && each.checkVisibility()
      && each.getBoundingClientRect().right > each.closest("figure").getBoundingClientRect().right + 1).length,
    color: getComputedStyle(frame.contentDocument.body).backgroundColor,
  };
}))</script>"""

LIGHT, DARK = "rgb(255, 255, 255)", "rgb(21, 22, 23)"


class Quiet(SimpleHTTPRequestHandler):
    """A file server that keeps the paths that were asked for."""

    requested: list[str]

    def log_message(self, *_: object) -> None:
        self.requested.append(self.path)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("page")
    name = "stages.0.blocks.1.attention.with_a_name_that_does_not_end_soon.projection"
    layer = LayerTime(name=name, kind="MatMul", module=name, ms=1.5)
    details = {"precision": "fp32", "engine_sha256": "0123456789abcdef" * 4, "gpu": "Orin"}
    one = session(layers=LayerProfile(layers=(layer,), runs=3, profiled_ms=2.0), details=details)
    page = html_page(document(one, session()))
    (folder / "page.html").write_text(page, "utf-8")
    (folder / "paper.html").write_text(page.replace("@media print", "@media all"), "utf-8")
    (folder / "frames.html").write_text(FRAMES, "utf-8")
    return folder


@pytest.fixture
def server(folder: Path) -> Iterator[tuple[str, list[str]]]:
    """Serve the folder; yield the address and the list of paths that were asked for."""
    requested: list[str] = []
    handler = partial(type("Handler", (Quiet,), {"requested": requested}), directory=str(folder))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as http:
        threading.Thread(target=http.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{http.server_address[1]}", requested
        http.shutdown()


def browse(profile: Path, *flags: str) -> subprocess.CompletedProcess[str]:
    assert BROWSER is not None
    command = [BROWSER, *FLAGS, f"--user-data-dir={profile}", *flags]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)


def test_the_page_fits_phone_and_paper_is_dark_if_asked_for_and_fetches_nothing(
    server: tuple[str, list[str]], tmp_path: Path
) -> None:
    address, requested = server
    done = browse(tmp_path, "--window-size=1300,1300", "--dump-dom", f"{address}/frames.html")
    found = re.search(r"<body>(\[.*\])", done.stdout)
    assert found is not None, done.stdout
    assert json.loads(found[1]) == [
        {"width": width, "page": width, "fetched": 0, "drawn": 12, "small": 0, "outside": 0, "color": color}
        for width, color in ((320, LIGHT), (1200, LIGHT), (600, DARK), (688, LIGHT))
    ]
    assert sorted(set(" ".join(requested).split())) == ["/frames.html", "/page.html", "/paper.html"]
    assert "CONSOLE" not in done.stderr, done.stderr


def test_the_page_is_drawn(folder: Path, tmp_path: Path) -> None:
    picture = tmp_path / "page.png"
    done = browse(
        tmp_path / "profile", "--window-size=800,900", f"--screenshot={picture}", f"file://{folder}/page.html"
    )
    assert "CONSOLE" not in done.stderr
    pixels = np.asarray(Image.open(picture).convert("RGB"))
    assert pixels.shape[:2] == (900, 800)
    colors = np.unique(pixels.reshape(-1, 3), axis=0)
    assert len(colors) > 50 and 0.01 < (pixels.sum(axis=2) < 384).mean() < 0.5  # dark text and lines on a light page
