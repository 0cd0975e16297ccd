"""Huge pages: the memory of an engine is mapped in them after its second run, and nothing else changes."""

from __future__ import annotations

import platform
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from edgevit.runtimes import huge_pages
from edgevit.runtimes.base import BuildOptions, Engine
from edgevit.runtimes.huge_pages import HUGE_PAGES, THREAD, HugePages, can_map_in_huge_pages
from edgevit.runtimes.onnxruntime import OnnxRuntime
from edgevit.runtimes.openvino import OpenVino
from edgevit.runtimes.openvino_convert import convert
from tests.helpers.onnx_files import save_graph

MB = 1 << 20
STRAY = 4 * MB  # NumPy asks for huge pages too
ROWS, SIDE = 64, 2048  # two weights of 16 MB each
FEEDS = {"x": np.random.default_rng(0).standard_normal((ROWS, SIDE)).astype(np.float32)}
RUNTIMES = {"ort": OnnxRuntime, "openvino": OpenVino}
SYSTEM = Path("/sys/kernel/mm/transparent_hugepage/enabled")
COLLAPSES = tuple(map(int, re.findall(r"\d+", platform.release())[:2])) >= (6, 1)  # older kernels take 10 s and more
asks = pytest.mark.skipif(
    not (COLLAPSES and can_map_in_huge_pages() and "[madvise]" in SYSTEM.read_text()),
    reason="transparent huge pages are not at madvise here, or the kernel is older than 6.1",
)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = save_graph(
        tmp_path_factory.mktemp("huge") / "model.onnx",
        f"g (float[{ROWS}, {SIDE}] x) => (float[{ROWS}, {SIDE}] y)",
        {"a/Gemm": "a = Gemm (x, v, b)", "b/Relu": "r = Relu (a)", "c/Gemm": "y = Gemm (r, w, b)"},
        {"v": (SIDE, SIDE), "w": (SIDE, SIDE), "b": (SIDE,)},
    )
    (scratch := path.parent / "scratch").mkdir()
    convert(OpenVino().load(), path, path.with_suffix(".xml"), scratch=scratch)
    return path


def opened(fmt: str, model: Path, **session: str) -> Engine:
    runtime = RUNTIMES[fmt]()
    options = BuildOptions(threads=1, session=runtime.session_settings(session))
    return runtime.open(model.with_suffix(".xml") if fmt == "openvino" else model, options)


def run_often(engine: Engine) -> None:
    for _ in range(3):
        engine.run(FEEDS)
    _join()


# In a process of its own: memory that was advised once is mapped in huge pages at once when it is used again.
SCRIPT = """
import sys, threading
from pathlib import Path
import numpy as np
from edgevit.runtimes.base import BuildOptions
from edgevit.runtimes.huge_pages import THREAD
from edgevit.runtimes.peers import NaiveOnnxEngine
from edgevit.runtimes.registry import get_runtime

def grown(call):
    before = huge_bytes()
    call()
    for thread in threading.enumerate():
        if thread.name == THREAD:
            thread.join()
    return huge_bytes() - before

def huge_bytes():
    lines = Path("/proc/self/smaps").read_text("utf-8", "surrogateescape").splitlines()
    return sum(int(line.split()[1]) << 10 for line in lines if line.startswith("AnonHugePages:"))

def opened(**session):
    return runtime.open(Path(path), BuildOptions(threads=1, session=runtime.session_settings(session)))

fmt, path, kind = sys.argv[1:]
runtime, feeds = get_runtime(fmt), {feeds}
engine = opened(huge_pages="off" if kind == "off" else "on")
if kind == "streams":
    runner = engine.throughput_runner(1)
    run = lambda: runner.run_while(feeds, lambda started: started < 2)
elif kind == "peer":  # loaded while the engine is watched
    run = lambda peer=NaiveOnnxEngine(Path(path), engine.inputs, engine.outputs, threads=1): peer.run(feeds)
else:
    run = lambda: engine.run(feeds)
expected = opened(huge_pages="off").run(feeds)["y"]
print(grown(run), grown(run), grown(run))
assert np.array_equal(engine.run(feeds)["y"], expected)
"""
FILLED = "dict(x=np.random.default_rng(0).standard_normal(({rows}, {side})).astype(np.float32))"


