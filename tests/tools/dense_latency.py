"""Measure detectors and segmenters in ONNX Runtime and OpenVINO: `python -m tests.tools.dense_latency [NAME ...]`.

Each system is exported at 512 x 512 in fp32, both engines are compared with PyTorch on a photo and on noise, and
measured in interleaved rounds, as by `edgevit latency`. PyTorch's own float32 error is measured only if an engine is
beyond the tolerance without it: float64 takes most of an export. Rows are saved one by one in dense_latency.tsv and in
docs/dense.md: an interrupted run goes on with what is missing for this processor and number of threads (`--again`
measures all again). Without names it measures every head on one backbone of each kind, cheapest head first;
`--limit S` begins none after that many seconds. `--bundles DIR` keeps the exports, and `--export-only` makes them on a
busy machine for a measurement on an idle one.
"""

from __future__ import annotations

import argparse
import csv
import io
import math
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields, replace
from datetime import datetime, timezone
from itertools import groupby
from pathlib import Path

from edgevit.bundles.benchmark import measure_bundles, measure_plan
from edgevit.bundles.bundle import Bundle, bundle_name
from edgevit.bundles.verify import verify
from edgevit.errors import EdgevitError
from edgevit.files import write_atomically
from edgevit.images import sample_images
from edgevit.latency.compare import side_by_side
from edgevit.latency.statistics import MIN_ROUNDS
from edgevit.latency.system_files import SystemFiles, cpu_model
from edgevit.models import loading
from edgevit.pipeline import run as pipeline
from edgevit.runtimes.base import BuildOptions
from edgevit.runtimes.parity import ParityReport
from tests.tools.kernels import BACKBONES, HEADS, OTHER_SYSTEMS

TABLE = Path(__file__).with_name("dense_latency.tsv")
PAGE = Path(__file__).parents[2] / "docs" / "dense.md"
SYSTEMS = (*(f"{backbone}_{head}" for head in HEADS for backbone in BACKBONES), *OTHER_SYSTEMS)
CHEAPEST_FIRST = (
    *OTHER_SYSTEMS,
    *(f"{backbone}_{head}" for head in ("semfpn", "retinanet", "upernet") for backbone in BACKBONES),
)
FORMATS = ("ort", "openvino")


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One system in both runtimes. The ratio is OpenVINO's time over ONNX Runtime's, with its 99 % interval."""

    model: str
    processor: str
    threads: int
    ort_p50_ms: float
    openvino_p50_ms: float
    ratio: float
    ratio_low: float | None
    ratio_high: float | None
    max_error_std: float | None  # of both engines, in standard deviations of PyTorch's output
    agreement: float | None  # fraction of pixels with PyTorch's class; None for detectors
    others_fraction: float  # of the processor's time that other processes used during the measurement
    measured_at: str

    @property
    def key(self) -> tuple[str, int, str]:
        return self.processor, self.threads, self.model


Rows = dict[tuple[str, int, str], Row]


def proven(name: str, folder: Path, *, threads: int) -> tuple[list[Bundle], ParityReport]:
    """Return the bundles of a system in a folder, exported if they are not there, and how they compare with PyTorch.

    Raises the error of the failed stage.
    """
    paths = [folder / bundle_name(name, "fp32", fmt) for fmt in FORMATS]
    if not all(path.exists() for path in paths):
        _export(name, folder, threads=threads, float64=False)
    parity = _parity(paths, threads)
    if not parity.passed:  # it may be within PyTorch's own float32 error
        _export(name, folder, threads=threads, float64=True)
        parity = _parity(paths, threads)
    parity.require()
    return [Bundle.open(path) for path in paths], parity


def _export(name: str, folder: Path, *, threads: int, float64: bool) -> None:
    with tempfile.TemporaryDirectory(prefix="edgevit-photo-") as photos:
        shutil.copy(sample_images()[0], photos)
        config = pipeline.ExportConfig(
            formats=FORMATS,
            options=BuildOptions(threads=threads),
            out=folder,
            images=Path(photos),
            verify=float64,
            latency=False,
        )
        pipeline.run(loading.from_name(name), config)


def _parity(paths: Sequence[Path], threads: int) -> ParityReport:
    return sum((verify(Bundle.open(path), threads=threads) for path in paths), ParityReport(()))


def measure(name: str, folder: Path, *, threads: int, duration_s: float) -> Row:
    """Export a system, check it and measure it. Raises the error of the failed stage."""
    bundles, report = proven(name, folder, threads=threads)
    # An inference takes up to some seconds: as many as an interval needs, not the usual 100 runs.
    plan = replace(measure_plan(duration_s), min_runs=MIN_ROUNDS, min_rounds=MIN_ROUNDS, extension=1.0)
    reports = measure_bundles(bundles, threads=threads, plan=plan)
    parity, ratio = report.summary, side_by_side(reports)[1].ratio
    assert parity is not None
    assert ratio is not None
    return Row(
        model=name,
        processor=reports[0].environment.cpu or "unknown processor",
        threads=threads,
        ort_p50_ms=round(reports[0].p50_ms, 2),
        openvino_p50_ms=round(reports[1].p50_ms, 2),
        ratio=round(ratio.value, 3),
        ratio_low=None if ratio.interval is None else round(ratio.interval.low, 3),
        ratio_high=None if ratio.interval is None else round(ratio.interval.high, 3),
        max_error_std=parity.max_error_std,
        agreement=parity.pixel_agreement,
        others_fraction=round(max(each.others_fraction or 0.0 for each in reports), 2),
        measured_at=datetime.now(timezone.utc).strftime("%Y-%m-%d"),
    )


# The table


def read(text: str) -> Rows:
    """Return the rows of a table's text."""
    rows = (_row(line) for line in csv.DictReader(io.StringIO(text), delimiter="\t"))
    return {row.key: row for row in rows}


