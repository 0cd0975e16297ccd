"""The pictures of a report: distribution of the samples, drift with clock and temperature, trade-offs."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from edgevit.latency.document.blocks import Figure, Table
from edgevit.latency.document.content import Document, Entry, Session
from edgevit.latency.document.figures import figure
from edgevit.latency.document.svg import WIDTH, Canvas, Point, Scale, series_class
from edgevit.latency.report import LatencyReport
from edgevit.latency.sampling.channel import Kind

_LEFT, _RIGHT = 44.0, 352.0  # edges of the plotting area
_BINS = 70
_MAX_POINTS = 160  # points of a line: more are not seen, and make the file large
_MAX_LINES = 4  # lines of a panel
_MAX_RUG = 60
_ROW = 40.0
_PANEL = 74.0
_NUMBER_SIZE = 11.0  # size of a marker's number, with its distance from others
_FEW_NAMES = 34  # characters that fit beside a figure


@dataclass(frozen=True, slots=True)
class _Line:
    """A line of a panel over time; `index` chooses its color."""

    name: str
    points: tuple[Point, ...]  # seconds, value
    index: int


def distribution(session: Session, key: str) -> Figure:
    """Return the histograms of all samples, one row for each engine, on one logarithmic axis."""
    entries = session.entries
    everything = [value for entry in entries for value in (min(entry.report.samples_ms), max(entry.report.samples_ms))]
    bottom = 6 + _ROW * len(entries)
    canvas = Canvas(bottom + 36)
    scale = Scale.around(everything, (8, _RIGHT), is_log=True, margin=0.02)
    _x_axis(canvas, scale, top=6, bottom=bottom, title="time per run, ms (logarithmic)")
    for index, entry in enumerate(entries):
        _histogram(canvas, scale, entry, index, base=6 + _ROW * (index + 1) - 4)
    rows = [
        (
            entry.title,
            *(figure(float(value)) for value in np.percentile(entry.report.samples_ms, (0, 10, 50, 90, 99, 100))),
        )
        for entry in entries
    ]
    header = ("engine", "fastest ms", "p10 ms", "median ms", "p90 ms", "p99 ms", "slowest ms")
    spans = "; ".join(f"{row[0]}: median {row[3]} ms, {row[1]} to {row[6]} ms" for row in rows)
    return Figure(
        "Distribution of the samples",
        canvas.render(key, "Distribution of the samples of each engine", spans),
        Table(header, tuple(rows)),
        "The line marks the median; ticks below are the slowest hundredth of the runs. No sample is removed.",
    )


def _histogram(canvas: Canvas, scale: Scale, entry: Entry, index: int, *, base: float) -> None:
    samples, style = np.asarray(entry.report.samples_ms), series_class(index)
    edges = np.geomspace(scale.low, scale.high, _BINS + 1)
    counts, _ = np.histogram(samples, edges)
    heights = (_ROW - 20) * counts / max(1, counts.max())
    steps = [(scale(edges[bin_ + side]), base - heights[bin_]) for bin_ in range(_BINS) for side in (0, 1)]
    canvas.polygon([(steps[0][0], base), *steps, (steps[-1][0], base)], f"area {style}")
    for value in np.sort(samples)[::-1][: min(_MAX_RUG, len(samples) // 100)]:
        canvas.line((scale(value), base), (scale(value), base + 4), f"rug {style}")
    median = scale(entry.report.p50_ms)
    canvas.line((median, base - _ROW + 18), (median, base), "median")
    at_left = median > WIDTH / 2
    name = f"{_short(entry.title)}, {figure(entry.report.p50_ms)} ms"
    canvas.text(8 if at_left else _RIGHT, base - _ROW + 16, name, anchor="start" if at_left else "end")


def drift(session: Session, key: str) -> Figure:
    """Return the time of each round against the engine's median, with clocks and temperatures under it."""
    panels = [
        ("time, % of median", [_pace(entry, index) for index, entry in enumerate(session.entries)]),
        ("clock, MHz", _clock_lines(session)),
        ("temperature, C", _channel_lines(session.first, "temperature")),
    ]
    panels = [(title, [line for line in lines if line.points]) for title, lines in panels]
    panels = [(title, lines) for title, lines in panels if lines]
    end_s = max(seconds for _, lines in panels for line in lines for seconds, _ in line.points) or 1.0
    canvas = Canvas(len(panels) * _PANEL + 38)
    time = Scale(0.0, end_s, _LEFT, _RIGHT)
    for number, (title, lines) in enumerate(panels):
        _panel(canvas, time, title, lines, top=4 + number * _PANEL)
    _x_axis(canvas, time, top=4, bottom=4 + len(panels) * _PANEL - 6, title="seconds since the first round", grid=False)
    rows = [
        (title, line.name, *(figure(value) for value in _ends(line.points)))
        for title, lines in panels
        for line in lines
    ]
    description = "; ".join(
        f"{row[1]}, {row[0]}: {row[2]} at first, {row[3]} at last, {row[4]} to {row[5]}" for row in rows
    )
    return Figure(
        "Drift over time",
        canvas.render(key, "Time per run during the measurement, with clocks and temperatures", description),
        Table(("quantity", "line", "first", "last", "lowest", "highest"), tuple(rows), left=2),
        "Colors as in the distribution; clocks and temperatures were read between timed runs."
        if len(panels) > 1
        else "Colors as in the distribution. This machine reported no clock and no temperature.",
    )


