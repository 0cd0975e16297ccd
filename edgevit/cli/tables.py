"""Tables and formatting that several commands share. rich is imported when the first table is made."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.table import Table

    from edgevit.runtimes.parity import OutputParity


def make_table(title: str, *columns: str, left: int = 1) -> Table:
    """Return an empty table whose first `left` columns are left-aligned and the others right-aligned."""
    from rich.table import Table

    table = Table(title=title, title_justify="left", caption_justify="left")
    for index, column in enumerate(columns):
        table.add_column(column, justify="left" if index < left else "right", overflow="fold")
    return table


def fixed(value: float | None, digits: int) -> str:
    """Return a number with `digits` decimals, or "-" for None."""
    return "-" if value is None else f"{value:.{digits}f}"


def general(value: float | None) -> str:
    """Return a number as short as possible, or "-" for None."""
    return "-" if value is None else f"{value:g}"


def parity_table(results: Sequence[OutputParity]) -> Table:
    """Return one row for each stage and kind of input that was compared with PyTorch."""
    from edgevit.precisions import get_policy

    table = make_table("Parity with PyTorch", "stage", "input", "batch", "max error / std", "cosine", "SNR dB", "top-1",
                       "verdict")  # fmt: skip
    for result in results:
        agreement = "" if result.agreement is None else f"{result.agreement:.0%}"
        table.add_row(
            result.stage,
            f"{len(result.max_abs)} {result.kind}",
            str(result.batch),
            f"{result.max_abs_of_std:.1e}",
            f"{min(result.cosine):.7f}",
            f"{result.snr_db:.0f}",
            agreement,
            "pass" if result.passed else f"FAIL: {'; '.join(result.failures)}",
        )
    precisions = dict.fromkeys(result.precision for result in results)
    table.caption = "; ".join(f"{precision}: {get_policy(precision).tolerance}" for precision in precisions)
    return table
