"""latency.json of a bundle: every sample of the last measurement, with the hashes of the files that were measured."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from edgevit.bundles import store
from edgevit.bundles.bundle import Bundle
from edgevit.bundles.manifest import LATENCY_FILE, MANIFEST_FILE, FileRecord, Manifest, read_manifest
from edgevit.errors import BundleError
from edgevit.files import MODEL_FILE, file_sha256, first_line, link_or_copy, os_reason
from edgevit.latency.compare import latency_figures
from edgevit.latency.report import LatencyReport
from edgevit.untrusted import read_json

MAX_LATENCY_BYTES = 1 << 30


def write_latency(folder: Path, reports: Sequence[LatencyReport]) -> None:
    """Write all samples of one run, of all candidates; the manifest holds the figures derived from them."""
    content = [report.to_json() for report in reports]
    (folder / LATENCY_FILE).write_text(json.dumps(content, allow_nan=False) + "\n", "utf-8")


def read_latency(bundle: Bundle) -> tuple[LatencyReport, ...]:
    """Return the reports of the bundle's last measurement; none if it keeps no measurement.

    Raises BundleError if the file is damaged.
    """
    if LATENCY_FILE not in {file.path for file in bundle.manifest.files}:
        return ()
    path = bundle.path / LATENCY_FILE
    try:
        return tuple(map(LatencyReport.from_json, read_json(path, limit_bytes=MAX_LATENCY_BYTES)))
    except OSError as error:
        raise BundleError(f"cannot read {path}: {os_reason(error)}") from error
    except (TypeError, ValueError) as error:  # UsageError and InvalidError are both
        raise BundleError(f"{path} is damaged ({first_line(error)}); measure again: edgevit latency BUNDLE") from error


def artifact_details(engine: Path, model: Path, *, precision: str) -> dict[str, str]:
    """Return the details of a report that tie it to the files that were measured, and to the precision that ran."""
    return {"precision": precision, "engine_sha256": file_sha256(engine), "onnx_sha256": file_sha256(model)}


def bundle_details(bundle: Bundle, *, precision: str) -> dict[str, str]:
    """Return `artifact_details` of a bundle that has an engine; its hashes were checked when it was opened."""
    hashes = {file.path: file.sha256 for file in bundle.manifest.files}
    engine = bundle.manifest.engine_records[0]
    return {"precision": precision, "engine_sha256": engine.sha256, "onnx_sha256": hashes[MODEL_FILE]}


def keep_latency(bundle: Bundle, reports: Sequence[LatencyReport]) -> None:
    """Store a measurement in the bundle, in place of an earlier one; the bundle is replaced as a whole.

    Raises BundleError if another bundle is there meanwhile, ExportError if it cannot be written.
    """
    target = bundle.path.resolve()
    with store.staging(target.parent) as staging:
        folder = staging / target.name
        measured, found = _fixed_files(bundle.manifest), read_manifest(target)
        if _fixed_files(found) != measured:
            raise BundleError(f"{target} was replaced during the measurement; measure it again")
        with store.translate_write_errors(folder, advice="free some space"):
            store.copy_folder(target, folder, copy=link_or_copy, left_out=(LATENCY_FILE, MANIFEST_FILE))
            write_latency(folder, reports)
            latency = folder / LATENCY_FILE
            record = FileRecord(path=LATENCY_FILE, size_bytes=latency.stat().st_size, sha256=file_sha256(latency))
            files = sorted((*_others(found), record), key=lambda file: file.path)
            figures = tuple(latency_figures(report) for report in reports)
            store.save_manifest(folder, replace(found, latency=figures, files=tuple(files)))
        store.publish({folder: target})


def _others(manifest: Manifest) -> list[FileRecord]:
    return [file for file in manifest.files if file.path != LATENCY_FILE]


def _fixed_files(manifest: Manifest) -> Mapping[str, str]:
    return {file.path: file.sha256 for file in _others(manifest)}