def _row(line: dict[str, str]) -> Row:
    def number(name: str) -> float | None:
        return float(line[name]) if line[name] else None

    return Row(
        model=line["model"],
        processor=line["processor"],
        threads=int(line["threads"]),
        ort_p50_ms=float(line["ort_p50_ms"]),
        openvino_p50_ms=float(line["openvino_p50_ms"]),
        ratio=float(line["ratio"]),
        ratio_low=number("ratio_low"),
        ratio_high=number("ratio_high"),
        max_error_std=number("max_error_std"),
        agreement=number("agreement"),
        others_fraction=float(line["others_fraction"]),
        measured_at=line["measured_at"],
    )


def format_table(rows: Rows) -> str:
    """Return the table's text, sorted."""
    text = io.StringIO()
    writer = csv.DictWriter(text, [field.name for field in fields(Row)], delimiter="\t", lineterminator="\n")
    writer.writeheader()
    writer.writerows(asdict(rows[key]) for key in sorted(rows, key=_order))
    return text.getvalue()


def _order(key: tuple[str, int, str]) -> tuple[str, int, int, str]:
    processor, threads, model = key
    return processor, threads, SYSTEMS.index(model) if model in SYSTEMS else len(SYSTEMS), model


def load() -> Rows:
    """Return the rows of dense_latency.tsv."""
    return read(TABLE.read_text("utf-8")) if TABLE.exists() else {}


def save(*rows: Row) -> None:
    """Add or replace rows of the table, and write the page."""
    table = {**load(), **{row.key: row for row in rows}}
    write_atomically(TABLE, format_table(table))
    write_atomically(PAGE, page(PAGE.read_text("utf-8"), table))


# The page


def page(text: str, rows: Rows) -> str:
    """Return the text of docs/dense.md with the tables of these rows, one for each processor and number of threads."""
    ordered = [rows[key] for key in sorted(rows, key=_order)]
    parts = [
        _section(processor, threads, list(members))
        for (processor, threads), members in groupby(ordered, key=lambda row: (row.processor, row.threads))
    ]
    found = re.search(r"(<!-- latency -->\n)(.*?)(<!-- /latency -->)", text, re.DOTALL)
    assert found is not None, f"{PAGE.name} must contain the markers of the latency"
    return "".join([text[: found.start()], found[1], *parts, found[3], text[found.end() :]])


