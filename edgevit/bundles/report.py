"""Assemble the latency report of bundles, from a measurement just made or from those that the bundles keep."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from edgevit.bundles.bundle import Bundle, display_names
from edgevit.bundles.labeled import LabeledBoxes, LabeledMasks
from edgevit.bundles.latency_file import read_latency
from edgevit.bundles.manifest import JUDGED_ENGINE
from edgevit.bundles.source_model import torch_options
from edgevit.errors import UsageError
from edgevit.files import MODEL_FILE
from edgevit.latency.document.content import Document, Session, session_of
from edgevit.latency.document.product import Accuracy, EngineParity, Product
from edgevit.latency.report import LatencyReport
from edgevit.metrics import TOP1, accuracy_key
from edgevit.runtimes.registry import get_runtime
from edgevit.untrusted import InvalidError, Json, JsonObject, boolean, integer, list_of, nullable, number, one_of, text

_ENGINE_STAGE = ": engine"  # ends the name of the stage of a parity check that is the engine's own

_METRICS = (TOP1, LabeledBoxes.metric, LabeledMasks.metric)
_MOST_DB = 1e4


def measured_document(bundles: Sequence[Bundle], reports: Sequence[LatencyReport], *, edgevit_version: str) -> Document:
    """Return the document of a run that was just made."""
    return Document(sessions=(_session(reports, _owned(bundles), {}),), edgevit_version=edgevit_version)


def kept_document(bundles: Sequence[Bundle], *, edgevit_version: str) -> Document:
    """Return the document of the measurements that the bundles keep, one session for each interleaved run.

    A bundle without a measurement is named in a note. Raises UsageError if none has one, BundleError if one is damaged.
    """
    owned, notes = _owned(bundles), []
    runs: dict[str, dict[str, LatencyReport]] = {}
    keepers: dict[tuple[str, str], _Owned] = {}  # by run and name of the report
    own_runs: list[set[str]] = []  # that each bundle keeps
    for each in owned:
        reports = read_latency(each.bundle)
        own_runs.append({report.run_id for report in reports})
        if not reports:
            notes.append(f"{each.product.name} was not measured: edgevit latency {shlex.quote(each.product.path)}")
        for report in reports:
            runs.setdefault(report.run_id, {}).setdefault(report.name, report)
            if each.made(report):
                other = keepers.setdefault((report.run_id, report.name), each)
                if each.is_named_by(report) and not other.is_named_by(report):
                    keepers[report.run_id, report.name] = each
    if not runs:
        path = shlex.quote(str(bundles[0].path))
        raise UsageError(f"no bundle keeps a measurement; measure first: edgevit latency {path}")

    def measured(run: str) -> list[_Owned]:
        """Return the bundles but those that keep other runs only, and lie elsewhere than the keepers of this one."""
        beside = {each.bundle.path.parent for (kept, _), each in keepers.items() if kept == run}
        return [
            each
            for each, own in zip(owned, own_runs, strict=True)
            if not own or run in own or each.bundle.path.parent in beside
        ]

    sessions = tuple(_session(list(named.values()), measured(run), keepers) for run, named in runs.items())
    return Document(sessions=sessions, edgevit_version=edgevit_version, notes=tuple(notes))


@dataclass(frozen=True, slots=True)
class _Owned:
    """A bundle and what a document shows of it."""

    bundle: Bundle
    product: Product

    def made(self, report: LatencyReport) -> bool:
        """Return whether a report is of this bundle's engine."""
        return report.details.get("engine_sha256") == self.product.engine_sha256

    def is_named_by(self, report: LatencyReport) -> bool:
        """Return whether a report has this bundle's engine and name, to which parents of its folder may belong."""
        name = Path(report.name).parts
        return self.made(report) and self.bundle.path.resolve().parts[-len(name) :] == name

    def timed_by(self, report: LatencyReport) -> Product:
        """Return the product with the command that times it as `report` did."""
        manifest = self.bundle.manifest
        options = replace(self.bundle.options, threads=report.threads or _cores(report))
        engine = Path(manifest.runtime.engine_files[0])
        command = get_runtime(self.bundle.fmt).time_command(engine, options, inputs=manifest.inputs)
        return (
            self.product if command is None else replace(self.product, tool_line=command.line, tool_note=command.note)
        )