def _ends(points: Sequence[Point]) -> tuple[float, float, float, float]:
    values = [value for _, value in points]
    return values[0], values[-1], min(values), max(values)


def _pace(entry: Entry, index: int) -> _Line:
    report = entry.report
    firsts = [next(group)[0] for _, group in itertools.groupby(enumerate(report.rounds), key=lambda pair: pair[1])]
    points = [
        (report.starts_ns[first] / 1e9, 100 * float(ms) / report.p50_ms)
        for first, ms in zip(firsts, report.round_ms, strict=True)
    ]
    return _Line(entry.title, _thinned(points), index)


def _clock_lines(session: Session) -> list[_Line]:
    report = session.first
    if report.trace is None or session.on_gpu:
        return _channel_lines(report, "clock", without="cpu" if session.on_gpu else "")
    cores = [series for series in report.trace.of_kind("clock") if series.channel.name.startswith("cpu")]
    points = [
        (start / 1e9, max(values))
        for sample, start in enumerate(report.trace.starts_ns)
        if start >= 0 and (values := [value for each in cores for value in each.known([sample])])
    ]
    return [_Line("fastest core", _thinned(points), 0)]


def _channel_lines(report: LatencyReport, kind: Kind, *, without: str = "\0") -> list[_Line]:
    """Return the channels of a kind with the highest values, which are the ones that matter."""
    trace = report.trace
    if trace is None:
        return []
    lines = []
    for series in trace.of_kind(kind):
        if without and series.channel.name.startswith(without):
            continue
        pairs = zip(trace.starts_ns, series.values, strict=True)
        points = [(start / 1e9, value) for start, value in pairs if value is not None and start >= 0]
        if points:
            lines.append((max(value for _, value in points), series.channel.name, points))
    highest = sorted(lines, key=lambda line: -line[0])[:_MAX_LINES]
    return [_Line(name, _thinned(points), index) for index, (_, name, points) in enumerate(highest)]


