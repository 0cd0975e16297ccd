"""Write docs/bench.md from the results."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from edgevit.types import PRECISIONS, Precision
from tests.tools.bench import rows as result_rows
from tests.tools.bench import tuned_rows
from tests.tools.bench.candidates import CANDIDATES, OPENVINO, ORT, TORCH, Candidate, Kind
from tests.tools.bench.rows import Row, Speedup
from tests.tools.bench.tables import RUNTIMES, full_title, speed, table, versions
from tests.tools.bench.tuned_page import tuned_section
from tests.tools.bench.tuned_rows import TunedRow

PAGE = Path(__file__).parents[3] / "docs" / "bench.md"
_HEAD = """# Benchmarks against plain exports and other quantizers

`make bench` measures these tables and writes this page. All engines of a model run in one process, in interleaved
rounds, at batch 1 with their runtime's default session settings but for the number of threads. Speed is the peer's
time divided by edgevit's, paired by round: above 1 edgevit is faster. Intervals are of 99 % confidence, and contain 2 %
for the layout of memory. SNR is that of the logits against PyTorch's on 8 random crops of the photos of the package,
which nothing was calibrated on; 32 other crops are the calibration. Weights are random unless stated, which are harder
to quantize than trained ones.

* **torch.onnx.export**: with `dynamo=True`, as it is, in ONNX Runtime or OpenVINO.
* **openvino.convert_model**: of the module itself. **torch.compile**: Inductor with its defaults.
* **NNCF**: of OpenVINO's conversion, with the transformer model type if it has a softmax.
* **quantize_static**: of the plain ONNX file after `quant_pre_process`; QDQ, uint8 activations, int8 weights with a
  scale a channel, 8 bits or, with the reduced range, 7.
* **Memory**: edgevit maps its engines in huge pages ([tuning.md](tuning.md)); peers keep those of their runtimes.
* **bf16**: OpenVINO's default on processors that have it, for plain models and for the float operators of NNCF's and
  edgevit's int8 models. Plain models in fp32 are told to run in it; edgevit's run in the precision that they are named
  after.
* **of the bound**: edgevit's time divided by that of the multiply-adds alone, attention's products counted, at the best
  rate of a matrix product that the runtime reaches here; 1 is the bound. Those of the model are counted: with
  AVX-512, 3x3 convolutions (VT-ResNet) save a third of them.
* **avx2 only**, **avx_vnni only**: a larger processor whose other instructions are hidden from all candidates
  (`python -m tests.tools.smaller_cpu avx2 make bench`): the kernels of the smaller processor, at the clock of this one.

edgevit's int8 weights have the range that `edgevit tune` takes on the processor: 8 bits with VNNI, the safe range
without it, since such a processor computes full-range int8 wrongly (see [quantization.md](quantization.md)). A peer
with the full range is in the table with the SNR that it has.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """A line of the summary: an engine of edgevit against the fastest of its peers, by name."""

    title: str
    own: str
    peers: tuple[str, ...]


def _comparisons(runtime: str) -> tuple[Comparison, ...]:
    title, int8 = RUNTIMES[runtime], f"{runtime}-int8"
    fp32, bf16 = _peers("plain", runtime, "fp32"), _peers("plain", runtime, "bf16")
    quantizers = _peers("quantizer", runtime, "int8")
    return (
        Comparison(title=f"fp32, {title}: against the best plain way", own=runtime, peers=fp32),
        Comparison(title=f"fp32, {title}: against torch.compile", own=runtime, peers=_peers("plain", TORCH, "fp32")),
        Comparison(title=f"bf16, {title}: against edgevit's fp32", own=f"{runtime}-bf16", peers=(runtime,)),
        Comparison(title=f"bf16, {title}: against the best plain way", own=f"{runtime}-bf16", peers=bf16),
        Comparison(title=f"int8, {title}: against edgevit's fp32", own=int8, peers=(runtime,)),
        Comparison(title=f"int8, {title}: against the best quantizer", own=int8, peers=quantizers),
    )


def _peers(kind: Kind, runtime: str, precision: Precision) -> tuple[str, ...]:
    wanted = (kind, runtime, precision)
    return tuple(each.name for each in CANDIDATES if (each.kind, each.runtime, each.precision) == wanted)


def write(path: Path = PAGE, *, results: Path = result_rows.RESULTS, tuned: Path = tuned_rows.RESULTS) -> None:
    """Write the page of the rows in these files."""
    text = page(result_rows.read(results).values(), tuned_rows.read(tuned).values())
    path.write_text(text, "utf-8")


