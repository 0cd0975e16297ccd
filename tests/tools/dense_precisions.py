"""Export detectors and segmenters in fp32, fp16 and int8: `python -m tests.tools.dense_precisions [NAME ...]`.

Each system is captured once and exported in every way of `RUNS` with its parity check: fp32 and int8 in ONNX Runtime
and OpenVINO, fp16 as a graph that ONNX Runtime runs. Images are small (`--img-size`), since time grows with them.
Results are appended to dense_precisions.jsonl as they come, and the table in docs/dense.md is written anew: an
interrupted run goes on with what is missing. Without names it takes every head on one backbone of each kind, and the
systems that have their own; `NAME:FORM` selects outputs other than the default ones.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, cast

from edgevit.errors import EdgevitError
from edgevit.export.graph import OnnxGraph
from edgevit.files import write_atomically
from edgevit.models import loading
from edgevit.models.loading import LoadedModel
from edgevit.pipeline import run as pipeline
from edgevit.pipeline.export_run import StageTimer
from edgevit.pipeline.report import BundleReport
from edgevit.pipeline.source import source_of
from edgevit.runtimes.base import BuildOptions
from edgevit.runtimes.parity import ParityReport
from edgevit.types import PHOTOS, PRECISIONS, OutputForm, Precision
from tests.tools.crops import crops
from tests.tools.dense_latency import SYSTEMS

RESULTS = Path(__file__).with_name("dense_precisions.jsonl")
PAGE = Path(__file__).parents[2] / "docs" / "dense.md"
CROPS = 16  # calibration inputs for int8
DEFAULT_SYSTEMS = (*SYSTEMS, "fpn_r50:classes")


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """A way in which each system is exported."""

    title: str
    fmt: str
    precision: Precision


RUNS = (
    Run(title="fp32 ONNX Runtime", fmt="ort", precision="fp32"),
    Run(title="fp32 OpenVINO", fmt="openvino", precision="fp32"),
    Run(title="fp16 graph", fmt="onnx", precision="fp16"),
    Run(title="int8 ONNX Runtime", fmt="ort", precision="int8"),
    Run(title="int8 OpenVINO", fmt="openvino", precision="int8"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """One system in one precision and one format. The measures are the worst over photos, outputs and stages."""

    system: str
    side: int
    fmt: str
    precision: Precision
    failure: str  # why it was refused; empty if it passed
    max_error_std: float | None = None
    snr_db: float | None = None  # None: infinite, or nothing was compared
    cosine: float | None = None
    pixels: float | None = None  # fraction of all pixels with PyTorch's class; None for detectors
    share: float | None = None  # of the multiply-adds that the engine runs in this precision
    elapsed_s: float = 0.0
    day: str = ""

    @property
    def key(self) -> tuple[str, str, str, int]:
        return self.system, self.fmt, self.precision, self.side


def measure(system: str, runs: Sequence[Run], *, side: int) -> Iterator[Outcome]:
    """Export a system in each way; a failure is an outcome, too. Runs of one precision share one export."""
    name, _, form = system.partition(":")
    model = loading.from_name(name, img_size=side, outputs=cast(OutputForm, form) if form else None)
    captured = source_of(model).capture(StageTimer(), BuildOptions())
    for precision in PRECISIONS:
        formats = [run.fmt for run in runs if run.precision == precision]
        if formats:
            yield from _export(_Case(system, side, model, captured), formats, precision)


@dataclass(frozen=True, slots=True)
class _Case:
    """A system and its graph."""

    system: str
    side: int
    model: LoadedModel
    captured: OnnxGraph


def _export(case: _Case, formats: Sequence[str], precision: Precision) -> list[Outcome]:
    """Export to all formats at once, or, if that fails, to each one alone."""
    start = time.monotonic()
    bundles: tuple[BundleReport, ...] = ()
    failure = ""
    with tempfile.TemporaryDirectory(prefix="edgevit-dense-") as folder:
        config = pipeline.ExportConfig(
            formats=tuple(formats),
            options=BuildOptions(precision=precision, threads=1),
            calib=_calibration(case.model) if precision == "int8" else None,
            out=Path(folder),
            explain=False,
            latency=False,
        )
        try:
            report = pipeline.run(case.model, config, captured=case.captured)
            parity, bundles = report.parity, report.bundles
        except EdgevitError as error:
            failure, parity = str(error), getattr(error, "report", None) or ParityReport(())
    if failure and len(formats) > 1:
        return [outcome for fmt in formats for outcome in _export(case, [fmt], precision)]
    shares = {bundle.fmt: _share(bundle) for bundle in bundles}
    return [
        Outcome(
            system=case.system,
            side=case.side,
            fmt=fmt,
            precision=precision,
            failure=failure,
            share=shares.get(fmt),
            elapsed_s=round((time.monotonic() - start) / len(formats), 1),
            day=datetime.now(timezone.utc).strftime("%Y-%m-%d"),
            **_measures(parity, fmt, precision),
        )
        for fmt in formats
    ]


def _calibration(model: LoadedModel) -> dict[str, Any]:
    assert model.preprocessing is not None
    return {model.input_names[0]: crops(model.preprocessing, CROPS, seed=loading.SEED)}


def _share(bundle: BundleReport) -> float | None:
    """Return the fraction of multiply-adds in the requested precision; None if no runtime reports it."""
    actual = bundle.actual_precision
    share = math.nan if actual is None else actual.fraction(bundle.requested_precision)
    return round(share, 4) if math.isfinite(share) else None


def _measures(parity: ParityReport, fmt: str, precision: Precision) -> dict[str, float | None]:
    """Return the worst measures of a format's stages in this precision."""
    results = [each for each in parity.results if each.precision == precision and each.stage.startswith(f"{fmt}:")]
    finite = [each.snr_db for each in results if math.isfinite(each.snr_db)]
    photos = [each.pixels.all for each in results if each.pixels is not None and each.kind == PHOTOS]
    return {
        "max_error_std": max((each.max_abs_of_std for each in results), default=None),
        "snr_db": min(finite, default=None),
        "cosine": min((min(each.cosine) for each in results), default=None),
        "pixels": min(photos, default=None),
    }