def _thinned(points: Sequence[Point]) -> tuple[Point, ...]:
    """Return at most _MAX_POINTS points: the medians of groups of neighbors."""
    size = -(-len(points) // _MAX_POINTS) or 1
    groups = [points[start : start + size] for start in range(0, len(points), size)]
    return tuple((group[0][0], float(np.median([value for _, value in group]))) for group in groups)


def _panel(canvas: Canvas, time: Scale, title: str, lines: Sequence[_Line], *, top: float) -> None:
    bottom = top + _PANEL - 10
    values = [value for line in lines for _, value in line.points]
    scale = Scale.around(values, (bottom, top + 14), margin=0.1)
    canvas.text(_LEFT, top + 9, title)
    for tick in scale.ticks(3):
        canvas.line((_LEFT, scale(tick)), (_RIGHT, scale(tick)), "grid")
        canvas.text(_LEFT - 4, scale(tick) + 4, f"{tick:g}", anchor="end")
    for line in lines:
        style = f"trace {series_class(line.index)}"
        canvas.polyline([(time(seconds), scale(value)) for seconds, value in line.points], style)


def tradeoffs(document: Document, key: str) -> list[Figure]:
    """Return latency against accuracy (or closeness to PyTorch) and against size, for the quantities that are known.

    Each device has pictures of its own, since its times say nothing about another's.
    """
    devices = list(dict.fromkeys(session.device for session in document.sessions))
    found = []
    for number, device in enumerate(devices):
        entries = _latest(document, device)
        owner = f" on {device}" if len(devices) > 1 else ""
        found += _tradeoffs_of(entries, f"{key}{number}", owner)
    return found


def _latest(document: Document, device: str) -> list[Entry]:
    """Return the engines of bundles that were measured on a device, each as it was measured last."""
    sessions = sorted(
        (session for session in document.sessions if session.device == device),
        key=lambda session: session.first.measured_at,
    )
    entries = [entry for session in sessions for entry in session.entries if entry.product is not None]
    return list({entry.name: entry for entry in entries}.values())


def _tradeoffs_of(entries: Sequence[Entry], key: str, owner: str) -> list[Figure]:
    accuracies = [
        _tradeoff(entries, f"{key}-{metric}", f"{metric}, %", partial(_accuracy, metric), more_is_better=True)
        for metric in dict.fromkeys(filter(None, map(_metric, entries)))
    ]
    snr = _tradeoff(entries, f"{key}-snr", "SNR to the reference, dB", _snr, more_is_better=True)
    size = _tradeoff(entries, f"{key}-size", "engine size, MB", _size, more_is_better=False)
    found = [*(accuracies if any(accuracies) else [snr]), size]
    return [replace(each, title=f"{each.title}{owner}") for each in found if each is not None]


def _metric(entry: Entry) -> str | None:
    accuracy = None if entry.product is None else entry.product.accuracy
    return None if accuracy is None else accuracy.metric


def _accuracy(metric: str, entry: Entry) -> float | None:
    accuracy = None if entry.product is None else entry.product.accuracy
    return None if accuracy is None or accuracy.metric != metric else 100 * accuracy.value


def _snr(entry: Entry) -> float | None:
    parity = None if entry.product is None else entry.product.parity
    return None if parity is None else parity.snr_db


def _size(entry: Entry) -> float | None:
    return None if entry.product is None else entry.product.engine_bytes / 1e6


def _tradeoff(
    entries: Sequence[Entry], key: str, title: str, value_of: Callable[[Entry], float | None], *, more_is_better: bool
) -> Figure | None:
    """Return one picture; None with fewer than two engines to compare."""
    known = [(entry, value) for entry in entries if (value := value_of(entry)) is not None]
    if len(known) < 2:
        return None
    times, values = [entry.ms_per_image for entry, _ in known], [value for _, value in known]
    best = _pareto(times, [-value if more_is_better else value for value in values])
    canvas = Canvas(226)
    x = Scale.around(times, (_LEFT, _RIGHT), is_log=True, margin=0.1)
    y = Scale.around(values, (184, 12), margin=0.12)
    _x_axis(canvas, x, top=6, bottom=190, title="p50 per image, ms (logarithmic)")
    canvas.vertical_text(9, 98, title)
    for tick in y.ticks(4):
        canvas.line((_LEFT, y(tick)), (_RIGHT, y(tick)), "grid")
        canvas.text(_LEFT - 4, y(tick) + 4, f"{tick:g}", anchor="end")
    _frontier(canvas, [(x(times[index]), y(values[index])) for index in best])
    places = [(x(time_ms), y(value)) for time_ms, value in zip(times, values, strict=True)]
    for index, place in enumerate(places):
        canvas.marker(place, index)
    _number(canvas, places)
    rows = [
        (str(index + 1), entry.name, figure(times[index]), figure(values[index]), "yes" if index in best else "no")
        for index, (entry, _) in enumerate(known)
    ]
    description = "; ".join(f"{row[0]} {row[1]}: {row[2]} ms, {row[3]}" for row in rows)
    table = Table(("no.", "engine", "p50 ms per image", title, "best trade-off"), tuple(rows), left=2)
    name = f"Latency and {title.partition(',')[0]}"
    note = "The line joins the engines that none beats in both."
    if len(best) == 1:
        note = f"No. {best[0] + 1} has the best figures of both."
    return Figure(name, canvas.render(key, name, description), table, note)


def _number(canvas: Canvas, places: Sequence[Point]) -> None:
    """Write the number of each marker beside it, where it covers neither another number nor another marker."""
    taken = list(places)
    for index, (x, y) in enumerate(places):
        beside = [(x + dx, y + dy) for dy in (-10.0, 10.0, 0.0, -21.0, 21.0) for dx in (12.0, -12.0)]
        free = [place for place in beside if all(math.dist(place, other) > _NUMBER_SIZE for other in taken)]
        center = (free or beside)[0]
        taken.append(center)
        canvas.text(center[0], center[1] + 4, str(index + 1), anchor="middle", style="strong")


def _pareto(times: Sequence[float], costs: Sequence[float]) -> list[int]:
    """Return the indices of the points that no other beats in both, by time."""
    best: list[int] = []
    for index in sorted(range(len(times)), key=lambda index: (times[index], costs[index])):
        if not best or costs[index] < costs[best[-1]]:
            best.append(index)
    return best


def _frontier(canvas: Canvas, points: Sequence[Point]) -> None:
    """Draw a step line: between two engines, the faster one's value applies."""
    steps = [points[0]]
    for (_, before), (x, y) in itertools.pairwise(points):
        steps += [(x, before), (x, y)]
    canvas.polyline(steps, "frontier")


def _x_axis(canvas: Canvas, scale: Scale, *, top: float, bottom: float, title: str, grid: bool = True) -> None:
    for tick in scale.ticks(5):
        if grid:
            canvas.line((scale(tick), top), (scale(tick), bottom), "grid")
        canvas.text(scale(tick), bottom + 14, f"{tick:g}", anchor="middle")
    canvas.line((scale.start, bottom), (scale.end, bottom), "axis")
    canvas.text((scale.start + scale.end) / 2, bottom + 29, title, anchor="middle")


def _short(name: str) -> str:
    return name if len(name) <= _FEW_NAMES else f"{name[:14]}...{name[-_FEW_NAMES + 17 :]}"
