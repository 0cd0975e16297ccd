"""Pictures of a report: what is compared with what, and that every number can be read."""

from __future__ import annotations

import dataclasses
import itertools
import math

import pytest

from edgevit.latency.document import plots
from edgevit.latency.document.content import session_of
from edgevit.latency.document.measured_parts import _modules
from edgevit.latency.document.product import Accuracy
from edgevit.latency.document.svg import Canvas
from edgevit.runtimes.layer_profile import LayerProfile, LayerTime
from tests.helpers import samples
from tests.helpers.documents import NAMES, document, product, report, session

OTHER = dataclasses.replace(samples.BOARD, board="Another board")


def test_every_device_has_trade_offs_of_its_own() -> None:
    """An engine on a slow device is not worse than another on a fast one."""
    titles = [figure.title for figure in plots.tradeoffs(document(session(), session(environment=OTHER)), "k")]
    assert titles == [
        f"{name} on {board}, A processor"
        for board in ("A board", "Another board")
        for name in ("Latency and SNR to the reference", "Latency and engine size")
    ]
    assert [figure.title for figure in plots.tradeoffs(document(session()), "k")] == [
        "Latency and SNR to the reference",
        "Latency and engine size",
    ]


def test_an_engine_that_was_measured_again_is_shown_once_as_measured_last() -> None:
    again = session_of(
        [report(NAMES[0], 30.0, run_id="later", measured_at="2026-11-27T10:00:00+00:00")], {NAMES[0]: product()}
    )
    for sessions in ((session(), again), (again, session())):
        size = plots.tradeoffs(document(*sessions), "k")[-1]
        times = {row[1]: float(row[2]) for row in size.table.rows}
        assert set(times) == set(NAMES) and 25 < times[NAMES[0]] < 35 and 50 < times[NAMES[1]] < 60


@pytest.mark.parametrize(
    ("metrics", "title"),
    [(("mIoU", "mIoU"), "Latency and mIoU"), (("mIoU", "mAP"), "Latency and SNR to the reference")],
)
def test_accuracies_are_compared_if_they_are_measured_alike(metrics: tuple[str, str], title: str) -> None:
    """A mIoU of 50 % is not worse than a mAP of 60 %."""
    products = {
        name: product(name, accuracy=Accuracy(metric=metric, value=0.5, images=9))
        for name, metric in zip(NAMES, metrics, strict=True)
    }
    measured = session_of([report(NAMES[0], 60.0), report(NAMES[1], 56.0)], products)
    assert [each.title for each in plots.tradeoffs(document(measured), "k")] == [title, "Latency and engine size"]


def test_a_single_best_engine_is_named() -> None:
    *_, size = plots.tradeoffs(document(session()), "k")
    assert size.note == "No. 2 has the best figures of both."


def test_numbers_of_close_markers_do_not_cover_each_other() -> None:
    canvas = Canvas(226)
    plots._number(canvas, [(100.0, 100.0), (103.0, 100.0), (106.0, 102.0), (200.0, 50.0)])
    places = [tuple(float(part.split(f' {axis}="')[1].split('"')[0]) for axis in "xy") for part in canvas.parts]
    assert len(places) == 4
    assert all(math.dist(one, other) > 11 for one, other in itertools.combinations(places, 2))


def test_modules_are_shown_as_deep_as_there_is_room() -> None:
    def profile(blocks: int) -> LayerProfile:
        names = [f"stages.{stage}.blocks.{block}" for stage in range(3) for block in range(blocks)]
        layers = tuple(LayerTime(name=name, kind="Conv", module=name, ms=1.0) for name in names)
        return LayerProfile(layers=layers, runs=1, profiled_ms=1.0)

    assert {group.name for group in _modules(profile(8))} == {f"stages.{stage}.blocks" for stage in range(3)}
    assert len(_modules(profile(4))) == 12  # each block
