"""`edgevit list`: the registered models with the figures of their papers."""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from edgevit.cli.console import Console
from edgevit.cli.parser import Arguments, Command
from edgevit.cli.tables import general, make_table

if TYPE_CHECKING:
    from rich.table import Table

    from edgevit.models.spec import ModelSpec


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `edgevit list`."""
    parser.add_argument("--family", metavar="F", help="list only this family")


def run(arguments: Arguments, console: Console) -> int:
    """Print the registered models."""
    from edgevit.models import registry

    specs = [registry.get_spec(name) for name in registry.list_models(arguments.family)]
    console.result(model_table(specs))
    console.finish({"models": [model_json(spec) for spec in specs]})
    return 0


def model_table(specs: Iterable[ModelSpec]) -> Table:
    """Return one row for each model."""
    table = make_table("Models", "name", "family", "input", "top-1 %", "parameters M", "MACs G", "figures from")
    for spec in specs:
        paper = spec.paper
        table.add_row(
            spec.name,
            spec.family,
            "x".join(str(side) for side in spec.preprocessing.input_size),
            *(general(value) for value in (paper.top1, paper.params_m, paper.macs_g)),
            paper.source,
        )
    return table


def model_json(spec: ModelSpec) -> dict[str, Any]:
    """Return the JSON form of a model."""
    return {
        "name": spec.name,
        "family": spec.family,
        "input_size": list(spec.preprocessing.input_size),
        "num_classes": spec.num_classes,
        "included_weights": spec.included_weights,
        "paper": {
            "top1": spec.paper.top1,
            "params_m": spec.paper.params_m,
            "macs_g": spec.paper.macs_g,
            "source": spec.paper.source,
        },
    }


COMMAND = Command(name="list", help="list the registered models", add_arguments=add_arguments, run=run)
