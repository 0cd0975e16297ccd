"""What tensors reach: extremes input by input, what is refused, and a cache that never answers for another graph."""

from __future__ import annotations

import json
import os
import resource
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from edgevit.errors import ExportError, UsageError
from edgevit.export.graph import OnnxGraph
from edgevit.export.quantization.calibration import Reach, cached_reach, measure_reach
from edgevit.runtimes.base import BuildOptions
from edgevit.runtimes.onnxruntime import OnnxRuntimeEngine
from edgevit.types import Array, Feeds
from tests.helpers.graphs import parse

HEAD = '<ir_version: 10, opset_import: ["" : 21]>'
TEXT = f"""{HEAD} g (float[batch, 4] x) => (float[batch, 4] y) {{
    a = Mul (x, w)
    best = ArgMax <axis = 1> (a)
    y = Relu (a)
}}"""
NAMES = ("x", "a", "y")


def graph(factor: float = 2.0) -> OnnxGraph:
    return parse(TEXT, w=np.full(4, factor, np.float32))


def feed(*values: float) -> dict[str, Array]:
    return {"x": np.asarray([values], np.float32)}


FEEDS = [feed(1, -2, 3, 0), feed(0.5, 0.25, 0.25, 0.25)]
FOUND = {
    "x": Reach((-2.0, 0.25), (3.0, 0.5)),
    "a": Reach((-4.0, 0.5), (6.0, 1.0)),
    "y": Reach((0.0, 0.5), (6.0, 1.0)),
}