def growth(fmt: str, model: Path, kind: str) -> list[int]:
    """Return the bytes of a process in huge pages that each of three runs has added."""
    path = model.with_suffix(".xml") if fmt == "openvino" else model
    script = SCRIPT.replace("{feeds}", FILLED.format(rows=ROWS, side=SIDE))
    command = [sys.executable, "-c", script, fmt, str(path), kind]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return [int(number) for number in done.stdout.split()]


@asks
@pytest.mark.parametrize("fmt", RUNTIMES)
@pytest.mark.parametrize("kind", ["engine", "streams"])
def test_an_engine_is_mapped_in_huge_pages_after_its_second_run(fmt: str, kind: str, model: Path) -> None:
    first, second, third = growth(fmt, model, kind)
    assert second > 2 * STRAY
    assert max(first, third) <= STRAY  # an engine that runs once keeps its pages


@asks
@pytest.mark.parametrize(("fmt", "kind"), [("ort", "off"), ("openvino", "off"), ("ort", "peer")])
def test_other_engines_keep_the_pages_that_their_runtime_asks_for(fmt: str, kind: str, model: Path) -> None:
    assert max(growth(fmt, model, kind)) <= STRAY


@pytest.mark.parametrize("fmt", RUNTIMES)
@pytest.mark.parametrize("allowed", ["always madvise [never]", None])
def test_where_the_system_forbids_huge_pages_nothing_is_asked_for(
    fmt: str, allowed: str | None, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The setting has one value there, so that `edgevit tune` does not try it."""
    if allowed is not None:
        (tmp_path / "enabled").write_text(allowed)
        (tmp_path / "hpage_pmd_size").write_text(str(2 * MB))
    monkeypatch.setattr(huge_pages, "_SETTINGS", tmp_path)
    monkeypatch.setattr(huge_pages, "map_in_huge_pages", lambda _: pytest.fail("mapped"))
    with _uncached():
        assert RUNTIMES[fmt]().usable_values(HUGE_PAGES) == ("on",)
        with opened(fmt, model) as engine:
            run_often(engine)


def test_an_engine_that_is_closed_before_its_memory_is_mapped_does_no_harm(model: Path) -> None:
    engine = opened("ort", model)
    engine.run(FEEDS)
    engine.run(FEEDS)
    engine.close()
    with opened("ort", model) as other:
        run_often(other)


def test_full_new_blocks_are_those_of_the_engine() -> None:
    before = {1: 512, 2: 200, 3: 400, 5: 512}
    now = {1: 512, 2: 512, 3: 512, 4: 470, 5: 0, 6: 300, 7: 512}
    # 1 was there before, of 3 most was, 5 is freed, 6 is half empty
    assert huge_pages._filled(before, now) == {2, 4, 7}
    assert list(huge_pages._runs_of([2, 4, 5, 6, 9])) == [(2, 3), (4, 7), (9, 10)]
    assert not list(huge_pages._runs_of([]))


def test_the_blocks_of_an_array_are_seen() -> None:
    if not can_map_in_huge_pages():
        pytest.skip("the page map cannot be read here")
    watched = HugePages()
    array = np.ones(16 * MB, np.uint8)
    watched.loaded()
    block = (array.ctypes.data + 8 * MB) // huge_pages._block_bytes()
    assert block in watched._filled


class _uncached:  # noqa: N801  # reads like a function
    """Ask the system again within the block, and after it."""

    def __enter__(self) -> None:
        self._clear()

    def __exit__(self, *_: object) -> None:
        self._clear()

    def _clear(self) -> None:
        huge_pages._block_bytes.cache_clear()
        huge_pages.can_map_in_huge_pages.cache_clear()


@pytest.fixture(autouse=True)
def _joined() -> Iterator[None]:
    yield
    _join()


def _join() -> None:
    for thread in threading.enumerate():
        if thread.name == THREAD:
            thread.join(timeout=60)
