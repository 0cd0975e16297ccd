"""What NVIDIA's compiler makes of every registered model: `python -m tests.tools.kernels [NAME ...]` measures it anew.

It exports each model as `edgevit export NAME --fmt trt-rtx --sm 86 --precision P` does, which takes TensorRT-RTX, 10
to 60 s a row and no GPU, and writes the row into kernels.tsv and the page docs/kernels.md as soon as it has it. A run
that was cut short goes on with `--missing`, which leaves out what the installed compiler has measured already.
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
from itertools import groupby
from pathlib import Path
from typing import TypeAlias

from edgevit.cli import progress
from edgevit.errors import EdgevitError
from edgevit.files import write_atomically
from edgevit.models import loading as subject
from edgevit.models import registry
from edgevit.pipeline import run as pipeline
from edgevit.runtimes.base import BuildOptions
from edgevit.runtimes.registry import get_runtime
from edgevit.runtimes.tensorrt_rtx.runtime import KERNELS
from edgevit.types import Precision

TABLE = Path(__file__).with_name("kernels.tsv")
PAGE = Path(__file__).parents[2] / "docs" / "kernels.md"
COMPUTE_CAPABILITY = 86  # Ampere, as in Jetson Orin, for whose own 87 this compiler does not build
PRECISIONS: tuple[Precision, ...] = ("fp32", "fp16")

Key: TypeAlias = tuple[str, Precision]


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One model in one precision, as `edgevit plan` counts it. What moves a few constant bytes does not count."""

    model: str
    precision: Precision
    compute_capability: int
    tensorrt_rtx: str  # the compiler's version
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
    """Exports a model and reads what the compiler listed. Raises the error of the stage that failed."""
    options = BuildOptions(precision=precision, compute_capabilities=(COMPUTE_CAPABILITY,))
    with tempfile.TemporaryDirectory(prefix="edgevit-kernels-") as folder:
        recipe = pipeline.ExportConfig(
            formats=("trt-rtx",), options=options, out=Path(folder), verify=False, latency=False
        )
        (bundle,) = pipeline.run(subject.from_name(name), recipe).bundles
        plan = json.loads((bundle.path / KERNELS).read_text("utf-8"))
    totals = plan["totals"]
    return Row(
        model=name,
        precision=precision,
        compute_capability=COMPUTE_CAPABILITY,
        tensorrt_rtx=plan["compiler"].rpartition(" ")[2],
        kernels=totals["kernels"],
        moved_mb=round(totals["bytes_moved"] / 1e6, 2),
        fused_attentions=totals["fused_attentions"],
        unfused_softmaxes=totals["unfused_softmaxes"],
        copies=totals["copies"],
    )


# The table


def read(text: str) -> dict[Key, Row]:
    """The rows of the table's text."""
    rows = (_row(line) for line in csv.DictReader(io.StringIO(text), delimiter="\t"))
    return {row.key: row for row in rows}


def _row(line: Mapping[str, str]) -> Row:
    return Row(
        model=line["model"],
        precision="fp16" if line["precision"] == "fp16" else "fp32",
        compute_capability=int(line["compute_capability"]),
        tensorrt_rtx=line["tensorrt_rtx"],
        kernels=int(line["kernels"]),
        moved_mb=float(line["moved_mb"]),
        fused_attentions=int(line["fused_attentions"]),
        unfused_softmaxes=int(line["unfused_softmaxes"]),
        copies=int(line["copies"]),
    )


def written(rows: Rows) -> str:
    """The table's text, in the registry's order; rows of models that are no more are left out."""
    text = io.StringIO()
    names = [field.name for field in fields(Row)]
    writer = csv.DictWriter(text, names, delimiter="\t", lineterminator="\n")
    writer.writeheader()
    writer.writerows(asdict(rows[key]) for key in all_keys() if key in rows)
    return text.getvalue()


def all_keys() -> list[Key]:
    """What the table is to hold, in its order."""
    return [(name, precision) for name in registry.list_models() for precision in PRECISIONS]


def load() -> dict[Key, Row]:
    """The table as it stands."""
    return read(TABLE.read_text("utf-8")) if TABLE.exists() else {}


