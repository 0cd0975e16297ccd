"""A kernel plan as tables: every kernel, the totals, and two plans side by side. Each says that it is a proxy."""

from __future__ import annotations

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from edgevit.runtimes.tensorrt_rtx.kernels import PROXY, Kernel, KernelPlan, PlanComparison

# The totals in people's words.
_TITLES = {
    "kernels": "kernels",
    "bytes_read": "MB read",
    "bytes_written": "MB written",
    "bytes_weights": "MB of weights read",
    "copies": "copies (move, reorder, convert)",
    "shift_kernels": "kernels of spatial shifts alone",
    "fused_shifts": "kernels that a spatial shift rides in",
    "norm_kernels": "kernels with a part of a norm",
    "fused_attentions": "attentions in one kernel",
    "unfused_softmaxes": "softmaxes outside of fused attention",
    "constant_moves": "moves of a few constant bytes (not counted above)",
}


def plan_parts(plan: KernelPlan) -> list[RenderableType]:
    """All that a plan has to show: its kernels, its totals, and what a reader must know before using it."""
    notes = [Text(f"warning: {warning}") for warning in plan.warnings]
    return [plan_table(plan), totals_table(plan), *notes, Text(f"note: {PROXY}")]


def plan_table(plan: KernelPlan) -> Table:
    """Every kernel, in the order in which they run."""
    table = _table(f"Kernels of {plan.file}, {plan.target}", "kernel", "from", "what", "type", "kB read", "kB written",
                   left=3)  # fmt: skip
    for kernel in plan.launched:
        table.add_row(
            _short_name(kernel),
            "\n".join(kernel.modules) or "-",
            _what(kernel),
            kernel.precision,
            _kilobytes(kernel.bytes_read),
            _kilobytes(kernel.bytes_written),
        )
    return table


def totals_table(plan: KernelPlan) -> Table:
    """The plan in numbers."""
    table = _table("Totals", "total", plan.target)
    for name, title in _TITLES.items():
        table.add_row(title, _total(name, getattr(plan.totals, name)))
    table.add_row("MB moved (read and written)", f"{plan.totals.bytes_moved / 1e6:.1f}")
    products = ", ".join(f"{count} {precision}" for precision, count in plan.precisions.items())
    table.add_row("convolutions and products by type", products or "none")
    table.caption = f"compiled by TensorRT-RTX {plan.compiler}"
    return table


def comparison_parts(first: KernelPlan, second: KernelPlan) -> list[RenderableType]:
    """Two plans, the modules in which they differ, and what a reader must know. Raises UsageError as `compare` does."""
    comparison = first.compare(second)
    warnings = [Text(f"warning: {plan.file}: {text}") for plan in (first, second) for text in plan.warnings]
    parts: list[RenderableType] = [comparison_table(first, second)]
    if comparison.modules:
        parts.append(_modules_table(comparison))
    return [*parts, *warnings, Text(f"note: {PROXY}")]


def comparison_table(first: KernelPlan, second: KernelPlan) -> Table:
    """The totals of two plans side by side. Raises UsageError where they do not compare."""
    comparison = first.compare(second)
    table = _table(f"Kernel plans, {first.target}", "total", first.file, second.file, "change")
    moved = ("bytes_moved", first.totals.bytes_moved, second.totals.bytes_moved)
    for name, one, other in (*comparison.totals, moved):
        title = _TITLES.get(name, "MB moved (read and written)")
        table.add_row(title, _total(name, one), _total(name, other), _change(name, one, other))
    table.caption = f"compiled by TensorRT-RTX {first.compiler}"
    return table


def _modules_table(comparison: PlanComparison) -> Table:
    table = _table("Modules with another number of kernels", "module", comparison.first.file, comparison.second.file)
    for module, one, other in comparison.modules:
        table.add_row(module or "(no module)", str(one), str(other))
    return table


def _what(kernel: Kernel) -> str:
    """What a kernel is, where that is worth a word."""
    names = {
        "copy": kernel.is_copy,
        "shift": kernel.is_shift or kernel.fuses_shift,
        "attention": kernel.is_attention,
        "softmax": kernel.is_softmax,
        "norm": kernel.is_norm,
        "product": kernel.multiplies and not kernel.is_attention,
    }
    return " ".join(name for name, holds in names.items() if holds)


def _short_name(kernel: Kernel) -> str:
    """The compiler's operations, or the name without its number."""
    return " ".join(kernel.operations) or kernel.name.rpartition("_myl")[0] or kernel.name


def _total(name: str, value: int) -> str:
    return f"{value / 1e6:.1f}" if name.startswith("bytes") else str(value)


def _change(name: str, first: int, second: int) -> str:
    if first == second:
        return "="
    difference = f"{(second - first) / 1e6:+.1f}" if name.startswith("bytes") else f"{second - first:+d}"
    return difference if not first else f"{difference} ({second / first - 1:+.0%})"


def _kilobytes(size: int) -> str:
    return f"{size / 1e3:.1f}"


def _table(title: str, *columns: str, left: int = 1) -> Table:
    table = Table(title=title, title_justify="left", caption_justify="left")
    for index, column in enumerate(columns):
        table.add_column(column, justify="left" if index < left else "right", overflow="fold")
    return table