def page(rows: Iterable[Row], tuned: Iterable[TunedRow] = ()) -> str:
    """Return the page: the tuned engines, then for each processor and number of threads a summary and the models."""
    groups: dict[tuple[str, int], list[Row]] = {}
    for row in sorted(rows, key=lambda row: (row.processor, row.threads, row.model)):
        groups.setdefault((row.processor, row.threads), []).append(row)
    sections = (_section(processor, threads, found) for (processor, threads), found in groups.items())
    return "".join((_HEAD, tuned_section(tuned), *sections))


def _section(processor: str, threads: int, rows: Sequence[Row]) -> str:
    days = sorted({row.day for row in rows})
    busy = max(row.busy_others for row in rows)
    head = f"""
## {processor}, {threads} {"thread" if threads == 1 else "threads"}

{" to ".join(dict.fromkeys([days[0], days[-1]]))}; {versions(rows)}; \
other processes used at most {busy:.0%} of the cores.

| comparison | geometric mean of the speed | models | slowest model |
|---|--:|--:|---|
"""
    summary = "".join(
        _summary_line(comparison, rows) for runtime in (ORT, OPENVINO) for comparison in _comparisons(runtime)
    )
    return head + summary + _fp32_table(rows) + _lower_tables(rows) + _missing(rows)


def _summary_line(comparison: Comparison, rows: Sequence[Row]) -> str:
    found = {row.model: best for row in rows if (best := against_best(row, comparison)) is not None}
    if not found:
        return ""
    slowest = min(found, key=lambda model: found[model].value)
    cells = (
        comparison.title,
        speed(geometric_mean(list(found.values()))),
        str(len(found)),
        f"`{slowest}` {speed(found[slowest])}",
    )
    return f"| {' | '.join(cells)} |\n"


def against_best(row: Row, comparison: Comparison) -> Speedup | None:
    """Return the speed over the fastest of the peers: the smallest one."""
    speedups = row.speedups.get(comparison.own, {})
    return min((ratio for name, ratio in speedups.items() if name in comparison.peers), default=None)


def geometric_mean(speedups: Sequence[Speedup]) -> Speedup:
    """Return the geometric mean with its interval.

    The models were measured independently: distances of the bounds from the values, as logarithms, add in quadrature
    (Zou and Donner 2008, as in latency/statistics.py).
    """
    count = len(speedups)
    mean = sum(math.log(each.value) for each in speedups) / count
    below = math.hypot(*(math.log(each.value / each.low) for each in speedups)) / count
    above = math.hypot(*(math.log(each.high / each.value) for each in speedups)) / count
    return Speedup(*(math.exp(each) for each in (mean, mean - below, mean + above)))


def _fp32_table(rows: Sequence[Row]) -> str:
    shown = [each for each in CANDIDATES if each.precision == "fp32" and any(each.name in row.figures for row in rows)]
    titles = [full_title(each) for each in shown]
    own = [each for each in shown if each.kind == "ours"]
    bounds = [f"{RUNTIMES[each.runtime]} of the bound" for each in own]
    lines = [
        [
            f"`{row.model}`",
            f"{row.million_parameters:.1f}",
            *(f"{row.figures[each.name].p50_ms:.2f}" if each.name in row.figures else "-" for each in shown),
            *(_of_bound(row, each) for each in own),
            f"{min((row.figures[each.name].snr_db for each in own if each.name in row.figures), default=0):.0f}",
        ]
        for row in rows
    ]
    return table("### fp32: median ms", ["model", "M parameters", *titles, *bounds, "edgevit's SNR dB"], lines)


def _of_bound(row: Row, candidate: Candidate) -> str:
    figures = row.figures.get(candidate.name)
    return "-" if figures is None or not figures.bound_ms else f"{figures.p50_ms / figures.bound_ms:.2f}"


def _lower_tables(rows: Sequence[Row]) -> str:
    return "".join(_lower_table(rows, precision) for precision in PRECISIONS if precision != "fp32")


def _lower_table(rows: Sequence[Row], precision: Precision) -> str:
    """Return the table of a lower precision; empty if nothing was measured in it."""
    engines = [each for each in CANDIDATES if each.precision == precision]
    shown = [each for each in engines if any(each.name in row.figures for row in rows)]
    if not shown:
        return ""
    titles = [full_title(each) for each in shown]
    lines = [[f"`{row.model}`", row.weights, *(_time_and_snr(row, each) for each in shown)] for row in rows]
    title = f"### {precision}: median ms, and SNR in dB"
    return table(title, ["model", "weights", *titles], lines)


def _time_and_snr(row: Row, candidate: Candidate) -> str:
    figures = row.figures.get(candidate.name)
    return "-" if figures is None else f"{figures.p50_ms:.2f} at {figures.snr_db:.1f}"


def _missing(rows: Sequence[Row]) -> str:
    lines = [f"* `{row.model}`, {name}: {reason}\n" for row in rows for name, reason in row.missing.items()]
    return f"\nNot measured:\n\n{''.join(lines)}" if lines else ""
