"""Tables and phrases that several commands share. rich is imported when the first table is made."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.table import Table

    from edgevit.cli.console import Part
    from edgevit.latency.statistics import Ratio
    from edgevit.runtimes.output_parity import OutputParity


def make_table(title: str | None, *columns: str, left: int = 1) -> Table:
    """Return an empty table whose first `left` columns are left-aligned and the others right-aligned.

    The header is bold, in the terminal's own color: it is readable on a light and on a dark background.
    """
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    table = Table(
        title=title, title_justify="left", title_style="bold", box=SIMPLE_HEAD, show_edge=False, pad_edge=False
    )
    for index, column in enumerate(columns):
        table.add_column(column, justify="left" if index < left else "right", overflow="fold")
    return table


def fixed(value: float | None, digits: int) -> str:
    """Return a number with `digits` decimals, or "-" for None."""
    return "-" if value is None else f"{value:.{digits}f}"


def general(value: float | None) -> str:
    """Return a number as short as possible, or "-" for None."""
    return "-" if value is None else f"{value:g}"


def megabytes(size_bytes: int) -> str:
    """Return a file size such as "114 MB" or "4.9 MB"."""
    size_mb = size_bytes / 1e6
    return f"{size_mb:.0f} MB" if size_mb >= 10 else f"{size_mb:.1f} MB"


def notes(texts: Iterable[str]) -> list[str]:
    """Return one line for each different text."""
    return [f"note: {text}" for text in dict.fromkeys(texts)]


def notes_by_name(warnings: Mapping[str, Iterable[str]]) -> list[str]:
    """Return one line for each different warning; it starts with the names unless it applies to all of several."""
    names: dict[str, list[str]] = {}
    for name, texts in warnings.items():
        for text in texts:
            names.setdefault(text, []).append(name)
    shared = [text for text, group in names.items() if len(group) == len(warnings) > 1]
    return notes([*shared, *(f"{', '.join(group)}: {text}" for text, group in names.items() if text not in shared)])


def speed_phrase(ratio: Ratio, reference: str) -> str:
    """Return a ratio of times in words: "1.30x faster than PyTorch"."""
    if ratio.verdict == "faster":
        return f"{1 / ratio.value:.2f}x faster than {reference}"
    if ratio.verdict == "slower":
        return f"{ratio.value:.2f}x slower than {reference}"
    return f"no verdict on the speed against {reference} (time ratio {ratio_cell(ratio)})"


def ratio_cell(ratio: Ratio | None) -> str:
    """Return a ratio of times with its interval."""
    if ratio is None:
        return ""
    interval = "" if ratio.interval is None else f" ({ratio.interval.low:.2f} to {ratio.interval.high:.2f})"
    return f"{ratio.value:.2f}{interval}"


def parity_phrase(results: Sequence[OutputParity]) -> str:
    """Return the outcome of a parity check in words, with its worst figure."""
    if not results:
        return "parity not checked"
    outcome = "passed" if all(result.passed for result in results) else "FAILED"
    own = [result.float32_error_of_std or 0.0 for result in results if result.precision == "fp32"]
    fp32 = len(own) == len(results) and max(own) > 0
    return f"parity {outcome} ({worst_error(results)}{f', float32 itself {max(own):.0e}' if fp32 else ''})"


def worst_error(results: Sequence[OutputParity]) -> str:
    """Return the figure that decides: the largest error for fp32, the lowest signal-to-noise ratio otherwise."""
    lower = [result for result in results if result.precision != "fp32"]
    if lower:
        return f"SNR {min(result.snr_db for result in lower):.0f} dB"
    return f"max error {max(result.max_abs_of_std for result in results):.0e} std"


def parity_parts(results: Sequence[OutputParity], *, detailed: bool) -> list[Part]:
    """Return the parity table and the tolerances."""
    from edgevit.precisions import get_policy

    precisions = dict.fromkeys(result.precision for result in results)
    tolerances = [f"tolerance {precision}: {get_policy(precision).tolerance}" for precision in precisions]
    return [parity_table(results, detailed=detailed), *tolerances]


def _agreement_cell(result: OutputParity) -> str:
    if result.pixels is not None:
        return f"{result.pixels.all:.2%} of pixels"
    return "" if result.agreement is None else f"{result.agreement:.0%}"


def parity_table(results: Sequence[OutputParity], *, detailed: bool = True) -> Table:
    """Return one row for each stage, output and kind of input that was compared with the reference."""
    more = ("batch", "cosine") if detailed else ()
    measures = ("max error / std", "float32 itself", "SNR dB", "top-1", *more)
    several = len({result.output for result in results}) > 1
    table = make_table("Parity", "stage", *(("output",) if several else ()), "input", *measures, "verdict")
    for result in results:
        own = result.float32_error_of_std
        table.add_row(
            result.stage,
            *((result.output,) if several else ()),
            f"{len(result.max_abs)} {result.kind}",
            f"{result.max_abs_of_std:.1e}",
            "" if result.allowed_error_of_std is None or own is None else f"{own:.1e}",
            f"{result.snr_db:.0f}",
            _agreement_cell(result),
            *((str(result.batch), f"{min(result.cosine):.7f}") if detailed else ()),
            "pass" if result.passed else f"FAIL: {'; '.join(result.failures)}",
        )
    return table
