"""Count the kernels of models: `python -m tests.tools.kernels [NAME ...]` writes docs/kernels.md.

Without arguments only the page is written, from kernels.tsv. With model names, or `--all`, each model is exported as
by `edgevit export NAME --fmt trt-rtx --sm 86 --precision P` and its row updated; this needs TensorRT-RTX and 10 to
60 s per row, but no GPU. Rows are saved one by one: `--missing` continues an interrupted run.

Models are all registered classifiers, one detector and two segmenters on a backbone of each kind, and the feature maps
of those backbones as `NAME:features` (`--outputs features --img-size 512`).
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import math
import sys
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TypeAlias

from edgevit.cli import progress
from edgevit.errors import EdgevitError
from edgevit.export.passes import specialize
from edgevit.files import write_atomically
from edgevit.models import loading, registry
from edgevit.pipeline import run as pipeline
from edgevit.pipeline.export_run import StageTimer
from edgevit.runtimes.base import BuildOptions
from edgevit.runtimes.registry import get_runtime
from edgevit.runtimes.tensorrt_rtx.runtime import KERNELS_FILE
from edgevit.types import Precision

TABLE = Path(__file__).with_name("kernels.tsv")
PAGE = Path(__file__).parents[2] / "docs" / "kernels.md"
COMPUTE_CAPABILITY = 86  # Ampere; the compiler does not support 87, that of Jetson Orin
PRECISIONS: tuple[Precision, ...] = ("fp32", "fp16")
NOT_INSTALLED = "TensorRT-RTX is not installed (228 MB, Linux x86): pip install 'edgevit[trt-rtx]'"

# Of each kind of backbone one, small enough to be compiled in a minute.
BACKBONES = ("mobileformer_151m", "vitaev2_s", "shiftvit_t_light", "swin_t", "shuffle_swin_t")
HEADS = ("retinanet", "semfpn", "upernet")
OTHER_SYSTEMS = ("e2e_mf_508m", "fpn_r50", "vt_fpn_r50")
FEATURES = ":features"  # after the name of a classifier: its maps c2..c5
DENSE_HEADING = "Feature maps, detectors and segmenters at 512 x 512"
DENSE_SIDE = 512  # of the images for feature maps, as for the registered detectors and segmenters

Key: TypeAlias = tuple[str, Precision]


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """Totals of `edgevit plan` for one model in one precision; moves of a few constant bytes are not counted."""

    model: str
    precision: Precision
    compute_capability: int
    tensorrt_rtx: str  # the compiler's version
    nodes: int  # of the ONNX graph in fp32; another number means that the row is of another graph
    kernels: int
    moved_mb: float  # read and written by all kernels, without weights
    fused_attentions: int
    unfused_softmaxes: int
    copies: int  # kernels that move, reorder or convert elements and compute nothing

    @property
    def key(self) -> Key:
        return self.model, self.precision


Rows: TypeAlias = Mapping[Key, Row]


def measure(name: str, precision: Precision) -> Row:
    """Export a model and read the compiler's kernel list. Raises the error of the failed stage."""
    options = BuildOptions(precision=precision, compute_capabilities=(COMPUTE_CAPABILITY,))
    with tempfile.TemporaryDirectory(prefix="edgevit-kernels-") as folder:
        config = pipeline.ExportConfig(
            formats=("trt-rtx",), options=options, out=Path(folder), verify=False, latency=False
        )
        (bundle,) = pipeline.run(load_model(name), config).bundles
        plan = json.loads((bundle.path / KERNELS_FILE).read_text("utf-8"))
    totals = plan["totals"]
    return Row(
        model=name,
        precision=precision,
        compute_capability=COMPUTE_CAPABILITY,
        tensorrt_rtx=plan["compiler"].rpartition(" ")[2],
        nodes=count_nodes(name),
        kernels=totals["kernels"],
        moved_mb=round(totals["bytes_moved"] / 1e6, 2),
        fused_attentions=totals["fused_attentions"],
        unfused_softmaxes=totals["unfused_softmaxes"],
        copies=totals["copies"],
    )


