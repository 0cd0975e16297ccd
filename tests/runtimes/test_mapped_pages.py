"""Pages of a mapped file are dropped, and read again when they are used."""

from __future__ import annotations

import mmap
import sys
import time
from pathlib import Path

import pytest

from edgevit.peak_memory import resident_mb
from edgevit.runtimes import mapped_pages
from edgevit.runtimes.mapped_pages import drop_pages, dropping_pages

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")

SIZE = 64 << 20


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "weights with a space.bin"
    path.write_bytes(b"\x07" * SIZE)
    return path


def rise_mb(before_mb: float | None) -> float:
    now_mb = resident_mb()
    assert before_mb is not None and now_mb is not None
    return now_mb - before_mb


def test_pages_that_were_read_are_dropped_and_come_back(file: Path) -> None:
    before_mb = resident_mb()
    with file.open("rb") as opened, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        assert mapped.find(b"\x08") == -1 and rise_mb(before_mb) > 50
        drop_pages(file)
        assert rise_mb(before_mb) < 20
        assert mapped[0] == mapped[-1] == 7


def test_what_was_written_to_a_private_mapping_stays(file: Path) -> None:
    with file.open("rb") as opened, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_COPY) as mapped:
        mapped[0] = 9
        drop_pages(file)
        assert mapped[0] == 9


def test_pages_are_dropped_while_a_large_file_is_read(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mapped_pages, "MIN_BYTES", 1)
    before_mb = resident_mb()
    with file.open("rb") as opened, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        with dropping_pages(file):
            assert mapped.find(b"\x08") == -1
            for _ in range(100):
                if rise_mb(before_mb) < 20:
                    break
                time.sleep(0.1)
            assert rise_mb(before_mb) < 20
            assert mapped.find(b"\x08") == -1
        assert rise_mb(before_mb) < 20  # at the end, too
