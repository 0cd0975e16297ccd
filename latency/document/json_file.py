"""Write a document as JSON of a versioned schema, docs/report_schema.json; samples are compressed."""

from __future__ import annotations

import base64
import zlib
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from edgevit.latency.compare import latency_figures
from edgevit.latency.document.content import Document, Entry, Session
from edgevit.latency.document.product import Product
from edgevit.latency.document.repeat import repeat_command
from edgevit.latency.document.verdict import certified, headline
from edgevit.latency.report import LatencyReport
from edgevit.latency.statistics import bounds

FORMAT = "edgevit latency report"
VERSION = 1  # raised by a change that a reader of the older one would misunderstand

# One number a sample, and its type in the packed bytes.
_PACKED = {"samples_ms": "<f8", "starts_ns": "<i8", "rounds": "<i4", "compute_ms": "<f8"}


def document_json(document: Document) -> dict[str, Any]:
    """Return the document for `json.dump`."""
    return {
        "format": FORMAT,
        "version": VERSION,
        "edgevit_version": document.edgevit_version,
        "notes": list(document.notes),
        "sessions": [_session(session) for session in document.sessions],
    }


def pack(values: Sequence[float], dtype: str) -> dict[str, Any]:
    """Return numbers as base64 of zlib of their bytes."""
    data = base64.b64encode(zlib.compress(np.asarray(values, dtype).tobytes(), 9)).decode()
    return {"encoding": "base64 of zlib", "dtype": dtype, "count": len(values), "data": data}


def _session(session: Session) -> dict[str, Any]:
    first = session.first
    return {
        "run_id": first.run_id,
        "measured_at": first.measured_at,
        "device": session.device,
        "headline": headline(session),
        "certified": certified(session),
        "settings": [{"name": each.name, "state": each.state, "evidence": each.evidence} for each in session.settings],
        "repeat_command": repeat_command(session),
        "environment": first.environment.to_json(),
        "engines": [_engine(entry) for entry in session.entries],
    }


def _engine(entry: Entry) -> dict[str, Any]:
    ratio = entry.ratio
    return {
        "name": entry.name,
        "bundle": None if entry.product is None else _product_json(entry.product),
        "figures": latency_figures(entry.report),
        "ratio": None if ratio is None else ratio.value,
        "ratio_interval": None if ratio is None else bounds(ratio.interval),
        "verdict": None if ratio is None else ratio.verdict,
        "validity": [asdict(check) for check in entry.checks],
        "evidence": _evidence(entry.report),
    }


def _evidence(report: LatencyReport) -> dict[str, Any]:
    """Return every field of the report apart from the environment, which the whole run shares."""
    fields = {name: value for name, value in report.to_json().items() if name != "environment"}
    return {**fields, **{name: pack(fields[name], dtype) for name, dtype in _PACKED.items()}}


def _product_json(product: Product) -> dict[str, Any]:
    """Return a bundle without the options of a command, which `repeat_command` has."""
    return {key: value for key, value in asdict(product).items() if key != "torch_options"}
