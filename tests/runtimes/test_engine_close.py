"""Engines that are closed: by another thread, and before a call."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnx
import pytest

from edgevit.errors import UsageError
from edgevit.runtimes.base import BuildOptions, Engine
from edgevit.runtimes.registry import get_runtime
from tests.helpers.formats import ON_CPU

GRAPH = """<ir_version: 10, opset_import: ["" : 20]>
g (float[1, 3, 64, 64] x, float[8, 3, 3, 3] w) => (float[1, 8, 62, 62] y) { y = Conv (x, w) }"""
FEEDS = {"x": np.ones((1, 3, 64, 64), np.float32), "w": np.ones((8, 3, 3, 3), np.float32)}


def opened(fmt: str, folder: Path) -> Callable[[], Engine]:
    onnx.save(onnx.parser.parse_model(GRAPH), folder / "model.onnx")
    runtime, options = get_runtime(fmt), BuildOptions(threads=1)
    path = runtime.build(folder / "model.onnx", folder, options).path
    return lambda: runtime.open(path, options)


def run_until_an_error(engine: Engine, started: threading.Event) -> Exception:
    while True:
        try:
            engine.run(FEEDS)
        except Exception as error:
            return error
        started.set()


@pytest.mark.parametrize("fmt", ON_CPU)
def test_an_engine_that_another_thread_closes_says_so(fmt: str, tmp_path: Path) -> None:
    open_engine = opened(fmt, tmp_path)
    for _ in range(5):
        engine, started = open_engine(), threading.Event()
        with ThreadPoolExecutor(1) as pool:
            ran = pool.submit(run_until_an_error, engine, started)
            started.wait(60)
            engine.close()
        assert isinstance(ran.result(), UsageError) and "the engine is closed" in str(ran.result())


@pytest.mark.parametrize("fmt", ON_CPU)
def test_a_closed_engine_has_no_precision(fmt: str, tmp_path: Path) -> None:
    engine = opened(fmt, tmp_path)()
    engine.close()
    engine.close()
    with pytest.raises(UsageError, match="the engine is closed"):
        engine.executed_precision()
    with pytest.raises(UsageError, match="the engine is closed"):
        engine.run(FEEDS)
