"""Sections of what is measured only if it was requested: limit, layers, throughput, sustained run."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from edgevit.latency.document.blocks import Block, Figure, Table, Text
from edgevit.latency.document.content import Entry, Session
from edgevit.latency.document.figures import ABSENT, figure
from edgevit.latency.document.svg import WIDTH, Canvas
from edgevit.latency.report import LAYERS, ROOFLINE, SUSTAINED, THROUGHPUT
from edgevit.latency.roofline import Roofline
from edgevit.runtimes.layer_profile import GroupTime, LayerProfile, joined
from edgevit.types import Interval

_MOST_GROUPS = 12  # of a picture; the rest are one bar
_LONGEST = 10  # layers in the table
_BAR = 15.0
_NAME_LENGTH = 46


def part_sections(session: Session, key: str) -> Iterator[tuple[str, tuple[Block, ...]]]:
    """Yield the title and the blocks of each part that was measured."""
    parts = (
        ("Limit of the machine", _limits(session.entries)),
        ("Layers", _layers(session.entries, key)),
        ("Throughput", _throughputs(session.entries)),
        ("Sustained load", _sustained(session.entries)),
    )
    for title, blocks in parts:
        if found := tuple(blocks):
            yield title, found


def _limits(entries: Sequence[Entry]) -> Iterator[Block]:
    found = [(entry, limit) for entry in entries if (limit := entry.report.roofline) is not None]
    if found:
        header = ("engine", "limit ms", "bound by", "arithmetic ms", "memory ms", "reached")
        yield Table(header, tuple(_limit_row(entry, limit) for entry, limit in found))
        rates = dict.fromkeys(_rate_row(limit) for _, limit in found)
        yield Table(("products by", "GMAC/s", "copy GB/s"), tuple(rates))
        yield Text(
            "No inference is faster than its multiply-adds at the best rate of a matrix product, or than reading its "
            "weights and inputs and writing its outputs once; both rates were measured in the same session."
        )
    yield from _problems(entries, ROOFLINE)


def _problems(entries: Sequence[Entry], part: str) -> Iterator[Text]:
    """Yield why a study that was requested has no result."""
    for entry in entries:
        if reason := entry.report.study_problems.get(part):
            yield Text(f"{entry.title}: unknown ({reason})")


def _limit_row(entry: Entry, limit: Roofline) -> tuple[str, ...]:
    times = figure(limit.limit_ms), limit.bound, figure(limit.compute_ms), figure(limit.memory_ms)
    return (entry.title, *times, f"{100 * limit.fraction(entry.report.p50_ms):.0f} %")


def _rate_row(limit: Roofline) -> tuple[str, ...]:
    rates = ", ".join(f"{name} {figure(rate / 1e9)}" for name, rate in limit.macs_per_s.items())
    return limit.runtime, rates, figure(limit.copy_bytes_per_s / 1e9)


def _layers(entries: Sequence[Entry], key: str) -> Iterator[Block]:
    for number, entry in enumerate(entries):
        profile = entry.report.layers
        if profile is None:
            continue
        yield Text(
            f"{entry.title}: the layers take {figure(profile.sum_ms)} ms together; a profiled run takes "
            f"{figure(profile.profiled_ms)} ms, an undisturbed one {figure(entry.report.p50_ms)} ms."
        )
        yield _bars(_modules(profile), f"{key}-modules-{number}", f"{entry.title}, by PyTorch module")
        yield _bars(profile.by_kind(), f"{key}-kinds-{number}", f"{entry.title}, by kind of operator")
        longest = [(layer.name, layer.kind, figure(layer.ms)) for layer in profile.longest(_LONGEST)]
        yield Table(("longest layers", "kind", "ms"), tuple(longest), left=2)
    yield from _problems(entries, LAYERS)


def _modules(profile: LayerProfile) -> tuple[GroupTime, ...]:
    """Return the times of the modules as deep as a picture has room for."""
    depths = max((layer.module.count(".") + 1 for layer in profile.layers), default=1)
    groups = [profile.by_module(depth) for depth in range(1, depths + 1)]
    return next((found for found in reversed(groups) if len(found) <= _MOST_GROUPS), groups[0])


def _bars(groups: Sequence[GroupTime], key: str, title: str) -> Figure:
    shown, rest = list(groups[:_MOST_GROUPS]), groups[_MOST_GROUPS:]
    if rest:
        shown.append(joined(rest))
    canvas = Canvas(2 * _BAR * len(shown) + 8)
    longest = max(group.fraction for group in shown) or 1.0
    for index, group in enumerate(shown):
        top = 4 + 2 * _BAR * index
        name = group.name if len(group.name) <= _NAME_LENGTH else f"...{group.name[3 - _NAME_LENGTH :]}"
        canvas.text(4, top + 10, name)
        canvas.text(WIDTH - 4, top + 10, f"{figure(group.ms)} ms, {100 * group.fraction:.0f} %", anchor="end")
        canvas.rectangle((4, top + 14), (WIDTH - 8) * group.fraction / longest, _BAR - 5, "bar s0")
    rows = [
        (group.name, str(group.layers), figure(group.ms), f"{100 * group.fraction:.1f} %", _rate(group))
        for group in groups
    ]
    description = "; ".join(f"{group.name} {100 * group.fraction:.0f} %" for group in shown)
    table = Table(("name", "layers", "ms", "share", "G multiply-adds/s"), tuple(rows))
    return Figure(title, canvas.render(key, title, description), table)


def _rate(group: GroupTime) -> str:
    return "" if group.macs_per_s is None else figure(group.macs_per_s / 1e9)


def _throughputs(entries: Sequence[Entry]) -> Iterator[Block]:
    rows = [
        (
            entry.title,
            str(point.batch),
            str(point.streams),
            figure(point.images_per_s),
            "best" if point == found.best else "",
        )
        for entry in entries
        if (found := entry.report.throughput) is not None
        for point in found.points
    ]
    if rows:
        yield Table(("engine", "batch", "streams", "images/s", ""), tuple(rows))
    yield from _problems(entries, THROUGHPUT)


def _sustained(entries: Sequence[Entry]) -> Iterator[Block]:
    rows = [
        (
            entry.title,
            f"{run.duration_s} s",
            figure(run.first_per_s),
            figure(run.last_per_s),
            f"{run.change:.3f}",
            "yes" if run.steady else "no",
            _clock(run.first_clock_mhz),
            _clock(run.last_clock_mhz),
            figure(run.hottest_c),
        )
        for entry in entries
        if (run := entry.report.sustained) is not None
    ]
    if rows:
        rates = ("images/s at first", "images/s at last", "last / first", "steady")
        yield Table(("engine", "duration", *rates, "clock MHz at first", "at last", "hottest C"), tuple(rows))
    yield from _problems(entries, SUSTAINED)


def _clock(clock: Interval | None) -> str:
    return ABSENT if clock is None else f"{clock.low:.0f} to {clock.high:.0f}"