def _section(processor: str, threads: int, rows: Sequence[Row]) -> str:
    dates = sorted({row.measured_at for row in rows})
    days = " to ".join(dict.fromkeys((dates[0], dates[-1])))
    busy = max(row.others_fraction for row in rows)
    head = [
        f"**{processor}, {threads} thread{'s' if threads > 1 else ''}**, {days}; others used up to {busy:.0%} of the",
        "processor's time meanwhile.",
        "",
        "| system | ONNX Runtime ms | OpenVINO ms | OpenVINO / ONNX Runtime | largest error (std) | pixels agree |",
        "|---|--:|--:|--:|--:|--:|",
    ]
    return "\n".join([*head, *map(_line, rows)]) + "\n"


def _line(row: Row) -> str:
    interval = "" if row.ratio_low is None else f" ({row.ratio_low:.2f} to {row.ratio_high:.2f})"
    error = "" if row.max_error_std is None else f"{row.max_error_std:.1e}"
    agreement = "" if row.agreement is None else f"{row.agreement:.2%}"
    times = f"{row.ort_p50_ms:.0f} | {row.openvino_p50_ms:.0f} | {row.ratio:.2f}{interval}"
    return f"| `{row.model}` | {times} | {error} | {agreement} |"


# The command


def main(words: Sequence[str]) -> int:
    """Measure what is missing, or all with `--again`. Return 1 if a system failed."""
    parser = argparse.ArgumentParser(prog="python -m tests.tools.dense_latency", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help="measure these registered systems")
    parser.add_argument("--threads", type=int, default=1, help="threads of both runtimes (default: 1)")
    parser.add_argument("--duration", type=float, default=10.0, metavar="S", help="seconds of samples of each engine")
    parser.add_argument("--again", action="store_true", help="also measure what has a row")
    parser.add_argument("--limit", type=float, default=math.inf, metavar="S", help="begin no system after S seconds")
    parser.add_argument("--bundles", type=Path, metavar="DIR", help="take exports from DIR, and leave new ones there")
    parser.add_argument("--export-only", action="store_true", help="make the exports in --bundles, and measure nothing")
    arguments = parser.parse_args(words)
    if arguments.export_only and arguments.bundles is None:
        parser.error("--export-only needs --bundles DIR")
    names = arguments.names or CHEAPEST_FIRST
    have = set() if arguments.again else {row.model for row in load().values() if _is_here(row, arguments.threads)}
    missing = [name for name in names if name not in have]
    failures = _measure_all(missing, arguments)
    sys.stderr.writelines(f"{failure}\n" for failure in failures)
    return 1 if failures else 0


def _is_here(row: Row, threads: int) -> bool:
    return (row.processor, row.threads) == (cpu_model(SystemFiles(Path("/"))), threads)


def _measure_all(names: Iterable[str], arguments: argparse.Namespace) -> list[str]:
    """Measure and save each system. Return one line for each failure."""
    failures, end_s = [], time.monotonic() + arguments.limit
    for name in names:
        if time.monotonic() > end_s:
            failures.append(f"{name} and those after it were not begun: --limit {arguments.limit:g}")
            break
        try:
            with _folder(arguments.bundles) as folder:
                _measure_one(name, folder, arguments)
        except EdgevitError as error:
            failures.append(f"{name}: {error}")
    return failures


def _measure_one(name: str, folder: Path, arguments: argparse.Namespace) -> None:
    if arguments.export_only:
        proven(name, folder, threads=arguments.threads)
        sys.stderr.write(f"{name}: exported\n")
        return
    row = measure(name, folder, threads=arguments.threads, duration_s=arguments.duration)
    save(row)
    sys.stderr.write(f"{name}: ONNX Runtime {row.ort_p50_ms:.0f} ms, OpenVINO {row.openvino_p50_ms:.0f} ms\n")


@contextmanager
def _folder(kept: Path | None) -> Iterator[Path]:
    """Give the folder for exports that are kept, or one that is deleted."""
    if kept is not None:
        yield kept
        return
    with tempfile.TemporaryDirectory(prefix="edgevit-dense-") as folder:
        yield Path(folder)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
