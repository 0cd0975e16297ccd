"""Activation ranges: extremes per input, invalid inputs, and a cache that never serves another graph."""

from __future__ import annotations

import json
import os
import resource
import tracemalloc
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest

from edgevit.errors import ExportError, UsageError
from edgevit.export.graph import OnnxGraph
from edgevit.export.quantization.calibration import ValueRange, cached_ranges, collect_ranges, measurement_key
from edgevit.runtimes.base import BuildOptions
from edgevit.runtimes.onnxruntime import OnnxRuntimeEngine
from edgevit.types import Array, Feeds
from tests.helpers.graphs import HEADER, parse

TEXT = f"""{HEADER} g (float[batch, 4] x) => (float[batch, 4] y) {{
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
RANGES = {
    "x": ValueRange((-2.0, 0.25), (3.0, 0.5)),
    "a": ValueRange((-4.0, 0.5), (6.0, 1.0)),
    "y": ValueRange((0.0, 0.5), (6.0, 1.0)),
}


class Loads:
    """Loads graphs and counts them."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self, graph: OnnxGraph) -> Callable[[Feeds], Mapping[str, Array]]:
        self.count += 1
        return OnnxRuntimeEngine(onnxruntime, graph.to_bytes(), BuildOptions(threads=1), optimized=False).run


@pytest.fixture
def load() -> Loads:
    return Loads()


# Collection


def test_the_extremes_of_each_input_are_collected(load: Loads) -> None:
    """For every fp32 tensor: not for the weight `w`, nor for the integers in `best`."""
    assert collect_ranges(graph(), FEEDS, load=load) == RANGES
    assert load.count == 1


def test_a_range_covers_all_inputs() -> None:
    found = ValueRange((-4.0, 0.5), (3.0, 1.0))
    assert (found.low, found.high, found.magnitude) == (-4.0, 3.0, 4.0)
    assert ValueRange((1.0,), (7.0,)).magnitude == 7.0


@pytest.mark.parametrize("names", [("a",), ("y", "x"), ()])
def test_only_the_requested_tensors_are_collected(names: tuple[str, ...], load: Loads) -> None:
    assert collect_ranges(graph(), FEEDS, load=load, names=names) == {name: RANGES[name] for name in names}


def test_the_graph_is_not_changed(load: Loads) -> None:
    before = graph()
    content = before.to_bytes()
    collect_ranges(before, FEEDS, load=load)
    assert before.to_bytes() == content


def test_progress_is_reported(load: Loads) -> None:
    progress: list[tuple[int, int]] = []
    collect_ranges(graph(), FEEDS, load=load, on_feed=lambda done, total: progress.append((done, total)))
    assert progress == [(0, 2), (1, 2)]


