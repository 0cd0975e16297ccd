"""Lint findings: what is wrong with a node, why, and how to fix it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

import onnx_ir as ir

from edgevit.export.lint.targets import Level

LEVELS: tuple[Level, ...] = ("error", "warning", "note")


@dataclass(frozen=True, slots=True)
class Diagnostic:
    """The result of one check, attached to a node, to an input by its name, or, with "", to the whole graph."""

    level: Level
    at: ir.Node | str
    why: str
    remedy: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """A diagnostic as it is reported. `node` and `module` are "" if it is about the whole graph."""

    rule: str
    level: Level
    node: str
    module: str  # dotted path of the PyTorch module, if known
    why: str
    remedy: str

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def has_errors(findings: Iterable[Finding]) -> bool:
    """Whether any finding is an error; `edgevit lint` then exits with status 1."""
    return any(finding.level == "error" for finding in findings)
