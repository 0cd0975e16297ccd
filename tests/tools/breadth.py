"""Export architectures of timm and write the table in docs/breadth.md: `python -m tests.tools.breadth [NAME...]`.

Each architecture runs in a process of its own, with random weights that keep its activations alive, to ONNX Runtime
and OpenVINO with parity. Without names, `--count` architectures are taken, one of each of timm's modules, the smallest
first. timm is needed. The operators that torchvision looks for at its import are defined here if PyTorch does not have
them: on a CPU build of PyTorch the public wheel of torchvision cannot be imported otherwise.
"""

from __future__ import annotations

import argparse
import importlib
import json
import math
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from edgevit.errors import EdgevitError
from edgevit.formats import get_format
from edgevit.models.initialization import randomize
from edgevit.models.loading import from_module
from edgevit.pipeline import run as pipeline
from edgevit.pipeline.report import ExportReport
from edgevit.runtimes.base import BatchRange, BuildOptions
from edgevit.runtimes.parity import ParityReport
from edgevit.types import PRECISIONS, Precision

PAGE = Path(__file__).parents[2] / "docs" / "breadth.md"
FORMATS = ("ort", "openvino")
SEED = 0
_OPERATORS = ("nms", "qnms")  # of torchvision, registered by its extension


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """The export of one architecture; the figures are None if it did not get that far."""

    name: str
    reason: str  # why it failed; empty if it passed
    million_parameters: float | None = None
    nodes: int | None = None
    error_of_std: float | None = None  # largest of all stages
    float32_error_of_std: float | None = None
    elapsed_s: float = 0.0

    @property
    def row(self) -> str:
        figures = (
            _number(self.million_parameters, ".1f"),
            _number(self.nodes, "d"),
            _number(self.error_of_std, ".0e"),
            _number(self.float32_error_of_std, ".0e"),
            f"{self.elapsed_s:.0f}",
        )
        return f"| `{self.name}` | {' | '.join(figures)} | {_cell(self.reason) or 'passed'} |"


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """How each architecture is exported."""

    formats: tuple[str, ...] = FORMATS
    precision: Precision = "fp32"
    dynamic_batch: bool = False


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help="architectures of timm")
    parser.add_argument("--count", type=int, default=100, metavar="N", help="number of architectures (default: 100)")
    parser.add_argument("--fmt", default=",".join(FORMATS), help=f"formats (default: {','.join(FORMATS)})")
    parser.add_argument("--precision", choices=PRECISIONS[:2], default="fp32")
    parser.add_argument("--dynamic-batch", action="store_true", help="export with a batch of 1 to 4")
    parser.add_argument("--timeout", type=float, default=600.0, metavar="S", help="for each (default: 600)")
    parser.add_argument("--page", type=Path, default=PAGE, help="the file to write")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        sys.stdout.write("\n" + json.dumps(asdict(export(arguments.child, Request(**json.loads(arguments.names[0]))))))
        return
    request = Request(
        formats=tuple(arguments.fmt.split(",")),
        precision=arguments.precision,
        dynamic_batch=arguments.dynamic_batch,
    )
    outcomes = []
    for name in arguments.names or smallest_of_each_module(arguments.count):
        outcomes.append(export_in_child(name, request, timeout_s=arguments.timeout))
        sys.stderr.write(outcomes[-1].row + "\n")
        arguments.page.write_text(page(outcomes, request), "utf-8")  # after each: a run takes hours


def import_timm() -> Any:
    """Import timm, also beside a PyTorch without torchvision's operators."""
    library = torch.library.Library("torchvision", "FRAGMENT")  # type: ignore[no-untyped-call]
    for name in _OPERATORS:
        if not hasattr(torch.ops.torchvision, name):
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")  # type: ignore[no-untyped-call]
    timm: Any = importlib.import_module("timm")

    timm.torchvision_operators = library  # they last as long as the library object
    return timm


def smallest_of_each_module(count: int) -> list[str]:
    """Return the smallest architecture of each of timm's modules, the smallest first, up to `count`."""
    timm = import_timm()
    smallest = []
    for module in timm.list_modules():
        sizes = [(_parameters(timm, name), name) for name in timm.list_models(module=module)]
        smallest.append(min(sizes, default=(math.inf, "")))
    return [name for size, name in sorted(smallest)[:count] if math.isfinite(size)]


