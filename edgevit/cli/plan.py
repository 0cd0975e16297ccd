"""`edgevit plan`: list the kernels that TensorRT-RTX compiles a graph into, without a GPU."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from edgevit.cli import argument_types
from edgevit.cli.console import Console, Part
from edgevit.cli.parser import Arguments, Command
from edgevit.cli.tables import make_table

if TYPE_CHECKING:
    from rich.table import Table

    from edgevit.runtimes.tensorrt_rtx.kernels import Kernel, KernelPlan, PlanComparison

_TITLES = {  # of the totals of a plan
    "kernels": "kernels",
    "bytes_read": "MB read",
    "bytes_written": "MB written",
    "bytes_weights": "MB of weights read",
    "copies": "copies (move, reorder, convert)",
    "shift_kernels": "kernels with only a spatial shift",
    "fused_shifts": "kernels with a fused spatial shift",
    "norm_kernels": "kernels with a part of a norm",
    "fused_attentions": "fused attentions",
    "unfused_softmaxes": "softmaxes outside fused attention",
    "constant_moves": "moves of a few constant bytes (not counted above)",
}
_BYTES_MOVED = "MB moved (read and written)"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `edgevit plan`."""
    parser.add_argument(
        "file", type=argument_types.path, metavar="FILE.onnx|BUNDLE", help="an ONNX file, or a bundle folder"
    )
    parser.add_argument(
        "--sm",
        type=int,
        default=86,
        metavar="N",
        help="compute capability (default: 86; the compiler does not support 87, Jetson Orin)",
    )
    parser.add_argument(
        "--batch", type=int, default=1, metavar="N", help="batch size to plan for if it is dynamic (default: 1)"
    )
    parser.add_argument(
        "--compare", type=argument_types.path, metavar="OTHER", help="compare with another file or bundle"
    )


def run(arguments: Arguments, console: Console) -> int:
    """Print the kernels of one graph, or compare those of two."""
    from edgevit.bundles.bundle import model_file
    from edgevit.runtimes.tensorrt_rtx.kernels import plan

    files = [model_file(path) for path in (arguments.file, arguments.compare) if path is not None]
    first, *others = (plan(file, compute_capability=arguments.sm, batch=arguments.batch) for file in files)
    if others:
        comparison = first.compare(others[0])
        console.result(*comparison_parts(comparison))
        console.finish(comparison.to_json())
    else:
        console.result(*plan_parts(first))
        console.finish(first.to_json())
    return 0


def plan_parts(plan: KernelPlan) -> list[Part]:
    """Return the kernels of a plan, its totals, and the warnings that a reader needs to interpret it."""
    from edgevit.runtimes.tensorrt_rtx.kernels import PROXY

    return [plan_table(plan), totals_table(plan), *(f"warning: {text}" for text in plan.warnings), f"note: {PROXY}"]


def plan_table(plan: KernelPlan) -> Table:
    """Return one row for each kernel, in order of execution."""
    table = make_table(f"Kernels of {plan.file}, {plan.target}", "kernel", "module", "kind", "type", "kB read",
                       "kB written", left=3)  # fmt: skip
    for kernel in plan.launched:
        table.add_row(
            _short_name(kernel),
            "\n".join(kernel.modules) or "-",
            _kind(kernel),
            kernel.precision,
            _kilobytes(kernel.bytes_read),
            _kilobytes(kernel.bytes_written),
        )
    return table


def totals_table(plan: KernelPlan) -> Table:
    """Return the totals over all kernels."""
    table = make_table("Totals", "total", plan.target)
    for name, title in _TITLES.items():
        table.add_row(title, _total(name, getattr(plan.totals, name)))
    table.add_row(_BYTES_MOVED, f"{plan.totals.bytes_moved / 1e6:.1f}")
    matmuls = ", ".join(f"{count} {precision}" for precision, count in plan.precisions.items())
    table.add_row("convolutions and matmuls by type", matmuls or "none")
    table.add_row("compiler", f"TensorRT-RTX {plan.compiler}")
    return table


def comparison_parts(comparison: PlanComparison) -> list[Part]:
    """Return two plans side by side and the modules that differ."""
    from edgevit.runtimes.tensorrt_rtx.kernels import PROXY

    plans = (comparison.first, comparison.second)
    warnings = [f"warning: {plan.file}: {text}" for plan in plans for text in plan.warnings]
    modules = [_modules_table(comparison)] if comparison.modules else []
    return [comparison_table(comparison), *modules, *warnings, f"note: {PROXY}"]


def comparison_table(comparison: PlanComparison) -> Table:
    """Return the totals of two plans side by side."""
    first, second = comparison.first, comparison.second
    table = make_table(f"Kernel plans, {first.target}", "total", first.file, second.file, "change")
    moved = ("bytes_moved", first.totals.bytes_moved, second.totals.bytes_moved)
    for name, one, other in (*comparison.totals, moved):
        title = _TITLES.get(name, _BYTES_MOVED)
        table.add_row(title, _total(name, one), _total(name, other), _change(name, one, other))
    table.add_row("compiler", f"TensorRT-RTX {first.compiler}", "", "")
    return table


def _modules_table(comparison: PlanComparison) -> Table:
    table = make_table(
        "Modules with a different number of kernels", "module", comparison.first.file, comparison.second.file
    )
    for module, one, other in comparison.modules:
        table.add_row(module or "(no module)", str(one), str(other))
    return table


def _kind(kernel: Kernel) -> str:
    """Return the noteworthy properties of a kernel."""
    kinds = {
        "copy": kernel.is_copy,
        "shift": kernel.is_shift or kernel.fuses_shift,
        "attention": kernel.is_attention,
        "softmax": kernel.is_softmax,
        "norm": kernel.is_norm,
        "matmul": kernel.multiplies and not kernel.is_attention,
    }
    return " ".join(name for name, applies in kinds.items() if applies)


def _short_name(kernel: Kernel) -> str:
    """Return the compiler's operations, or the kernel's name without its number."""
    return " ".join(kernel.operations) or kernel.name.rpartition("_myl")[0] or kernel.name


def _total(name: str, value: int) -> str:
    return f"{value / 1e6:.1f}" if name.startswith("bytes") else str(value)


def _change(name: str, first: int, second: int) -> str:
    if first == second:
        return "="
    difference = f"{(second - first) / 1e6:+.1f}" if name.startswith("bytes") else f"{second - first:+d}"
    return difference if not first else f"{difference} ({second / first - 1:+.0%})"


def _kilobytes(size_bytes: int) -> str:
    return f"{size_bytes / 1e3:.1f}"


COMMAND = Command(
    name="plan",
    help="list the kernels that TensorRT-RTX's compiler makes; a proxy, needs no GPU",
    add_arguments=add_arguments,
    run=run,
)