def _cores(report: LatencyReport) -> int | None:
    """Return the cores that the measured process could use, on which a runtime runs if no threads are given."""
    affinity = report.environment.affinity
    return len(affinity) if affinity else None


def _session(
    reports: Sequence[LatencyReport], owned: Sequence[_Owned], keepers: Mapping[tuple[str, str], _Owned]
) -> Session:
    """Return a session whose reports know their bundles: the one that keeps them, else one with the same engine.

    A bundle is one engine of the run only: a copy may have been measured beside it. Copies may also have been measured
    on several devices: one beside the bundles that keep this run goes first.
    """
    run_id = reports[0].run_id
    folders = {each.bundle.path.parent for (kept, _), each in keepers.items() if kept == run_id}
    products: dict[str, Product] = {}
    free = list(owned)
    for report in sorted(reports, key=lambda report: not any(each.is_named_by(report) for each in owned)):
        same = [each for each in free if each.made(report)]
        keeper = keepers.get((report.run_id, report.name))

        def distance(each: _Owned, report: LatencyReport = report, keeper: _Owned | None = keeper) -> tuple[bool, ...]:
            return each is not keeper, not each.is_named_by(report), each.bundle.path.parent not in folders

        if same:
            owner = min(same, key=distance)
            free.remove(owner)
            products[report.name] = owner.timed_by(report)
    return session_of(reports, products)


def _owned(bundles: Sequence[Bundle]) -> list[_Owned]:
    names = display_names(bundles)
    return [_Owned(bundle, _product(bundle, name)) for name, bundle in zip(names, bundles, strict=True)]


def _product(bundle: Bundle, name: str) -> Product:
    manifest = bundle.manifest
    runtime, engine = manifest.runtime, manifest.engine_records
    hashes = {file.path: file.sha256 for file in manifest.files}
    return Product(
        name=name,
        path=str(bundle.path),
        model=manifest.model.name,
        weights=manifest.model.weights,
        fmt=bundle.fmt,
        runtime=" ".join(part for part in (runtime.name, runtime.version) if part),
        requested=manifest.precision.requested,
        executed="" if manifest.precision.executed is None else manifest.precision.executed.summary,
        engine_sha256=engine[0].sha256 if engine else "",
        onnx_sha256=hashes[MODEL_FILE],
        engine_bytes=sum(file.size_bytes for file in engine),
        edgevit_version=manifest.edgevit_version,
        parity=None if manifest.parity is None else _parity(manifest.parity),
        accuracy=None if manifest.comparison is None else _accuracy(manifest.comparison),
        torch_options=torch_options(manifest.model),
    )


def _parity(record: Json) -> EngineParity | None:
    """Return the worst figures of the engine's own stage; None if no engine was compared, or the record is damaged."""
    try:
        results = JsonObject.of(record).read("results", list_of(_parse_result))
    except InvalidError:
        return None
    own = [parity for stage, parity in results if stage.endswith(_ENGINE_STAGE)]
    if not own:
        return None
    return EngineParity(
        passed=all(parity.passed for parity in own),
        snr_db=min((parity.snr_db for parity in own if parity.snr_db is not None), default=None),
    )


def _parse_result(value: Any, place: str) -> tuple[str, EngineParity]:
    fields = JsonObject.of(value, place)
    snr_db = fields.read("snr_db", nullable(number(-_MOST_DB, _MOST_DB)))
    return fields.read("stage", text()), EngineParity(passed=fields.read("passed", boolean), snr_db=snr_db)


def _accuracy(record: Json) -> Accuracy | None:
    """Return the engine's accuracy; None if it was not measured, or on another graph than the engine's."""
    fields = JsonObject.of(record)
    try:
        metric = fields.read_or("metric", nullable(one_of(*_METRICS)), None) or TOP1
        value = fields.read_or(accuracy_key(metric), nullable(number(0, 1)), None)
        images = fields.read_or("images", integer(), 0)
        judged = fields.read_or("judged", text(), "")
    except InvalidError:
        return None
    if value is None or judged != JUDGED_ENGINE:
        return None
    return Accuracy(metric=metric, value=value, images=images)