def _parameters(timm: Any, name: str) -> float:
    """Return the number of parameters, without memory for them; infinity if the model cannot be created so."""
    try:
        with torch.device("meta"):
            return float(sum(each.numel() for each in timm.create_model(name, pretrained=False).parameters()))
    except Exception:  # some constructors compute with values
        return math.inf


def export_in_child(name: str, request: Request, *, timeout_s: float) -> Outcome:
    """Export one architecture in a process of its own, which may crash, hang or run out of memory."""
    command = [sys.executable, "-m", "tests.tools.breadth", "--child", name, json.dumps(asdict(request))]
    start = time.monotonic()
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=timeout_s, check=False)
        lines = done.stdout.strip().splitlines() or [""]
        content = json.loads(lines[-1]) if lines[-1].startswith("{") else None
        last = (done.stderr.strip().splitlines() or [f"status {done.returncode}"])[-1]
        outcome = Outcome(name=name, reason=f"crashed: {last}") if content is None else Outcome(**content)
    except subprocess.TimeoutExpired:
        outcome = Outcome(name=name, reason=f"not finished within {timeout_s:.0f} s")
    return replace(outcome, elapsed_s=time.monotonic() - start)


def export(name: str, request: Request) -> Outcome:
    """Export one architecture in this process."""
    module = import_timm().create_model(name, pretrained=False).eval()
    randomize(module, seed=SEED)
    outcome = Outcome(name=name, reason="", million_parameters=sum(each.numel() for each in module.parameters()) / 1e6)
    try:
        with tempfile.TemporaryDirectory() as out:
            report = _export(module, request, Path(out))
    except EdgevitError as error:
        return _with_errors(replace(outcome, reason=str(error)), getattr(error, "report", None))
    return _with_errors(replace(outcome, nodes=report.bundles[0].nodes), report.parity)


def _export(module: Any, request: Request, out: Path) -> ExportReport:
    model = from_module(module, example_input=torch.zeros(1, *module.pretrained_cfg["input_size"]))
    dynamic = BatchRange(1, 2, 4) if request.dynamic_batch else None
    config = pipeline.ExportConfig(
        formats=tuple(get_format(fmt).name for fmt in request.formats),
        options=BuildOptions(precision=request.precision, dynamic_batch=dynamic),
        out=out,
        latency=False,
    )
    return pipeline.run(model, config)


def _with_errors(outcome: Outcome, report: ParityReport | None) -> Outcome:
    results = report.results if report is not None else ()
    return replace(
        outcome,
        error_of_std=max((result.max_abs_of_std for result in results), default=None),
        float32_error_of_std=max((result.float32_error_of_std or 0.0 for result in results), default=None),
    )


def page(outcomes: Sequence[Outcome], request: Request) -> str:
    """Return the page: how many passed, and a row for each architecture."""
    passed = sum(not outcome.reason for outcome in outcomes)
    batch = "a batch of 1 to 4" if request.dynamic_batch else "a batch of 1"
    formats = " and ".join(get_format(fmt).title for fmt in request.formats)
    head = f"""# Architectures of timm

{passed} of {len(outcomes)} pass: exported in {request.precision} with {batch} to {formats}, with random weights, and
compared with PyTorch.

`python -m tests.tools.breadth` writes this page. Errors are the largest of all stages, in standard deviations of the
output; PyTorch's own is that of its float32 against float64.

| architecture | million parameters | nodes | error | PyTorch's own | seconds | result |
|---|--:|--:|--:|--:|--:|---|
"""
    return head + "".join(f"{outcome.row}\n" for outcome in _in_order(outcomes))


def _in_order(outcomes: Iterable[Outcome]) -> list[Outcome]:
    return sorted(outcomes, key=lambda outcome: (not outcome.reason, outcome.name))


def _number(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)


def _cell(text: str) -> str:
    """Return text in one line of a table."""
    return re.sub(r"\s+", " ", text).replace("|", "\\|")


if __name__ == "__main__":
    main()