def count_nodes(name: str) -> int:
    """Return the number of nodes of a model's ONNX graph for TensorRT-RTX in fp32; needs no compiler."""
    config = pipeline.ExportConfig(formats=("trt-rtx",), verify=False, latency=False)
    with tempfile.TemporaryDirectory(prefix="edgevit-kernels-") as folder:
        _, graph, _ = pipeline.prepare(load_model(name), config, StageTimer(None), Path(folder))
    return sum(1 for _ in specialize(graph, "trt-rtx").model.graph)


def load_model(name: str) -> loading.LoadedModel:
    """Return the model of a row: a registered name, or that of a classifier with ":features"."""
    model = name.removesuffix(FEATURES)
    return (
        loading.from_name(model) if model == name else loading.from_name(model, outputs="features", img_size=DENSE_SIDE)
    )


def sections() -> dict[str, list[str]]:
    """Return the models of a complete table, in order, by the heading they stand under."""
    found: dict[str, list[str]] = {}
    for name in registry.list_models():
        found.setdefault(registry.get_spec(name).family, []).append(name)
    maps = [f"{backbone}{FEATURES}" for backbone in BACKBONES]
    systems = [f"{backbone}_{head}" for head in HEADS for backbone in BACKBONES]
    return {**found, DENSE_HEADING: [*maps, *systems, *OTHER_SYSTEMS]}


# The table


def read(text: str) -> dict[Key, Row]:
    """Return the rows of a table's text."""
    rows = (_row(line) for line in csv.DictReader(io.StringIO(text), delimiter="\t"))
    return {row.key: row for row in rows}


def _row(line: Mapping[str, str]) -> Row:
    return Row(
        model=line["model"],
        precision="fp16" if line["precision"] == "fp16" else "fp32",
        compute_capability=int(line["compute_capability"]),
        tensorrt_rtx=line["tensorrt_rtx"],
        nodes=int(line["nodes"]),
        kernels=int(line["kernels"]),
        moved_mb=float(line["moved_mb"]),
        fused_attentions=int(line["fused_attentions"]),
        unfused_softmaxes=int(line["unfused_softmaxes"]),
        copies=int(line["copies"]),
    )


def format_table(rows: Rows) -> str:
    """Return the table's text in the order of the registry; rows of unregistered models are dropped."""
    text = io.StringIO()
    names = [field.name for field in fields(Row)]
    writer = csv.DictWriter(text, names, delimiter="\t", lineterminator="\n")
    writer.writeheader()
    writer.writerows(asdict(rows[key]) for key in all_keys() if key in rows)
    return text.getvalue()


def all_keys() -> list[Key]:
    """Return the keys of a complete table, in order."""
    return [(name, precision) for names in sections().values() for name in names for precision in PRECISIONS]


def load() -> dict[Key, Row]:
    """Return the rows of kernels.tsv."""
    return read(TABLE.read_text("utf-8")) if TABLE.exists() else {}


def save(*rows: Row) -> None:
    """Add or replace rows of the table, and write the page."""
    table = {**load(), **{row.key: row for row in rows}}
    _replace(TABLE, format_table(table))
    PAGE.parent.mkdir(exist_ok=True)
    _replace(PAGE, page(table))


def _replace(path: Path, text: str) -> None:
    write_atomically(path, text)


# The page

