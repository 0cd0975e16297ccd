"""`edgevit list`: the registered models, with the figures that their papers report."""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from edgevit.cli.console import Console
from edgevit.cli.parser import Arguments, Command
from edgevit.cli.tables import general, make_table
from edgevit.formats import list_formats
from edgevit.memory import PYTORCH_MB, require_address_space

if TYPE_CHECKING:
    from rich.table import Table

    from edgevit.models.spec import ModelSpec


_ON_GPU = ", ".join(entry.name for entry in list_formats() if entry.runs_on_device)
UNTESTED = (
    f"TensorRT engines ({_ON_GPU}) have not run on a GPU in edgevit's own tests; run edgevit verify on your device."
)
WEIGHTS = (
    "weights: included; official: --weights official downloads them; manual: edgevit list -v says where they are; "
    "none: not published. Without --weights they are random."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `edgevit list`."""
    parser.add_argument("--family", metavar="F", help="list only this family")
    parser.add_argument("--task", metavar="T", help="list only classification, detection or segmentation models")


def run(arguments: Arguments, console: Console) -> int:
    """Print the registered models."""
    require_address_space(PYTORCH_MB, user="edgevit list")
    from edgevit.models import registry

    specs = [registry.get_spec(name) for name in registry.list_models(arguments.family, task=arguments.task)]
    console.print(UNTESTED)
    console.result(model_table(specs, detailed=console.detailed))
    if console.detailed:
        console.print(*(f"{spec.name}: {_address(spec)}" for spec in specs if _address(spec)))
    console.print(WEIGHTS)
    console.finish({"models": [model_json(spec) for spec in specs]})
    return 0


def model_table(specs: Iterable[ModelSpec], *, detailed: bool = False) -> Table:
    """Return one row for each model, with the figures of its paper. `detailed` adds columns."""
    more = ("MACs G", "figures from") if detailed else ()
    table = make_table(None, "name", "family", "task", "input", "M params", "top-1 %", "weights", *more, left=4)
    for spec in specs:
        paper = spec.paper
        details = (general(paper.macs_g), paper.source)
        table.add_row(
            spec.name,
            spec.family,
            spec.task,
            "x".join(str(side) for side in spec.preprocessing.input_size[1:]),
            general(paper.params_m),
            general(paper.top1),
            _availability(spec),
            *(details if detailed else ()),
        )
    return table


def _availability(spec: ModelSpec) -> str:
    """Return how to get trained weights: included, official (a download), manual (a download by hand) or none."""
    if spec.included_weights:
        return "included"
    if spec.published is None:
        return "none"
    return "official" if spec.published.url else "manual"


def _address(spec: ModelSpec) -> str:
    """Return the place of the authors' weights: a URL, or a description."""
    if spec.published is None:
        return ""
    return spec.published.url or spec.published.where


def model_json(spec: ModelSpec) -> dict[str, Any]:
    """Return the JSON form of a model."""
    return {
        "name": spec.name,
        "family": spec.family,
        "task": spec.task,
        "input_size": list(spec.preprocessing.input_size),
        "num_classes": spec.num_classes,
        "included_weights": spec.included_weights,
        "weights": {"availability": _availability(spec), "address": _address(spec)},
        "paper": {
            "top1": spec.paper.top1,
            "params_m": spec.paper.params_m,
            "macs_g": spec.paper.macs_g,
            "source": spec.paper.source,
        },
    }


COMMAND = Command(name="list", help="list the registered models", add_arguments=add_arguments, run=run)