def test_no_inputs_is_a_usage_error(load: Loads, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no calibration inputs; give a folder of images with --calib"):
        collect_ranges(graph(), [], load=load)
    with pytest.raises(UsageError, match="no calibration inputs"):
        cached_ranges(graph(), [], load=load, names=NAMES, cache=tmp_path)
    assert load.count == 0
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("index", [0, 1])
def test_an_output_that_is_not_finite_is_an_error(value: float, index: int, load: Loads, tmp_path: Path) -> None:
    feeds = [FEEDS[0], FEEDS[1]]
    feeds[index] = feed(value, 1, 1, 1)
    with pytest.raises(ExportError, match=rf"NaN or infinity for calibration input {index} \(output y\)"):
        cached_ranges(graph(), feeds, load=load, names=NAMES, cache=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_classes_that_are_always_masked_are_accepted(load: Loads) -> None:
    text = f"{HEADER} g (float[batch, 4] x) => (float[batch, 4] y) {{ y = Add (x, mask) }}"
    masked = parse(text, mask=np.array([0, -np.inf, 0, 0], np.float32))
    assert collect_ranges(masked, FEEDS, load=load)["y"].low == -np.inf


# The cache


def ranges(load: Loads, cache: Path | None, *, factor: float = 2.0, feeds: list[dict[str, Array]] | None = None,
          names: tuple[str, ...] = NAMES) -> dict[str, ValueRange]:  # fmt: skip
    return cached_ranges(graph(factor), FEEDS if feeds is None else feeds, load=load, names=names, cache=cache)


def test_the_same_ranges_are_read_from_the_cache(load: Loads, tmp_path: Path) -> None:
    folder = tmp_path / "not" / "there" / "yet"
    first = ranges(load, folder)
    assert (first, load.count) == (RANGES, 1)
    assert ranges(load, folder) == RANGES
    assert ranges(load, folder, names=NAMES[::-1]) == RANGES  # in any order
    assert load.count == 1
    (file,) = folder.iterdir()
    assert file.suffix == ".json"


@pytest.mark.parametrize(
    "other",
    [
        {"factor": 2.0000002},
        {"feeds": [FEEDS[0]]},
        {"feeds": [FEEDS[1], FEEDS[0]]},  # extremes are stored per input
        {"feeds": [FEEDS[0], feed(0.5, 0.25, 0.25, 0.25000003)]},
        {"feeds": [{"x": np.concatenate([each["x"] for each in FEEDS])}]},  # the same values in one batch
        {"names": NAMES[:2]},
    ],
    ids=["weight", "fewer", "order", "value", "shape", "names"],
)
def test_any_other_input_is_collected(other: dict[str, object], load: Loads, tmp_path: Path) -> None:
    ranges(load, tmp_path)
    found = ranges(load, tmp_path, **other)  # type: ignore[arg-type]
    assert load.count == 2
    assert found == ranges(load, None, **other)  # type: ignore[arg-type]
    assert len(list(tmp_path.iterdir())) == 2


def test_the_same_values_in_another_shape_are_collected(load: Loads, tmp_path: Path) -> None:
    whole = parse(f"{HEADER} g (float[batch, batch] x) => (float[batch, batch] y) {{ y = Softmax (x) }}")
    numbers = np.asarray([0, 1, 2, 3], np.float32)
    highs = [
        cached_ranges(whole, [{"x": numbers.reshape(shape)}], load=load, names=("y",), cache=tmp_path)["y"].high
        for shape in ((1, 4), (2, 2))
    ]
    assert highs == [pytest.approx(0.6439, abs=1e-4), pytest.approx(0.7311, abs=1e-4)]


def with_large_weight(last: float) -> OnnxGraph:
    whole = parse(
        f"{HEADER} g (float[batch, 4] x, float[4, 65536] w) => (float[batch, 65536] y) {{ y = MatMul (x, w) }}"
    )
    weight = np.zeros((4, 65536), np.float32)
    weight[-1, -1] = last
    value = whole.model.graph.inputs.pop()
    value.const_value = ir.tensor(weight, name=value.name)
    whole.model.graph.register_initializer(value)
    return whole


def test_a_key_depends_on_large_weights_and_takes_no_copy_of_them() -> None:
    """Above 2 GB protobuf could not hold one."""
    graphs = [with_large_weight(last) for last in (1.0, 1.0000001)]
    tracemalloc.start()
    first, second = (measurement_key(each, FEEDS, "ranges") for each in graphs)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert first != second
    assert peak < 4 * 65536 * 4 / 2


def test_cached_ranges_are_exact(load: Loads, tmp_path: Path) -> None:
    """Infinite values inside the graph included."""
    inside = parse(f"{HEADER} g (float[batch, 4] x) => (float[batch, 4] y) {{ a = Exp (x)  b = Neg (a)  y = Exp (b) }}")
    feeds = [feed(0.1, 1e-30, -3, 100)]  # exp(100) is beyond fp32, exp(-inf) is 0
    found = [cached_ranges(inside, feeds, load=load, names=("x", "a", "b"), cache=tmp_path) for _ in range(2)]
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
def test_a_damaged_cache_file_is_replaced(damaged: bytes, load: Loads, tmp_path: Path) -> None:
    ranges(load, tmp_path)
    (file,) = tmp_path.iterdir()
    whole = file.read_bytes()
    file.write_bytes(damaged)
    assert ranges(load, tmp_path) == RANGES
    assert load.count == 2
    assert list(tmp_path.iterdir()) == [file]
    assert file.read_bytes() == whole
    assert json.loads(whole)["a"] == [[-4.0, 0.5], [6.0, 1.0]]


@pytest.mark.parametrize("case", ["a file at its path", "a folder at the file's path", "not writable"])
def test_a_cache_that_cannot_be_used_is_ignored(case: str, load: Loads, tmp_path: Path) -> None:
    folder = tmp_path / "cache"
    if case == "a file at its path":
        folder.write_text("no folder")
    else:
        ranges(load, folder)
        (file,) = folder.iterdir()
        file.unlink()
        if case == "not writable":
            if os.geteuid() == 0:
                pytest.skip("root writes anywhere")
            folder.chmod(0o500)
        else:
            file.mkdir()
    load.count = 0
    assert ranges(load, folder) == RANGES
    assert load.count == 1
    assert list(tmp_path.rglob("*.part")) == []


def test_a_full_disk_leaves_no_partial_file(load: Loads, tmp_path: Path) -> None:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10, limits[1]))  # bytes per file: as if the disk were full
    try:
        found = ranges(load, tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert found == RANGES
    assert list(tmp_path.iterdir()) == []


def test_without_a_cache_ranges_are_collected_each_time(load: Loads) -> None:
    assert ranges(load, None) == ranges(load, None) == RANGES
    assert load.count == 2
