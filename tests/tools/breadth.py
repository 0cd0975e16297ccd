"""Export architectures of timm and others, and write the table in docs/breadth.md: `python -m tests.tools.breadth`.

Each architecture runs in a process of its own, with random weights that keep its activations alive, compared with
PyTorch at each stage. `--runs` names what is tried: fp32 in ONNX Runtime and OpenVINO with a fixed batch and with a
dynamic one, fp16, int8; all but the first share one capture, which has a dynamic batch. Results are appended to a file
as they come, and an export that is in the file is not repeated: an interrupted run goes on where it was. Without names
the list of `tests.tools.breadth_models` is taken; its packages are needed (pip install 'edgevit[breadth]').
"""

from __future__ import annotations

import argparse
import contextlib
import json
import multiprocessing
import os
import re
import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timezone
from pathlib import Path

import torch
from torch import nn

from edgevit.errors import EdgevitError, UsageError
from edgevit.export.capture import capture
from edgevit.export.graph import OnnxGraph
from edgevit.formats import get_format
from edgevit.images import Preprocessing
from edgevit.models.initialization import randomize
from edgevit.models.loading import LoadedModel, from_module
from edgevit.pipeline import run as pipeline
from edgevit.pipeline.export_run import StageTimer
from edgevit.pipeline.report import ExportReport
from edgevit.pipeline.source import source_of
from edgevit.runtimes.base import BatchRange, BuildOptions
from edgevit.runtimes.parity import ParityReport
from edgevit.types import Array, Precision
from tests.tools import breadth_models
from tests.tools.conditioning import settle_statistics
from tests.tools.crops import crops

PAGE = Path(__file__).parents[2] / "docs" / "breadth.md"
RESULTS = Path(__file__).with_name("breadth.jsonl")
SEED = 0
_CROPS = 16  # calibration inputs for int8
_CRASHED, _TIMED_OUT = "crashed", "not finished"
_UNDECIDED = (_CRASHED, _TIMED_OUT)  # how the reasons begin that say nothing of the architecture
_OUTCOMES = "outcomes"  # the file that a child appends its results to


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """A way in which each architecture is exported."""

    title: str
    formats: tuple[str, ...]
    precision: Precision = "fp32"
    dynamic_batch: bool = False


RUNS = {
    "fp32": Run(title="fixed batch", formats=("ort", "openvino")),
    "fp16": Run(title="fp16", formats=("onnx",), precision="fp16", dynamic_batch=True),
    "int8": Run(title="int8", formats=("ort",), precision="int8", dynamic_batch=True),
    "dynamic": Run(title="dynamic batch", formats=("ort", "openvino"), dynamic_batch=True),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """One export of one architecture; the figures are None if it did not get that far."""

    name: str
    run: str
    reason: str  # why it failed; empty if it passed
    million_parameters: float | None = None
    nodes: int | None = None
    error_of_std: float | None = None  # largest of all stages
    float32_error_of_std: float | None = None
    elapsed_s: float = 0.0
    day: str = ""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "names", nargs="*", metavar="NAME", help="timm:NAME, torchvision:NAME, transformers:CLASS or smp:CLASS"
    )
    parser.add_argument("--runs", default=",".join(RUNS), help=f"what is tried (default: {','.join(RUNS)})")
    parser.add_argument(
        "--timeout", type=float, default=600.0, metavar="S", help="for each architecture (default: 600)"
    )
    parser.add_argument("--results", type=Path, default=RESULTS, help="the file that results are appended to")
    parser.add_argument("--page", type=Path, default=PAGE, help="the file to write")
    parser.add_argument("--page-only", action="store_true", help="write the page of the results so far")
    arguments = parser.parse_args()
    outcomes = read(arguments.results)
    if arguments.page_only:
        arguments.page.write_text(page(outcomes), "utf-8")
        return
    _import_packages()
    done = {(outcome.name, outcome.run) for outcome in outcomes}
    for name in arguments.names or breadth_models.default_names():
        runs = [run for run in arguments.runs.split(",") if (name, run) not in done]
        for outcome in export_in_child(name, runs, timeout_s=arguments.timeout) if runs else ():
            outcomes.append(outcome)
            with arguments.results.open("a", encoding="utf-8") as file:
                file.write(json.dumps(asdict(outcome)) + "\n")
            sys.stderr.write(f"{outcome.run} {_row(name, {outcome.run: outcome})}\n")
    arguments.page.write_text(page(outcomes), "utf-8")


def _import_packages() -> None:
    """Import the packages before the children are forked, so that none of them spends seconds on it.

    A capture imports what PyTorch's exporter needs.
    """
    torch.set_num_threads(1)
    breadth_models.import_timm()
    for package in ("transformers", "segmentation_models_pytorch", "onnxruntime", "openvino"):
        with contextlib.suppress(ImportError):
            __import__(package)
    capture(nn.Conv2d(3, 1, 1), (torch.zeros(2, 3, 4, 4),), dynamic_batch=True)