class Loads:
    """Loads graphs, and counts them."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self, graph: OnnxGraph) -> Callable[[Feeds], Mapping[str, Array]]:
        self.count += 1
        return OnnxRuntimeEngine(onnxruntime, graph.to_bytes(), BuildOptions(threads=1), optimized=False).run


@pytest.fixture
def load() -> Loads:
    return Loads()


# Measuring


def test_the_extremes_of_each_input(load: Loads) -> None:
    """Of every fp32 tensor that is no weight: not of `w`, nor of the integers in `best`."""
    assert measure_reach(graph(), FEEDS, load=load) == FOUND
    assert load.count == 1


def test_the_reach_is_that_of_all_inputs() -> None:
    reach = Reach((-4.0, 0.5), (3.0, 1.0))
    assert (reach.low, reach.high, reach.magnitude) == (-4.0, 3.0, 4.0)
    assert Reach((1.0,), (7.0,)).magnitude == 7.0


@pytest.mark.parametrize("names", [("a",), ("y", "x"), ()])
def test_only_what_is_asked_for(names: tuple[str, ...], load: Loads) -> None:
    assert measure_reach(graph(), FEEDS, load=load, names=names) == {name: FOUND[name] for name in names}


def test_the_graph_stays_as_it_was(load: Loads) -> None:
    before = graph()
    content = before.to_bytes()
    measure_reach(before, FEEDS, load=load)
    assert before.to_bytes() == content


def test_it_tells_how_far_it_is(load: Loads) -> None:
    told: list[tuple[int, int]] = []
    measure_reach(graph(), FEEDS, load=load, on_feed=lambda done, total: told.append((done, total)))
    assert told == [(0, 2), (1, 2)]


def test_no_inputs_are_refused(load: Loads, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="there are none; give images with --calib"):
        measure_reach(graph(), [], load=load)
    with pytest.raises(UsageError, match="there are none"):
        cached_reach(graph(), [], load=load, names=NAMES, cache=tmp_path)
    assert load.count == 0
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("worst", [np.nan, np.inf])
@pytest.mark.parametrize("where", [0, 1])
def test_an_answer_that_is_not_finite_is_refused(worst: float, where: int, load: Loads, tmp_path: Path) -> None:
    feeds = [FEEDS[0], FEEDS[1]]
    feeds[where] = feed(worst, 1, 1, 1)
    with pytest.raises(ExportError, match="in fp32 already"):
        cached_reach(graph(), feeds, load=load, names=NAMES, cache=tmp_path)
    assert list(tmp_path.iterdir()) == []


# The cache


def reach(load: Loads, cache: Path | None, *, factor: float = 2.0, feeds: list[dict[str, Array]] | None = None,
          names: tuple[str, ...] = NAMES) -> dict[str, Reach]:  # fmt: skip
    return cached_reach(graph(factor), FEEDS if feeds is None else feeds, load=load, names=names, cache=cache)


def test_the_same_is_not_measured_again(load: Loads, tmp_path: Path) -> None:
    folder = tmp_path / "not" / "there" / "yet"
    first = reach(load, folder)
    assert (first, load.count) == (FOUND, 1)
    assert reach(load, folder) == FOUND
    assert reach(load, folder, names=NAMES[::-1]) == FOUND  # in whatever order
    assert load.count == 1
    (kept,) = folder.iterdir()
    assert kept.suffix == ".json"


@pytest.mark.parametrize(
    "other",
    [
        {"factor": 2.0000002},
        {"feeds": [FEEDS[0]]},
        {"feeds": [FEEDS[1], FEEDS[0]]},  # the extremes stand input by input
        {"feeds": [FEEDS[0], feed(0.5, 0.25, 0.25, 0.25000003)]},
        {"feeds": [{"x": np.concatenate([each["x"] for each in FEEDS])}]},  # the same numbers, in one batch
        {"names": NAMES[:2]},
    ],
    ids=["weight", "fewer", "order", "value", "shape", "names"],
)
def test_anything_else_is_measured(other: dict[str, object], load: Loads, tmp_path: Path) -> None:
    reach(load, tmp_path)
    found = reach(load, tmp_path, **other)  # type: ignore[arg-type]
    assert load.count == 2
    assert found == reach(load, None, **other)  # type: ignore[arg-type]
    assert len(list(tmp_path.iterdir())) == 2


def test_the_same_numbers_in_another_shape_are_measured(load: Loads, tmp_path: Path) -> None:
    whole = parse(f"{HEAD} g (float[batch, batch] x) => (float[batch, batch] y) {{ y = Softmax (x) }}")
    numbers = np.asarray([0, 1, 2, 3], np.float32)
    highs = [
        cached_reach(whole, [{"x": numbers.reshape(shape)}], load=load, names=("y",), cache=tmp_path)["y"].high
        for shape in ((1, 4), (2, 2))
    ]
    assert highs == [pytest.approx(0.6439, abs=1e-4), pytest.approx(0.7311, abs=1e-4)]


def test_numbers_survive_the_file(load: Loads, tmp_path: Path) -> None:
    """To the last bit, what is infinite inside the graph included."""
    inside = parse(f"{HEAD} g (float[batch, 4] x) => (float[batch, 4] y) {{ a = Exp (x)  b = Neg (a)  y = Exp (b) }}")
    feeds = [feed(0.1, 1e-30, -3, 100)]  # exp(100) is beyond fp32, exp(-inf) is 0
    found = [cached_reach(inside, feeds, load=load, names=("x", "a", "b"), cache=tmp_path) for _ in range(2)]
    assert found[0] == found[1]
    assert (load.count, found[1]["a"].high, found[1]["x"].low) == (1, np.inf, -3)


@pytest.mark.parametrize(
    "damaged",
    [
        b"",
        b'{"x": [[0.0, 1.0], [2.0',
        b"\x00\xff\x00",
        b"[]",
        b"null",
        b"7",
        b"{}",
        b'{"x": 1, "a": 2, "y": 3}',
        b'{"x": [["low"], ["high"]], "a": [[0], [1]], "y": [[0], [1]]}',
        b'{"x": [[0.0, 0.0], [1.0, 1.0]]}',
        b'{"x": [[], []], "a": [[], []], "y": [[], []]}',
    ],
)
def test_a_damaged_file_is_measured_and_replaced(damaged: bytes, load: Loads, tmp_path: Path) -> None:
    reach(load, tmp_path)
    (kept,) = tmp_path.iterdir()
    whole = kept.read_bytes()
    kept.write_bytes(damaged)
    assert reach(load, tmp_path) == FOUND
    assert load.count == 2
    assert list(tmp_path.iterdir()) == [kept]
    assert kept.read_bytes() == whole
    assert json.loads(whole)["a"] == [[-4.0, 0.5], [6.0, 1.0]]


@pytest.mark.parametrize("case", ["a file in its place", "a folder in the place of the file", "not to be written"])
def test_a_cache_that_cannot_be_used_costs_time_alone(case: str, load: Loads, tmp_path: Path) -> None:
    folder = tmp_path / "cache"
    if case == "a file in its place":
        folder.write_text("no folder")
    else:
        reach(load, folder)
        (kept,) = folder.iterdir()
        kept.unlink()
        if case == "not to be written":
            if os.geteuid() == 0:
                pytest.skip("root writes anywhere")
            folder.chmod(0o500)
        else:
            kept.mkdir()
    load.count = 0
    assert reach(load, folder) == FOUND
    assert load.count == 1
    assert list(tmp_path.rglob("*.part")) == []


def test_a_full_disk_leaves_nothing_half_written(load: Loads, tmp_path: Path) -> None:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10, limits[1]))  # bytes a file: a disk that is full for this process
    try:
        found = reach(load, tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert found == FOUND
    assert list(tmp_path.iterdir()) == []


def test_without_a_cache_it_is_measured_each_time(load: Loads) -> None:
    assert reach(load, None) == reach(load, None) == FOUND
    assert load.count == 2
