"""Published weights come whole or not at all, over whatever connection, and from the cache the second time.

A real server on this machine stands for the authors'; nothing here goes further than 127.0.0.1.
"""

from __future__ import annotations

import dataclasses
import hashlib
import http.server
import io
import json
import re
import resource
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from email.utils import formatdate
from pathlib import Path
from typing import Any

import pytest
import torch

import edgevit
from edgevit.cli import main as cli
from edgevit.cli import progress
from edgevit.errors import CheckpointError, MissingError, UsageError
from edgevit.models import downloads as published
from edgevit.models import registry
from edgevit.models.downloads import PublishedWeights, fetch

CONTENT = hashlib.shake_256(b"weights").digest(1_500_000)
HALF = len(CONTENT) // 2
STALL_S = 5
NAME = "weights.pth"


@dataclass
class Site:
    """What the server serves, how it behaves, and what it was asked for."""

    content: bytes = CONTENT
    tag: str | None = '"first"'
    modified: float | None = None
    status: int = 200
    content_type: str = "application/octet-stream"
    takes_ranges: bool = True
    heeds_if_range: bool = True
    shift: int = 0  # a range begins so much later than it was asked for
    promised: int | None = None  # the length that it says, where that is not the length that it has
    says_length: bool = True
    chunked: bool = False
    cuts: list[int] = field(default_factory=list)  # the next answers end before these bytes of the file
    resets: bool = False  # a cut is a reset, not an end
    stalls: bool = False  # a cut is a silence
    slow: bool = False
    location: str | None = None
    asked: list[str | None] = field(default_factory=list)  # the ranges
    url: str = ""

    def weights(self, sha256: str | None = None) -> PublishedWeights:
        return PublishedWeights(url=self.url, filename=NAME, sha256=sha256)


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server

    def do_GET(self) -> None:
        site = self.server.site
        site.asked.append(self.headers["Range"])
        if self.path == "/moved":
            self.send_response(302)
            self.send_header("Location", site.url.replace("/moved", "/there"))
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        start = self.start_of(site)
        if start >= len(site.content) > 0:
            self.send_error(416)
            return
        self.send_response(206 if start else site.status)
        self.send_header("Content-Type", site.content_type)
        if site.tag:
            self.send_header("ETag", site.tag)
        if site.modified:
            self.send_header("Last-Modified", formatdate(site.modified, usegmt=True))
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(site.content) - 1}/{len(site.content)}")
        if site.chunked:
            self.send_header("Transfer-Encoding", "chunked")
        elif site.says_length:
            self.send_header("Content-Length", str((site.promised or len(site.content)) - start))
        self.end_headers()
        self.send_body(site, start)

    def start_of(self, site: Site) -> int:
        asked = self.headers["Range"]
        version = self.headers["If-Range"]
        strong = None if site.tag is None or site.tag.startswith("W/") else site.tag
        known = (strong, site.modified and formatdate(site.modified, usegmt=True))
        if not asked or not site.takes_ranges or (site.heeds_if_range and version not in known):
            return 0
        return int(re.fullmatch(r"bytes=(\d+)-", asked)[1]) + site.shift  # type: ignore[index]

    def send_body(self, site: Site, start: int) -> None:
        end = site.cuts.pop(0) if site.cuts else len(site.content)
        for at in range(start, end, 50_000):
            block = site.content[at : min(at + 50_000, end)]
            self.wfile.write(b"%x\r\n%s\r\n" % (len(block), block) if site.chunked else block)
            if site.slow:
                time.sleep(0.02)
        if end == len(site.content):
            if site.chunked:
                self.wfile.write(b"0\r\n\r\n")
            self.close_connection = not site.says_length or site.promised is not None
            return
        self.wfile.flush()
        if site.stalls:
            time.sleep(STALL_S)
        if site.resets:
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.close()
        self.close_connection = True

    def log_message(self, *_: object) -> None:
        """Says nothing."""


class Server(http.server.ThreadingHTTPServer):
    site: Site
    daemon_threads = True
    block_on_close = False

    def handle_error(self, *_: object) -> None:
        """A client that goes is what these tests are about."""