# The results


def read(path: Path) -> list[Outcome]:
    """Return the results in a file, the last of each export; empty if there is no file yet."""
    lines = path.read_text("utf-8").splitlines() if path.is_file() else []
    found = [Outcome(**json.loads(line)) for line in lines]
    return list({outcome.key: outcome for outcome in found}.values())


def page(text: str, outcomes: Sequence[Outcome]) -> str:
    """Return the text of docs/dense.md with the table of these results."""
    by_system: dict[tuple[str, int], dict[tuple[str, str], Outcome]] = {}
    for outcome in outcomes:
        by_system.setdefault((outcome.system, outcome.side), {})[outcome.fmt, outcome.precision] = outcome
    titles = " | ".join(run.title for run in RUNS)
    head = [f"| system | side | {titles} |", f"|---|--:|{'--:|' * len(RUNS)}"]
    lines = [_line(*key, by_system[key]) for key in sorted(by_system, key=_order)]
    failures = [f"* {_failure(each)}" for each in outcomes if each.failure]
    notes = ["", "Not passed:", "", *failures] if failures else []
    written = "\n".join([*head, *lines, *notes]) + "\n" if outcomes else ""
    found = re.search(r"(<!-- precisions -->\n)(.*?)(<!-- /precisions -->)", text, re.DOTALL)
    assert found is not None, f"{PAGE.name} must contain the markers of the precisions"
    return "".join([text[: found.start()], found[1], written, found[3], text[found.end() :]])


def _order(key: tuple[str, int]) -> tuple[int, str, int]:
    system, side = key
    return DEFAULT_SYSTEMS.index(system) if system in DEFAULT_SYSTEMS else len(DEFAULT_SYSTEMS), system, side


def _line(system: str, side: int, outcomes: Mapping[tuple[str, str], Outcome]) -> str:
    cells = [_cell(outcomes.get((run.fmt, run.precision))) for run in RUNS]
    return f"| `{system}` | {side} | {' | '.join(cells)} |"


def _cell(outcome: Outcome | None) -> str:
    """Return the measure that a precision is judged by; pixels with PyTorch's class and the share in int8 beside it."""
    if outcome is None:
        return ""
    if outcome.failure:
        return "**no**"
    pixels = "" if outcome.pixels is None else f"{outcome.pixels:.2%} of pixels"
    share = "" if outcome.share is None or outcome.precision != "int8" else f"{outcome.share:.0%} in int8"
    return ", ".join(filter(None, (_judged(outcome), pixels, share)))


def _judged(outcome: Outcome) -> str:
    if ":classes" in outcome.system:  # numbers without an order
        return ""
    if outcome.precision == "fp32":
        return "" if outcome.max_error_std is None else f"{outcome.max_error_std:.0e} std"
    if outcome.precision == "fp16":
        return "exact" if outcome.snr_db is None else f"{outcome.snr_db:.0f} dB"
    return "" if outcome.cosine is None else f"cosine {outcome.cosine:.4f}"


def _failure(outcome: Outcome) -> str:
    return f"`{outcome.system}` at {outcome.side} px, {outcome.precision} for {outcome.fmt}: {outcome.failure}"


# The command


def main(words: Sequence[str]) -> int:
    """Export what is missing and write the page. Return 1 if something was refused."""
    parser = argparse.ArgumentParser(prog="python -m tests.tools.dense_precisions", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME[:FORM]", help="export these registered systems")
    parser.add_argument("--img-size", type=int, default=128, metavar="S", help="side of the images (default: 128)")
    parser.add_argument("--again", action="store_true", help="also export what has a result")
    parser.add_argument("--page-only", action="store_true", help="write the page of the results so far")
    arguments = parser.parse_args(words)
    done = {each.key for each in read(RESULTS)} if not arguments.again else set()
    failed = False
    for system in () if arguments.page_only else arguments.names or DEFAULT_SYSTEMS:
        side = arguments.img_size
        runs = [run for run in RUNS if (system, run.fmt, run.precision, side) not in done]
        for outcome in measure(system, runs, side=side) if runs else ():
            failed |= bool(outcome.failure)
            with RESULTS.open("a", encoding="utf-8") as file:
                file.write(json.dumps(asdict(outcome)) + "\n")
            sys.stderr.write(f"{system} {outcome.precision} {outcome.fmt}: {_cell(outcome)} {outcome.failure}\n")
    write_atomically(PAGE, page(PAGE.read_text("utf-8"), read(RESULTS)))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
