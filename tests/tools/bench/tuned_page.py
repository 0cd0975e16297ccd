"""The section of docs/bench.md on the engines that `edgevit tune` finds."""

from __future__ import annotations

from collections.abc import Iterable

from tests.tools.bench.candidates import BY_NAME
from tests.tools.bench.tables import full_title, speed, versions
from tests.tools.bench.tuned_rows import Entry, TunedRow

_HEAD = """
## The tuned engine against the best of the peers

`make bench-tuned` gives `edgevit tune` a time limit, calibration images and labeled images, and measures the engine
that it recommends, with its settings, beside the peers with their defaults, in one interleaved run. All quantizers
calibrate on the same images. An engine counts if it loses at most one point of top-1 against PyTorch on the labeled
images; the speed is the time of the fastest peer that counts divided by the tuned engine's.
"""


def tuned_section(rows: Iterable[TunedRow]) -> str:
    """Return the section; empty without rows."""
    found = sorted(rows, key=lambda row: (row.processor, row.threads, row.model))
    return _HEAD + "".join(map(_run, found)) if found else ""


def _run(row: TunedRow) -> str:
    lines = [_line(f"**edgevit tune: {row.engine}**", row.tuned), *_peer_lines(row)]
    missing = "".join(f"* {_title(name)}: {reason}\n" for name, reason in row.missing.items())
    return f"""
### `{row.model}`, {row.processor}, {row.threads} {"thread" if row.threads == 1 else "threads"}

**{_verdict(row)}**

{row.day}; {versions([row])}; {row.limit_s:.0f} s of search; weights {row.weights}; \
{row.calibration_images} images of calibration; PyTorch's top-1 is {row.torch_top1:.2%} of {row.images} images; \
other processes used {row.busy_others:.0%} of the cores.

| engine | median ms | top-1 | counts | time over the tuned engine's |
|---|--:|--:|---|--:|
{"".join(lines)}""" + (f"\nNot measured:\n\n{missing}" if missing else "")


def _verdict(row: TunedRow) -> str:
    """Return the result in one sentence."""
    best = row.best_peer
    if not row.tuned.counts:
        return "The tuned engine loses more than a point, and is not compared."
    if best is None:
        return "No peer counts."
    return f"Speed {speed(best.slowdown)} against the best peer: {_title(best.name)}."


def _peer_lines(row: TunedRow) -> Iterable[str]:
    """Yield the peers, the fastest first."""
    for name, entry in sorted(row.peers.items(), key=lambda peer: peer[1].p50_ms):
        yield _line(_title(name), entry)


def _line(title: str, entry: Entry) -> str:
    ratio = "1" if entry.slowdown is None else speed(entry.slowdown)
    cells = (title, f"{entry.p50_ms:.3f}", f"{entry.top1:.2%}", "yes" if entry.counts else "no", ratio)
    return f"| {' | '.join(cells)} |\n"


def _title(name: str) -> str:
    """Return the title of a peer with its precision."""
    candidate = BY_NAME[name]
    return f"{full_title(candidate)}, {candidate.precision}"