_HEAD = """# Kernels

The number of kernels that NVIDIA's compiler makes of each registered model, and of detectors and segmenters on one \
backbone of each kind, at batch size 1, and the megabytes that \
these kernels read and write (weights not counted).

**This is a proxy.** {compiler} compiled every model for compute capability {capability} (Ampere), with no GPU. \
TensorRT itself fuses differently; a kernel count is no latency, and neither is a number of bytes. The numbers compare \
one graph with another under one compiler: they show when a change of the export costs a model a kernel.

* *attentions*: softmax attentions that were fused into one kernel, and softmaxes that were not.
* *copies*: kernels that move, reorder or convert elements and compute nothing.

The weights are random, except those of `shiftvit_cifar10`; in fp16 the activations decide which nodes stay in fp32. \
This command measures a model and writes its rows and this page (`--all`: every model; no argument: only the page, \
as `make docs` does):

```sh
python -m tests.tools.kernels NAME
```

`edgevit plan BUNDLE` lists the kernels behind a row. The data is in \
[tests/tools/kernels.tsv](../tests/tools/kernels.tsv); a test compiles the models again and compares. Another one \
needs no compiler: it exports the models and compares the number of nodes in the ONNX graph with that of the row.
"""
_COLUMNS = (
    "| model | kernels fp32 | kernels fp16 | MB fp32 | MB fp16 | attentions fp32 | attentions fp16 | copies fp32 | "
    "copies fp16 |\n|---|--:|--:|--:|--:|--:|--:|--:|--:|"
)


def page(rows: Rows) -> str:
    """Return the text of docs/kernels.md."""
    compilers = sorted({f"TensorRT-RTX {row.tensorrt_rtx}" for row in rows.values()})
    parts = [_HEAD.format(compiler=" or ".join(compilers), capability=COMPUTE_CAPABILITY)]
    for heading, names in sections().items():
        lines = [_line(name, [rows.get((name, precision)) for precision in PRECISIONS]) for name in names]
        parts.append("\n".join([f"## {heading}\n", _COLUMNS, *lines]) + "\n")
    return "\n".join(parts)


def _line(name: str, rows: Sequence[Row | None]) -> str:
    cells = [
        *(str(row.kernels) if row else "" for row in rows),
        *(f"{row.moved_mb:.1f}" if row else "" for row in rows),
        *(_attentions(row) if row else "" for row in rows),
        *(str(row.copies) if row else "" for row in rows),
    ]
    return f"| `{name}` | {' | '.join(cells)} |"


def _attentions(row: Row) -> str:
    if not row.fused_attentions and not row.unfused_softmaxes:
        return "none"
    return f"{row.fused_attentions} fused, {row.unfused_softmaxes} not"


# The command


def main(words: Sequence[str]) -> int:
    """Measure the requested rows, smallest model first, and write the page. Return 1 if a model failed."""
    parser = argparse.ArgumentParser(prog="python -m tests.tools.kernels", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help="measure these models")
    parser.add_argument("--all", action="store_true", help="measure all models")
    parser.add_argument("--missing", action="store_true", help="measure only what the installed compiler has not")
    arguments = parser.parse_args(words)
    save()  # the page may be outdated even if nothing is measured
    if not (arguments.names or arguments.all or arguments.missing):
        return 0
    version = get_runtime("trt-rtx").version()
    if version is None:
        parser.error(NOT_INSTALLED)
    measured = {row.key for row in load().values() if arguments.missing and row.tensorrt_rtx == version}
    keys = [(name, precision) for name in arguments.names or _smallest_first() for precision in PRECISIONS]
    failures = _measure_all([key for key in keys if key not in measured])
    sys.stderr.writelines(f"{failure}\n" for failure in failures)
    return 1 if failures else 0


def _measure_all(keys: Iterable[Key]) -> list[str]:
    """Measure and save each row. Return one line for each failure."""
    failures = []
    with progress.show_stages() as on_stage:
        for name, precision in keys:
            start = time.perf_counter()
            on_stage(f"{name} {precision}", None)
            try:
                row = measure(name, precision)
            except EdgevitError as error:
                failures.append(f"{name} {precision}: {error}")
                continue
            save(row)
            on_stage(f"{name} {precision}: {row.kernels} kernels, {row.moved_mb:.1f} MB", time.perf_counter() - start)
    return failures


def _smallest_first() -> list[str]:
    """Return the models of a complete table: by the paper's multiply-adds, then those without, in order."""
    return sorted((name for names in sections().values() for name in names), key=_macs_g)


def _macs_g(name: str) -> float:
    return math.inf if name not in registry.list_models() else registry.get_spec(name).paper.macs_g or math.inf


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