@pytest.fixture
def site(monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    monkeypatch.setattr(published, "PAUSE_S", 0.001)
    monkeypatch.setenv("no_proxy", "*")
    with Server(("127.0.0.1", 0), Handler) as server:
        server.site = Site(url=f"http://127.0.0.1:{server.server_port}/{NAME}")
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        thread.start()
        yield server.site
        server.shutdown()
        thread.join()


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def start_fetching(site: Site, cache: Path, *, until: int) -> None:
    """Leaves behind what a fetch leaves that was cut at byte `until` and could go on no more."""
    site.cuts = [until] * published.ATTEMPTS
    with pytest.raises(MissingError, match="what has come is kept"):
        fetch(site.weights(), cache=cache)
    assert names(cache) == {f"{NAME}.part", f"{NAME}.part.json"}
    assert (cache / f"{NAME}.part").read_bytes() == site.content[:until]
    site.asked.clear()


# Whole, and once


def test_fetches_the_file_and_tells_how_far_it_is(site: Site, tmp_path: Path) -> None:
    told: list[tuple[int, int | None]] = []
    sha256 = hashlib.sha256(CONTENT).hexdigest()
    path = fetch(site.weights(sha256), cache=tmp_path / "new" / "cache", progress=lambda *far: told.append(far))
    assert path == tmp_path / "new" / "cache" / NAME
    assert path.read_bytes() == CONTENT
    assert names(path.parent) == {NAME}
    assert told[0] == (0, len(CONTENT))
    assert told[-1] == (len(CONTENT), len(CONTENT))
    assert told == sorted(told)


def test_a_second_fetch_asks_nobody(site: Site, tmp_path: Path) -> None:
    sha256 = hashlib.sha256(CONTENT).hexdigest()[:8]
    for _ in range(3):
        assert fetch(site.weights(sha256), cache=tmp_path).read_bytes() == CONTENT
    assert site.asked == [None]


def test_a_file_in_the_cache_that_has_another_hash_is_fetched_again(site: Site, tmp_path: Path) -> None:
    (tmp_path / NAME).write_bytes(CONTENT[:-1] + b"?")
    sha256 = hashlib.sha256(CONTENT).hexdigest()[:8]
    assert fetch(site.weights(sha256), cache=tmp_path).read_bytes() == CONTENT


def test_follows_a_redirect_with_its_range(site: Site, tmp_path: Path) -> None:
    """As the release pages do."""
    site.url = site.url.replace(NAME, "moved")
    start_fetching(site, tmp_path, until=HALF)
    assert fetch(site.weights(), cache=tmp_path).read_bytes() == CONTENT
    assert site.asked == [f"bytes={HALF}-"] * 2


def test_reads_chunks_without_a_length(site: Site, tmp_path: Path) -> None:
    site.chunked = True
    site.cuts = [HALF]
    assert fetch(site.weights(), cache=tmp_path).read_bytes() == CONTENT
    assert site.asked == [None, f"bytes={HALF}-"]


# Cut connections


@pytest.mark.parametrize("resets", [False, True])
def test_goes_on_where_a_connection_was_cut(resets: bool, site: Site, tmp_path: Path) -> None:
    site.cuts = [HALF, HALF + 100_000, HALF + 100_001]
    site.resets = resets
    assert fetch(site.weights(), cache=tmp_path).read_bytes() == CONTENT
    assert names(tmp_path) == {NAME}
    assert site.asked[0] is None
    if not resets:  # a reset may take bytes with it that were on their way
        assert site.asked[1:] == [f"bytes={HALF}-", f"bytes={HALF + 100_000}-", f"bytes={HALF + 100_001}-"]


def test_goes_on_where_a_connection_fell_silent(site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(published, "TIMEOUT_S", 0.2)
    site.cuts = [HALF]
    site.stalls = True
    started = time.monotonic()
    assert fetch(site.weights(), cache=tmp_path).read_bytes() == CONTENT
    assert time.monotonic() - started < STALL_S
    assert site.asked == [None, f"bytes={HALF}-"]


def test_goes_on_in_the_next_call(site: Site, tmp_path: Path) -> None:
    start_fetching(site, tmp_path, until=HALF)
    told: list[tuple[int, int | None]] = []
    assert fetch(site.weights(), cache=tmp_path, progress=lambda *far: told.append(far)).read_bytes() == CONTENT
    assert site.asked == [f"bytes={HALF}-"]
    assert told[0] == (HALF, len(CONTENT))


def test_goes_on_by_the_date_where_there_is_no_tag(site: Site, tmp_path: Path) -> None:
    site.tag = 'W/"weak"'
    site.modified = 1e9
    start_fetching(site, tmp_path, until=HALF)
    told: list[tuple[int, int | None]] = []
    assert fetch(site.weights(), cache=tmp_path, progress=lambda *far: told.append(far)).read_bytes() == CONTENT
    assert site.asked == [f"bytes={HALF}-"]
    assert told[0] == (HALF, len(CONTENT))


def test_goes_on_after_a_process_was_killed(site: Site, tmp_path: Path) -> None:
    site.cuts = [HALF]
    site.stalls = True
    code = """
import sys
from pathlib import Path
from edgevit.models.downloads import PublishedWeights, fetch
fetch(PublishedWeights(url=sys.argv[1], filename=sys.argv[2]), cache=Path(sys.argv[3]))
"""
    child = subprocess.Popen([sys.executable, "-c", code, site.url, NAME, tmp_path], cwd=Path(__file__).parents[2])
    part = tmp_path / f"{NAME}.part"
    deadline = time.monotonic() + 20
    while not part.exists() or part.stat().st_size < HALF:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    child.send_signal(signal.SIGKILL)
    child.wait()
    assert names(tmp_path) == {f"{NAME}.part", f"{NAME}.part.json"}
    assert fetch(site.weights(), cache=tmp_path).read_bytes() == CONTENT
    assert site.asked == [None, f"bytes={HALF}-"]


def test_a_file_that_only_lacked_its_name_needs_no_connection(site: Site, tmp_path: Path) -> None:
    start_fetching(site, tmp_path, until=HALF)
    (tmp_path / f"{NAME}.part").write_bytes(CONTENT)
    assert fetch(site.weights(), cache=tmp_path).read_bytes() == CONTENT
    assert site.asked == []


# Servers that do not go on, and files that change


def test_starts_over_where_the_server_knows_no_ranges(site: Site, tmp_path: Path) -> None:
    site.takes_ranges = False
    site.cuts = [HALF]
    assert fetch(site.weights(), cache=tmp_path).read_bytes() == CONTENT
    assert site.asked == [None, f"bytes={HALF}-"]


@pytest.mark.parametrize("heeds_if_range", [True, False])
def test_starts_over_where_the_file_has_changed(heeds_if_range: bool, site: Site, tmp_path: Path) -> None:
    start_fetching(site, tmp_path, until=HALF)
    site.content = CONTENT[::-1]
    site.tag = '"second"'
    site.heeds_if_range = heeds_if_range
    assert fetch(site.weights(), cache=tmp_path).read_bytes() == CONTENT[::-1]


@pytest.mark.parametrize("length", [len(CONTENT) + 1, len(CONTENT) - 1, HALF, 10])
def test_starts_over_where_the_length_has_changed(length: int, site: Site, tmp_path: Path) -> None:
    """And the tag has not, as no server should."""
    start_fetching(site, tmp_path, until=HALF)
    site.content = (CONTENT[::-1] * 2)[:length]
    assert fetch(site.weights(), cache=tmp_path).read_bytes() == site.content
    assert site.asked == [f"bytes={HALF}-", None]


def test_starts_over_where_the_server_sends_another_part(site: Site, tmp_path: Path) -> None:
    start_fetching(site, tmp_path, until=HALF)
    site.shift = 1
    assert fetch(site.weights(), cache=tmp_path).read_bytes() == CONTENT
    assert site.asked == [f"bytes={HALF}-", None]


@pytest.mark.parametrize(
    "note", ["", "{}", "[]", '{"url": "http://127.0.0.1/other", "validator": "\\"first\\"", "total": 1500000}']
)
def test_starts_over_where_the_note_does_not_fit(note: str, site: Site, tmp_path: Path) -> None:
    (tmp_path / f"{NAME}.part").write_bytes(b"what is this?")
    (tmp_path / f"{NAME}.part.json").write_text(note)
    assert fetch(site.weights(), cache=tmp_path).read_bytes() == CONTENT
    assert site.asked == [None]


def test_keeps_nothing_that_it_could_not_go_on_with(site: Site, tmp_path: Path) -> None:
    site.tag = None
    site.cuts = [HALF] * published.ATTEMPTS
    with pytest.raises(MissingError, match=r"cut after 0\.8 MB of 1\.5 MB") as raised:
        fetch(site.weights(), cache=tmp_path)
    assert "kept" not in str(raised.value)
    assert names(tmp_path) == set()
    assert site.asked == [None] * published.ATTEMPTS


# What is not the file


def test_a_file_shorter_than_promised_is_not_taken(site: Site, tmp_path: Path) -> None:
    site.promised = len(CONTENT) + 1
    with pytest.raises(MissingError, match="cut after"):
        fetch(site.weights(), cache=tmp_path)
    assert NAME not in names(tmp_path)


def test_a_file_with_another_hash_is_not_taken(site: Site, tmp_path: Path) -> None:
    with pytest.raises(MissingError, match=f"begins with {hashlib.sha256(CONTENT).hexdigest()[:8]}, not a1311bcf"):
        fetch(site.weights("a1311bcf"), cache=tmp_path)
    assert names(tmp_path) == set()


REFUSED: dict[str, tuple[dict[str, object], str]] = {
    "404": ({"status": 404}, "404 Not Found"),
    "a page": ({"content_type": "text/html; charset=utf-8"}, "web page"),
    "no length": ({"says_length": False}, "how long"),
    "nothing": ({"content": b""}, "how long"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_an_answer_that_is_no_file_is_one_line(case: str, site: Site, tmp_path: Path) -> None:
    behaviour, reason = REFUSED[case]
    for name, value in behaviour.items():
        setattr(site, name, value)
    check_one_line(site.weights(), reason, tmp_path)
    assert len(site.asked) == 1


def test_a_server_that_is_overloaded_is_asked_again(site: Site, tmp_path: Path) -> None:
    site.status = 503
    check_one_line(site.weights(), "503 Service Unavailable", tmp_path)
    assert len(site.asked) == published.ATTEMPTS


def check_one_line(weights: PublishedWeights, reason: str, cache: Path) -> None:
    """The error names the address, the reason and the remedy in a line, and leaves nothing behind."""
    with pytest.raises(MissingError) as raised:
        fetch(weights, cache=cache)
    message = str(raised.value)
    assert weights.url in message  # type: ignore[operator]
    assert reason in message
    assert message.endswith("download it yourself and pass --weights FILE")
    assert "\n" not in message
    assert names(cache) == set()


def test_a_refused_connection_is_one_line(tmp_path: Path, site: Site) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/{NAME}"
    check_one_line(PublishedWeights(url=url, filename=NAME), "Connection refused", tmp_path)
    assert site.asked == []


def test_failing_encryption_is_one_line(site: Site, tmp_path: Path) -> None:
    url = site.url.replace("http:", "https:")
    check_one_line(PublishedWeights(url=url, filename=NAME), "SSL", tmp_path)


@pytest.mark.usefixtures("site")
def test_an_unknown_host_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The resolver's answer is made up, so that no question leaves this machine."""

    def resolve(*_: object, **__: object) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    weights = PublishedWeights(url="https://nowhere.invalid/weights.pth", filename=NAME)
    check_one_line(weights, "Name or service not known", tmp_path)


# The disk


def test_a_full_disk_is_one_line_and_no_byte_is_fetched_twice(site: Site, tmp_path: Path) -> None:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (HALF, limits[1]))
    try:
        with pytest.raises(MissingError, match=r"cannot write .*weights\.pth\.part: .*EDGEVIT_CACHE"):
            fetch(site.weights(), cache=tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert fetch(site.weights(), cache=tmp_path).read_bytes() == CONTENT
    assert site.asked == [None, f"bytes={HALF}-"]


def test_a_disk_that_takes_a_block_in_pieces_gets_all_of_it(tmp_path: Path) -> None:
    class Narrow(io.FileIO):
        def write(self, block: Any, /) -> int:
            return super().write(block[:1000])

    with Narrow(tmp_path / NAME, "ab") as file:
        published._Part(tmp_path / NAME, file).append(CONTENT[:2500])
    assert (tmp_path / NAME).read_bytes() == CONTENT[:2500]


def test_a_cache_that_cannot_be_made_is_one_line(site: Site, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(MissingError, match=r"cannot write .*: Not a directory.*EDGEVIT_CACHE"):
        fetch(site.weights(), cache=tmp_path / "file" / "cache")
    assert site.asked == []


# Several at once


def test_fetches_at_once_give_one_whole_file(site: Site, tmp_path: Path) -> None:
    site.slow = True
    with ThreadPoolExecutor(4) as pool:
        paths = list(pool.map(lambda _: fetch(site.weights(), cache=tmp_path), range(4)))
    assert all(path.read_bytes() == CONTENT for path in paths)
    assert names(tmp_path) == {NAME}
    assert site.asked == [None]


@pytest.mark.parametrize("tag", ['"first"', None])
def test_whoever_waits_goes_on_where_the_other_failed(tag: str | None, site: Site, tmp_path: Path) -> None:
    """From what the other left, or from the beginning where that is nothing."""
    site.slow = True
    site.tag = tag
    site.cuts = [HALF] * published.ATTEMPTS
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(fetch, site.weights(), cache=tmp_path)
        while not site.asked:
            time.sleep(0.01)
        second = pool.submit(fetch, site.weights(), cache=tmp_path)
        assert second.result().read_bytes() == CONTENT
    assert isinstance(first.exception(), MissingError)
    assert names(tmp_path) == {NAME}
    assert site.asked == [None] + [f"bytes={HALF}-" if tag else None] * published.ATTEMPTS


# From the name of a model


@pytest.fixture
def tiny(site: Site, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[str, torch.Tensor]:
    """Makes shiftvit_t_light small, and its authors' file one on the server, with these parameters."""
    spec = registry.get_spec("shiftvit_t_light")
    small = dataclasses.replace(
        spec,
        options={**spec.options, "embed_dim": 24, "depths": (1, 1, 1, 1)},
        preprocessing=dataclasses.replace(spec.preprocessing, input_size=(3, 32, 32)),
        published=site.weights(),
    )
    monkeypatch.setitem(registry.specs(), small.name, small)
    monkeypatch.setenv("EDGEVIT_CACHE", str(tmp_path / "cache"))
    torch.manual_seed(0)
    state = edgevit.create_model(small.name).state_dict()
    file = io.BytesIO()
    torch.save({"model": state, "epoch": 299}, file)  # as the authors save it
    site.content = file.getvalue()
    return state


def test_official_weights_are_the_authors(tiny: dict[str, torch.Tensor], site: Site) -> None:
    told: list[tuple[int, int | None]] = []
    module = edgevit.create_model("shiftvit_t_light", weights="official", on_download=lambda *far: told.append(far))
    loaded = module.state_dict()
    assert all(torch.equal(loaded[key], value) for key, value in tiny.items())
    assert module.card.weights == site.url  # type: ignore[union-attr]
    assert module.card.weights_sha256 == hashlib.sha256(site.content).hexdigest()  # type: ignore[union-attr]
    assert told[-1] == (len(site.content), len(site.content))


@pytest.mark.usefixtures("tiny")
def test_the_command_line_fetches_shows_it_and_writes_it_into_the_manifest(
    site: Site, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["export", "shiftvit_t_light", "--fmt", "onnx", "--weights", "official"]
    assert cli.main([*command, "--no-verify", "--no-latency", "--out", str(tmp_path)]) == 0
    manifest = json.loads((tmp_path / "shiftvit_t_light-fp32-onnx" / "manifest.json").read_text())
    assert manifest["model"]["weights"] == site.url
    assert manifest["model"]["weights_sha256"] == hashlib.sha256(site.content).hexdigest()
    captured = capsys.readouterr()
    size = f"{len(site.content) / 1e6:.1f} MB"
    shown = re.findall(rf"official weights: (\d+) % of {re.escape(size)}\n", captured.err)
    assert shown[0] == "0"
    assert shown[-1] == "100"
    assert "official weights" not in captured.out
    assert "random" not in captured.out


@pytest.mark.parametrize("total", [80_000_000, None])
def test_a_terminal_has_a_bar(
    total: int | None, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    with progress.show_download():
        pass
    assert capsys.readouterr().err == ""
    with progress.show_download() as on_download:
        on_download(0, total)
        on_download(40_000_000, total)
    assert "40.0" in capsys.readouterr().err


def test_lines_stand_for_a_bar_elsewhere(capsys: pytest.CaptureFixture[str]) -> None:
    with progress.show_download() as on_download:
        for done in range(0, 51_000_000, 1_000_000):
            on_download(done, 50_000_000)
        for done in range(0, 25_000_000, 1_000_000):
            on_download(done, None)
    lines = [line.removeprefix("  official weights: ") for line in capsys.readouterr().err.splitlines()]
    assert lines[:11] == [f"{tenth} % of 50.0 MB" for tenth in range(0, 101, 10)]
    assert lines[11:] == ["0.0 MB", "10.0 MB", "20.0 MB"]


@pytest.mark.usefixtures("tiny")
def test_nothing_is_fetched_unasked(site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that is really called so is a path, or stands in a folder."""
    monkeypatch.chdir(tmp_path)
    Path("official").write_bytes(b"mine")
    edgevit.create_model("shiftvit_t_light")
    for mine in ("./official", Path("official")):
        with pytest.raises(CheckpointError, match=r"not a plain checkpoint|damaged"):
            edgevit.create_model("shiftvit_t_light", mine)
        with pytest.raises(CheckpointError, match=r"not a plain checkpoint|damaged"):
            edgevit.export("shiftvit_t_light", weights=mine)
    assert cli.main(["export", "shiftvit_t_light", "--fmt", "onnx", "--weights", "./official"]) == 2
    assert site.asked == []


@pytest.mark.usefixtures("tiny")
def test_other_classes_are_refused_before_anything_is_fetched(site: Site) -> None:
    with pytest.raises(UsageError, match="1000 classes, not 10"):
        edgevit.create_model("shiftvit_t_light", "official", 10)
    assert site.asked == []


NOT_FETCHED = {
    "mobileformer_294m": r"on Google Drive.*AAboys/MobileFormer.*--weights mobile-former-294m\.pth\.tar$",
    "vitae_t": r"on Google Drive.*ViTAE-Transformer.*--weights ViTAE-T\.pth\.tar$",
    "vitae_b": r"on Google Drive.*ViTAE-Transformer.*--weights FILE$",
    "vitaev2_s": r"on OneDrive.*ViTAE-Transformer.*--weights FILE$",
    "vitae_13m": r"published no weights.*--weights FILE",
    "shuffle_swin_t": r"published no weights.*--weights FILE",
    "vt_resnet18": r"published no weights.*--weights FILE",
    "shiftvit_cifar10": r"has its weights with it: leave --weights out",
    "mine.py:build": r"pass those of mine\.py:build with --weights FILE",
}


@pytest.mark.parametrize("name", NOT_FETCHED)
def test_weights_that_cannot_be_fetched_say_where_they_are(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("mine.py").write_text("from torch import nn\n\ndef build():\n    return nn.Identity()\n")
    assert cli.main(["export", name, "--fmt", "onnx", "--weights", "official"]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert re.search(NOT_FETCHED[name], lines[0])


def test_exactly_these_models_have_an_address() -> None:
    addresses = {name: spec.published for name, spec in registry.specs().items() if spec.published}
    fetched = {name for name, weights in addresses.items() if weights.url}
    assert fetched == {
        "shiftvit_t", "shiftvit_s", "shiftvit_t_light", "shiftvit_s_light",
        "deit_t", "t2t_vit_7", "t2t_vit_10", "t2t_vit_12", "swin_t",
    }  # fmt: skip
    for name in fetched:
        weights = addresses[name]
        assert weights.url is not None
        assert weights.url.startswith("https://")
        assert weights.url.endswith(f"/{weights.filename}")
        assert (weights.sha256 or "") in weights.filename
    assert len({addresses[name].filename for name in fetched}) == len(fetched)


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"url": "file:///etc/passwd", "filename": NAME},
        {"url": "https://host/weights.pth"},
        {"url": "https://host/weights.pth", "filename": "../weights.pth"},
    ],
)
def test_published_weights_that_lie_nowhere_are_refused(fields: dict[str, str]) -> None:
    with pytest.raises(UsageError):
        PublishedWeights(**fields)
