"""Save the part of a graph that is wrong, with its inputs and PyTorch's outputs, and check it again.

`NAME.onnx` is the part and `NAME.npz` its tensors. The arrays have one row, which is the whole tensor, since the first
axis of an inner tensor need not be the batch.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from edgevit.bundles.reference_file import read_references
from edgevit.bundles.store import write_references
from edgevit.errors import UsageError
from edgevit.export.graph import OnnxGraph
from edgevit.files import replacing
from edgevit.formats import get_format
from edgevit.pipeline.explain.stages import Stage
from edgevit.runtimes.base import BuildOptions
from edgevit.runtimes.parity import ParityReport, compare
from edgevit.types import Array, Feeds, Precision, Reference

FOLDER = "explain"
_KIND = "explain"


@dataclass(frozen=True, slots=True, kw_only=True)
class Reproducer:
    """A saved part of a graph, and whether it fails by itself."""

    path: Path
    fmt: str
    precision: Precision
    fails: bool

    @property
    def command(self) -> str:
        """The command that runs it, ready to paste."""
        precision = "" if self.precision == "fp32" else f" --precision {self.precision}"
        return f"edgevit verify {shlex.quote(str(self.path))} --fmt {self.fmt}{precision}"


def file_name(model: str, module: str, stage: Stage) -> str:
    """Return the name of the file for a module of a model that fails at a stage."""
    return re.sub(r"[^\w.-]+", "_", f"{model}-{module or 'whole'}-{stage.precision}-{stage.fmt}.onnx")


def save(stage: Stage, graph: OnnxGraph, feeds: Feeds, expected: Mapping[str, Array], *, path: Path) -> Reproducer:
    """Write a part of a graph, the inputs that it reads and the outputs that it should have, and run it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    read = [spec.name for spec in graph.inputs]
    reference = Reference(
        kind=_KIND,
        inputs={name: feeds[name][None] for name in read},
        outputs={name: array[None] for name, array in expected.items()},
    )
    with replacing(path.with_suffix(".npz")) as part, part.open("wb") as file:
        write_references(file, [reference])
    with replacing(path) as part:
        graph.save(part)
    return Reproducer(
        path=path,
        fmt=stage.fmt,
        precision=stage.precision,
        fails=not _compare(stage, graph, reference).passed,
    )


def check_reproducer(path: Path, *, fmt: str, precision: Precision, threads: int | None = None) -> ParityReport:
    """Run a saved part of a graph and compare its outputs with PyTorch's.

    Raises UsageError if the file is not one, or lacks its tensors.
    """
    tensors = path.with_suffix(".npz")
    if not tensors.is_file():
        raise UsageError(f"{tensors} is missing: verify takes a bundle, or an ONNX file that an explanation has saved")
    (reference, *_) = read_references(tensors)
    graph = OnnxGraph.read(path)
    missing = {spec.name for spec in graph.inputs} - set(reference.inputs)
    if missing:
        raise UsageError(f"{tensors} has no array for input {min(missing)} of {path.name}")
    stage = Stage(
        name=path.stem,
        fmt=get_format(fmt).name,
        precision=precision,
        graph=graph,
        options=BuildOptions(precision=precision, threads=threads),
    )
    return _compare(stage, graph, reference)


def _compare(stage: Stage, graph: OnnxGraph, reference: Reference) -> ParityReport:
    with stage.open(graph) as run:

        def run_row(feeds: Feeds) -> dict[str, Array]:
            return {name: array[None] for name, array in run({name: row[0] for name, row in feeds.items()}).items()}

        return compare(stage.name, run_row, [reference], precision=stage.precision)
