"""Lines and tables of the studies of `edgevit latency`: limit, layers, throughput, sustained run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from edgevit.cli.console import Part
from edgevit.cli.tables import fixed, make_table
from edgevit.latency.names import short_names

if TYPE_CHECKING:
    from rich.table import Table

    from edgevit.latency.report import LatencyReport
    from edgevit.latency.roofline import Roofline
    from edgevit.latency.sustained import SustainedRun
    from edgevit.latency.throughput import Throughput
    from edgevit.runtimes.layer_profile import GroupTime, LayerProfile

_TITLES = {"sustained": "sustained run"}  # of studies that are not called like their field
_LONGEST = 10  # rows of a table of layers
_MODULE_DEPTH = 2
_NOTABLE_FRACTION = 1e-3  # of the multiply-adds; a precision with fewer is left out


def study_parts(reports: Sequence[LatencyReport]) -> list[Part]:
    """Return the results of the requested studies, or why there are none."""
    parts: list[Part] = []
    for name, report in zip(short_names([report.name for report in reports]), reports, strict=True):
        if report.roofline is not None:
            parts.append(_limit(name, report.roofline, report.p50_ms))
        if report.layers is not None:
            parts += _layers(name, report.layers, report.p50_ms)
        if report.throughput is not None:
            parts.append(_throughput(name, report.throughput))
        if report.sustained is not None:
            parts.append(_sustained(name, report.sustained))
        problems = report.study_problems.items()
        parts += [f"note: {name}: no {_TITLES.get(part, part)} ({reason})" for part, reason in problems]
    parts += dict.fromkeys(_rates(report.roofline) for report in reports if report.roofline is not None)
    return parts


def _limit(name: str, limit: Roofline, p50_ms: float) -> str:
    return (
        f"limit: {name} {limit.limit_ms:.2f} ms, {limit.bound} bound, {limit.fraction(p50_ms):.0%} reached "
        f"({_work(limit)})"
    )


def _work(limit: Roofline) -> str:
    total = sum(limit.macs.values())
    shown = {name: count for name, count in limit.macs.items() if count >= _NOTABLE_FRACTION * total}
    counts = ", ".join(f"{count / 1e9:.3g} G {precision}" for precision, count in shown.items())
    return f"multiply-adds {counts}, {limit.moved_bytes / 1e6:.3g} MB"


def _rates(limit: Roofline) -> str:
    rates = ", ".join(f"{precision} {rate / 1e9:.3g} G/s" for precision, rate in limit.macs_per_s.items())
    return f"best rates: {limit.runtime} multiply-adds {rates}; copies {limit.copy_bytes_per_s / 1e9:.3g} GB/s"


def _layers(name: str, profile: LayerProfile, p50_ms: float) -> list[Part]:
    overhead = profile.profiled_ms / p50_ms - 1
    return [
        _group_table(f"{name}: time by module", "module", profile.by_module(_MODULE_DEPTH)),
        _group_table(f"{name}: time by operator", "operator", profile.by_kind()),
        _longest_table(name, profile),
        (
            f"layers: {name}: {len(profile.layers)} layers take {profile.sum_ms:.2f} ms of p50 {p50_ms:.2f} ms; "
            f"a profiled run takes {profile.profiled_ms:.2f} ms ({overhead:+.0%}), median of {profile.runs}"
        ),
    ]


def _group_table(title: str, column: str, groups: Sequence[GroupTime]) -> Table:
    from edgevit.runtimes.layer_profile import joined

    table = make_table(title, column, "layers", "ms", "share", "G MAC/s")
    for group in groups[:_LONGEST]:
        rate = "" if group.macs_per_s is None else f"{group.macs_per_s / 1e9:.3g}"
        table.add_row(group.name, str(group.layers), fixed(group.ms, 3), f"{group.fraction:.0%}", rate)
    rest = groups[_LONGEST:]
    if rest:
        others = joined(rest)
        table.add_row(f"({others.name})", str(others.layers), fixed(others.ms, 3), f"{others.fraction:.0%}", "")
    return table


def _longest_table(name: str, profile: LayerProfile) -> Table:
    table = make_table(f"{name}: longest layers", "layer", "operator", "ms", "share", left=2)
    for layer in profile.longest(_LONGEST):
        table.add_row(layer.name, layer.kind, fixed(layer.ms, 3), f"{layer.ms / (profile.sum_ms or 1):.0%}")
    return table


def _throughput(name: str, found: Throughput) -> str:
    best = found.best
    tried = ", ".join(f"{point.batch}x{point.streams}: {point.images_per_s:.1f}" for point in found.points)
    return (
        f"throughput: {name} {best.images_per_s:.1f} images/s with batch {best.batch} and {best.streams} at once "
        f"(batch x streams: {tried})"
    )


def _sustained(name: str, run: SustainedRun) -> str:
    clocks = ""
    if run.first_clock_mhz is not None and run.last_clock_mhz is not None:
        first, last = run.first_clock_mhz, run.last_clock_mhz
        clocks = f"; clock {first.low:.0f} to {first.high:.0f}, then {last.low:.0f} to {last.high:.0f} MHz"
    heat = "" if run.hottest_c is None else f"; hottest sensor {run.hottest_c:.0f} C"
    return (
        f"sustained: {name} {run.first_per_s:.1f} images/s in the first {run.window_s} s, {run.last_per_s:.1f} in the "
        f"last of {run.duration_s} s ({run.change - 1:+.1%}): {'steady' if run.steady else 'NOT steady'}{clocks}{heat}"
    )