def read(path: Path) -> list[Outcome]:
    """Return the results in a file, the last of each export; empty if there is no file yet."""
    lines = path.read_text("utf-8").splitlines() if path.is_file() else []
    found = [Outcome(**json.loads(line)) for line in lines]
    return list({(outcome.name, outcome.run): outcome for outcome in found}.values())


def export_in_child(name: str, runs: Sequence[str], *, timeout_s: float) -> list[Outcome]:
    """Export one architecture in a process of its own, which may crash, hang or run out of memory.

    `timeout_s` is the time for all runs together. Those that come after a crash are tried in another process.
    """
    context = multiprocessing.get_context("fork")
    with tempfile.TemporaryDirectory() as folder:
        process = context.Process(target=_child, args=(name, runs, Path(folder)))
        process.start()
        process.join(timeout_s)
        outcomes = _outcomes_in(Path(folder))
        timed_out = process.exitcode is None
        if len(outcomes) < len(runs):
            failed = _timed_out(timeout_s) if timed_out else _crashed(Path(folder))
            outcomes.append(Outcome(name=name, run=runs[len(outcomes)], reason=failed))
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid or 0, signal.SIGKILL)  # with what it started
        process.join()
    today = datetime.now(timezone.utc).date().isoformat()
    dated = [replace(outcome, day=today) for outcome in outcomes]
    remaining = runs[len(outcomes) :]
    return dated + (export_in_child(name, remaining, timeout_s=timeout_s) if remaining else [])


def _timed_out(timeout_s: float) -> str:
    return f"{_TIMED_OUT} within {timeout_s:.0f} s"


def _crashed(folder: Path) -> str:
    log = (folder / "log").read_text("utf-8", errors="replace").strip() if (folder / "log").exists() else ""
    return f"{_CRASHED}: {(log.splitlines() or ['no message'])[-1]}"


def _child(name: str, runs: Sequence[str], folder: Path) -> None:
    os.setsid()
    log = os.open(folder / "log", os.O_WRONLY | os.O_CREAT)
    os.dup2(log, 1)
    os.dup2(log, 2)
    for outcome in export(name, runs, folder):
        with (folder / _OUTCOMES).open("a", encoding="utf-8") as file:
            file.write(json.dumps(asdict(outcome)) + "\n")


def _outcomes_in(folder: Path) -> list[Outcome]:
    file = folder / _OUTCOMES
    return [Outcome(**json.loads(line)) for line in file.read_text("utf-8").splitlines()] if file.exists() else []


def export(name: str, runs: Sequence[str], folder: Path) -> Iterator[Outcome]:
    """Export one architecture in this process, once for each run; a capture serves all runs of its kind."""
    module, shape = breadth_models.create(name)
    randomize(module.eval(), seed=SEED)
    settle_statistics(module, _photos_and_noise(shape))
    parameters = sum(each.numel() for each in module.parameters()) / 1e6
    captures: dict[bool, OnnxGraph] = {}
    for run in runs:
        start = time.monotonic()
        outcome = Outcome(name=name, run=run, reason="", million_parameters=round(parameters, 2))
        try:
            model = from_module(module, example_input=torch.zeros(1, *shape), name="model")
            report = _export(model, RUNS[run], captures, folder)
            outcome = _with_errors(replace(outcome, nodes=report.bundles[0].nodes), report.parity)
        except EdgevitError as error:
            outcome = _with_errors(replace(outcome, reason=str(error)), getattr(error, "report", None))
        yield replace(outcome, elapsed_s=time.monotonic() - start)