def keep(*rows: Row) -> None:
    """Puts rows into the table, and the table on the page."""
    table = {**load(), **{row.key: row for row in rows}}
    _replace(TABLE, written(table))
    PAGE.parent.mkdir(exist_ok=True)
    _replace(PAGE, page(table))


def _replace(path: Path, text: str) -> None:
    write_atomically(path, text)


# The page

_HEAD = """# Kernels

Into how many kernels NVIDIA's compiler makes each registered model, at a batch of one, and how many megabytes these \
kernels read and write between them (their weights not counted).

**This is a proxy.** {compiler} compiled every model for compute capability {capability} (Ampere) with no GPU. \
TensorRT itself fuses otherwise; a count is no latency, and neither is a number of bytes. The numbers compare one \
graph with another under one compiler, which is what they are for: a change of the export that costs a model a kernel \
is seen.

* *attentions*: softmax attentions that became one kernel, and softmaxes that stayed outside of one.
* *copies*: kernels that move, reorder or convert elements and compute nothing.

But for `shiftvit_cifar10` the weights are random; in fp16 the numbers that they lead to decide which nodes stay in \
fp32. The command that makes a model's rows and this page from them, with no name all of them:

```sh
python -m tests.tools.kernels NAME
```

`edgevit plan BUNDLE` shows the kernels behind a row one by one. The data: [tests/kernels.tsv](../tests/kernels.tsv). \
A test builds the models again and compares.
"""
_COLUMNS = (
    "| model | kernels fp32 | kernels fp16 | MB fp32 | MB fp16 | attentions fp32 | attentions fp16 | copies fp32 | "
    "copies fp16 |\n|---|--:|--:|--:|--:|--:|--:|--:|--:|"
)


def page(rows: Rows) -> str:
    """The page for people."""
    compilers = sorted({f"TensorRT-RTX {row.tensorrt_rtx}" for row in rows.values()})
    parts = [_HEAD.format(compiler=" or ".join(compilers), capability=COMPUTE_CAPABILITY)]
    for family, names in groupby(registry.list_models(), key=lambda name: registry.get_spec(name).family):
        lines = [_line(name, [rows.get((name, precision)) for precision in PRECISIONS]) for name in names]
        parts.append("\n".join([f"## {family}\n", _COLUMNS, *lines]) + "\n")
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


def main(arguments: Sequence[str]) -> int:
    """Measures what is asked for, smallest first. Status 1 where a model could not be measured."""
    parser = argparse.ArgumentParser(prog="python -m tests.tools.kernels", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help="registered models; none: all of them")
    parser.add_argument("--missing", action="store_true", help="only rows that the installed compiler has not measured")
    asked = parser.parse_args(arguments)
    keys = [(name, precision) for name in asked.names or _smallest_first() for precision in PRECISIONS]
    version = get_runtime("trt-rtx").version()
    if version is None:
        parser.error("TensorRT-RTX is not installed here (228 MB, Linux x86): pip install 'edgevit[trt-rtx]'")
    known = {row.key for row in load().values() if asked.missing and row.tensorrt_rtx == version}
    keep()  # the page as it is written now, whether or not anything is measured
    failed = _measure_all([key for key in keys if key not in known])
    sys.stderr.writelines(f"{line}\n" for line in failed)
    return 1 if failed else 0


def _measure_all(keys: Iterable[Key]) -> list[str]:
    """Measures and keeps each row; what went wrong, a line each."""
    failed = []
    with progress.show_stages() as tell:
        for name, precision in keys:
            start = time.perf_counter()
            tell(f"{name} {precision}", None)
            try:
                row = measure(name, precision)
            except EdgevitError as error:
                failed.append(f"{name} {precision}: {error}")
                continue
            keep(row)
            tell(f"{name} {precision}: {row.kernels} kernels, {row.moved_mb:.1f} MB", time.perf_counter() - start)
    return failed


def _smallest_first() -> list[str]:
    return sorted(registry.list_models(), key=lambda name: registry.get_spec(name).paper.macs_g or math.inf)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