def _photos_and_noise(shape: tuple[int, ...]) -> torch.Tensor:
    """Return inputs of the kinds that parity is judged on, but others."""
    channels, height, width = shape
    photos = torch.from_numpy(crops(Preprocessing(input_size=(channels, height, width)), _CROPS, seed=SEED))
    return torch.cat([photos, torch.randn(_CROPS // 2, *shape, generator=torch.Generator().manual_seed(SEED + 1))])


def _export(model: LoadedModel, run: Run, captures: dict[bool, OnnxGraph], out: Path) -> ExportReport:
    dynamic = BatchRange(1, 2, 4) if run.dynamic_batch else None
    config = pipeline.ExportConfig(
        formats=run.formats,
        options=BuildOptions(precision=run.precision, dynamic_batch=dynamic),
        calib=_crops(model) if run.precision == "int8" else None,
        out=out,
        explain=False,
        latency=False,
    )
    if run.dynamic_batch not in captures:
        captures[run.dynamic_batch] = source_of(model).capture(StageTimer(), config.options)
    return pipeline.run(model, config, captured=captures[run.dynamic_batch])


def _crops(model: LoadedModel) -> dict[str, Array]:
    """Return calibration inputs: random crops of the photos of the package, prepared as the model asks for."""
    preprocessing = model.preprocessing
    if preprocessing is None:
        raise UsageError("calibration requires an image input")
    return {model.input_names[0]: crops(preprocessing, _CROPS, seed=SEED)}


def _with_errors(outcome: Outcome, report: ParityReport | None) -> Outcome:
    results = report.results if report is not None else ()
    return replace(
        outcome,
        error_of_std=max((result.max_abs_of_std for result in results), default=None),
        float32_error_of_std=max((result.float32_error_of_std or 0.0 for result in results), default=None),
    )


def page(outcomes: Sequence[Outcome]) -> str:
    """Return the page: how many passed in each run, and a row for each architecture, failures first."""
    by_name: dict[str, dict[str, Outcome]] = {}
    for outcome in outcomes:
        by_name.setdefault(outcome.name, {})[outcome.run] = outcome
    days = sorted({outcome.day for outcome in outcomes if outcome.day})
    period = " to ".join(dict.fromkeys(days[:1] + days[-1:]))
    counts = _count("fp32, fixed or dynamic batch", RUNS["fp32"], _first_in_fp32(by_name)) + "".join(
        _count(_full_title(run), run, [outcome for outcome in outcomes if outcome.run == name])
        for name, run in RUNS.items()
    )
    titles = " | ".join(run.title for run in RUNS.values())
    of_timm = sum(name.startswith("timm:") for name in by_name)
    others, listed = len(by_name) - of_timm, len(breadth_models.default_names())
    head = f"""# Architectures of other packages

{of_timm} architectures of timm and {others} of other packages so far; {listed} are listed.
Random weights that keep activations alive, compared with PyTorch at each stage; {period}. Where PyTorch's own float32
is more than 1e-4 std off with them, BatchNorms have the statistics of photos and noise.

| export | formats | passed | of |
|---|---|--:|--:|
{counts}
{_verdicts([outcome for outcome in outcomes if outcome.run == "int8"])}
`python -m tests.tools.breadth` writes this page. Nodes, errors and seconds are those of fp32; the machine had other
work too. Errors are the largest of all stages, in standard deviations of the output; PyTorch's own is that of its
float32 against float64. Fp16 and int8 take a dynamic batch, except for the first 30 architectures. Int8 is calibrated
on 16 crops of photos; random weights are harder to quantize than trained. Most rows of fp16, int8 and dynamic batch
were run with PyTorch 2.11, the others with PyTorch 2.13.

| architecture | million parameters | nodes | error | PyTorch's own | seconds | {titles} |
|---|--:|--:|--:|--:|--:|{"---|" * len(RUNS)}
"""
    ordered = sorted(by_name, key=lambda name: (not any(outcome.reason for outcome in by_name[name].values()), name))
    return head + "".join(f"{_row(name, by_name[name])}\n" for name in ordered)


def _verdicts(outcomes: Sequence[Outcome]) -> str:
    """Return how many int8 exports ended by a decision, and not by a crash or the time limit."""
    decided = [outcome for outcome in outcomes if not outcome.reason.startswith(_UNDECIDED)]
    return (
        f"{len(decided)} of {len(outcomes)} int8 exports ended with a verdict: the engine passed, or int8 was given up "
        "because the outputs\nchanged too much.\n"
    )


def _first_in_fp32(by_name: Mapping[str, Mapping[str, Outcome]]) -> list[Outcome]:
    """Return one export in fp32 of each architecture: one that failed, if any did."""
    in_fp32 = [[runs[run] for run in ("fp32", "dynamic") if run in runs] for runs in by_name.values()]
    return [max(outcomes, key=lambda outcome: bool(outcome.reason)) for outcomes in in_fp32 if outcomes]


def _full_title(run: Run) -> str:
    return f"fp32, {run.title}" if run.precision == "fp32" else run.title


def _count(title: str, run: Run, outcomes: Sequence[Outcome]) -> str:
    formats = ", ".join(get_format(fmt).title for fmt in run.formats)
    passed = sum(not outcome.reason for outcome in outcomes)
    return f"| {title} | {formats} | {passed} | {len(outcomes)} |\n" if outcomes else ""


def _row(name: str, outcomes: Mapping[str, Outcome]) -> str:
    shown = outcomes.get("fp32") or outcomes.get("dynamic") or next(iter(outcomes.values()))
    cells = (
        f"`{name}`",
        _number(shown.million_parameters, ".1f"),
        _number(shown.nodes, "d"),
        _number(shown.error_of_std, ".0e"),
        _number(shown.float32_error_of_std, ".0e"),
        f"{shown.elapsed_s:.0f}",
        *(_verdict(outcomes.get(run)) for run in RUNS),
    )
    return f"| {' | '.join(cells)} |"


def _verdict(outcome: Outcome | None) -> str:
    """Return "passed", or the reason of a failure and whose it is, if that was found out."""
    if outcome is None:
        return ""
    cause = breadth_models.CAUSES.get(outcome.name, "") if outcome.reason else ""
    return _cell(f"{outcome.reason}{f' ({cause})' if cause else ''}") or "passed"


def _number(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)


def _cell(text: str) -> str:
    """Return text in one line of a table."""
    return re.sub(r"\s+", " ", text).replace("|", "\\|")


if __name__ == "__main__":
    main()
