"""The outcome of a search: finalists are measured and checked, and the recommended bundle is published."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from edgevit.bundles import store
from edgevit.bundles.bundle import Bundle, bundle_name
from edgevit.bundles.latency_file import write_latency
from edgevit.bundles.manifest import LATENCY_FILE, MANIFEST_FILE, TUNING_FILE
from edgevit.errors import BuildError, EdgevitError, MeasureError, ParityError
from edgevit.export.forms import STANDARD
from edgevit.latency.compare import latency_figures, side_by_side
from edgevit.latency.environment import Environment
from edgevit.latency.report import LatencyReport
from edgevit.pipeline.export_run import StageTimer
from edgevit.pipeline.tuning.config import DEFAULT_LIMIT_S, TuneConfig
from edgevit.pipeline.tuning.deadline import Deadline
from edgevit.pipeline.tuning.device_cache import write_choices
from edgevit.pipeline.tuning.examiner import Examiner, Verification
from edgevit.pipeline.tuning.finals import Finalist, measure_finalists, stage, with_peak_memory
from edgevit.pipeline.tuning.report import Row, TuningReport, decides, recommended
from edgevit.pipeline.tuning.search import Search
from edgevit.pipeline.tuning.space import Configuration
from edgevit.pipeline.tuning.workspace import Refusal
from edgevit.runtimes.parity import ParityReport
from edgevit.untrusted import Json

FINAL_S = 1.5  # at least, of the runs of each engine in the final measurement
_FINAL_FRACTION = 0.35  # of the rest of the time, for the final measurement
_PEAK_S = 10.0  # must be left to measure the peak memory of an engine, in a process of its own
_FINALIST_S = 3.0  # at least for each engine of the final measurement


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """The finalists of a search by name, measured and, as far as there was time, checked."""

    search: Search
    examiner: Examiner
    finalists: Mapping[str, Finalist]
    checked: Mapping[str, Verification]
    rows: tuple[Row, ...]  # the reference first, then by time

    def report(self, config: TuneConfig, *, not_installed: Mapping[str, str]) -> TuningReport:
        """Return the report with its recommendation. Raises ParityError if no engine passed its checks."""
        search, winner = self.search, recommended(self.rows)
        if winner is None:
            failures = "; ".join(found.failure for found in self.checked.values())
            raise ParityError(f"no engine passed its checks: {failures}")
        model, variant = search.builder.export.model.name, winner.configuration.variant
        return TuningReport(
            model=model,
            rows=self.rows,
            winner=winner,
            path=config.out / bundle_name(model, variant.precision, variant.fmt),
            races=tuple(search.races),
            refused=tuple(search.refused),
            not_tried=tuple(search.not_tried),
            not_installed=dict(not_installed),
            notes=(
                *self.examiner.warnings(self.checked[winner.name]),
                *_notes(
                    search,
                    self.examiner.images_note,
                    threads=config.threads,
                    calibrated=config.calib is not None,
                ),
            ),
            elapsed_s=search.deadline.elapsed_s,
            limit_s=config.limit_s,
            complete=not search.not_tried,
            cached=False,
            int8_range=config.weight_range,
            torch_options=search.builder.export.model.origin.torch_options,
        )

    def publish(self, report: TuningReport) -> None:
        """Write the recommended bundle, with the search in tuning.json and all samples in latency.json."""
        parity = self.checked[report.winner.name].parity
        assert parity is not None  # of an engine that passed
        _publish(report, self.finalists[report.winner.name].bundle, parity)


def measure_and_check(search: Search, config: TuneConfig, folder: Path, timer: StageTimer) -> Outcome:
    """Measure the finalists, whose bundles are created in `folder`, and check them from the fastest on.

    Raises the reason why there is no finalist, or MeasureError if none can be measured.
    """
    _require_bundles(search, config.limit_s)
    finalists = _stage(search, folder)
    reports = _measure(search, finalists, timer)
    examiner = Examiner(export=search.builder.export, deadline=search.deadline, max_drop=config.allowed_drop)
    checked = _verify(examiner, finalists, reports, timer)
    search.refused += [Refusal(name, found.failure, found.error) for name, found in checked.items() if found.failure]
    rows = _rows(_with_peak_memory(search.deadline, finalists, reports, timer), finalists, checked)
    return Outcome(search=search, examiner=examiner, finalists=finalists, checked=checked, rows=rows)


def _require_bundles(search: Search, limit_s: float) -> None:
    """Raise the reason why the search built no engine, if it built none."""
    if search.bundles:
        return
    if search.interrupted:
        raise KeyboardInterrupt
    if search.refused:
        order = {variant.name: index for index, variant in enumerate(search.variants)}
        # Refusals of an earlier run were noted first.
        raise _nothing_built(sorted(search.refused, key=lambda each: order.get(each.name, len(order))))
    raise MeasureError(f"no engine was built within {limit_s:g} s; give more time: {_more_time(limit_s)}")


def _more_time(limit_s: float) -> str:
    """Return a --time option of twice the limit, at least the default."""
    return f"--time {math.ceil(max(DEFAULT_LIMIT_S, 2 * limit_s) / 60)}m"


def _nothing_built(refused: Sequence[Refusal]) -> EdgevitError:
    """Return the error for a search that built no engine: of the class that all refusals share, else a BuildError."""
    kinds = {each.error for each in refused}
    kind = kinds.pop() if len(kinds) == 1 else BuildError
    reasons = "; ".join(dict.fromkeys(f"{each.name}: {each.reason}" for each in refused))
    advice = "correct that and run again with --fresh, or name other formats with --fmt"
    return kind(f"no engine could be built: {reasons}; {advice}")


def _stage(search: Search, folder: Path) -> dict[str, Finalist]:
    """Create the bundles of the finalists in a new folder, by name."""
    advice = "free some space, or set TMPDIR to another folder"
    with store.translate_write_errors(folder, advice=advice):
        folder.mkdir()
        found = [stage(each, search.bundles[each.variant.name], folder) for each in _finalists(search)]
    return {each.configuration.name: each for each in found}


def _measure(search: Search, finalists: Mapping[str, Finalist], timer: StageTimer) -> tuple[LatencyReport, ...]:
    """Measure the finalists in one run. Raises MeasureError if none opens; the search keeps why others do not."""
    duration_s = FINAL_S / 4 if search.interrupted else FINAL_S
    with timer.stage("final measurement"):
        limit_s = _FINAL_FRACTION * search.deadline.remaining_s
        reports, failed = measure_finalists(list(finalists.values()), limit_s=limit_s, duration_s=duration_s)
    search.refused += failed
    if not reports:
        raise MeasureError(f"no engine could be measured: {'; '.join(each.reason for each in failed)}")
    return reports


def _verify(
    examiner: Examiner, finalists: Mapping[str, Finalist], reports: Sequence[LatencyReport], timer: StageTimer
) -> dict[str, Verification]:
    """Check the engines, the fastest first. When the time is up, only those that the recommendation depends on."""
    checked: dict[str, Verification] = {}
    for report in sorted(reports, key=lambda report: report.ms_per_image):
        if examiner.deadline.remaining_s < _FINALIST_S:
            rows = _rows(reports, finalists, checked)
            if not decides(next(row for row in rows if row.name == report.name), rows):
                continue
        with timer.stage(f"check {report.name}"):
            checked[report.name] = examiner.verify(finalists[report.name], ms_per_image=report.ms_per_image)
    return checked


def _with_peak_memory(
    deadline: Deadline, finalists: Mapping[str, Finalist], reports: Sequence[LatencyReport], timer: StageTimer
) -> list[LatencyReport]:
    """Return the reports with the peak memory of as many engines as there is time for."""
    found = []
    for report in reports:
        if deadline.remaining_s < _PEAK_S:
            break
        with timer.stage(f"memory of {report.name}"):
            found.append(with_peak_memory(report, finalists[report.name]))
    return [*found, *reports[len(found) :]]


def _rows(
    reports: Sequence[LatencyReport], finalists: Mapping[str, Finalist], checked: Mapping[str, Verification]
) -> tuple[Row, ...]:
    """Return the engines as the report lists them: the reference first, then by time."""
    reference, *others = (
        Row(
            configuration=finalists[compared.report.name].configuration,
            latency=compared.report,
            ratio=compared.ratio,
            verification=checked.get(compared.report.name),
            size_bytes=finalists[compared.report.name].size_bytes,
        )
        for compared in side_by_side(reports)
    )
    return reference, *sorted(others, key=lambda row: row.ms_per_image)


def _finalists(search: Search) -> list[Configuration]:
    """Return the reference first, then the best of each runtime and precision, as many as there is time for."""
    places = {
        standing.name: standing.ratio
        for title, outcome in search.races
        if title == "variants"
        for standing in outcome.standings
    }

    def place(configuration: Configuration) -> float:
        standard = replace(configuration.variant, form=STANDARD, groups=(), batch=search.builder.batch)
        return places.get(search.start(standard).name, math.inf)

    ordered = sorted(search.best.values(), key=place)
    fp32 = [each for each in ordered if each.variant.precision == "fp32"] or ordered
    reference = Configuration(
        variant=replace(fp32[0].variant, form=STANDARD, batch=search.builder.batch),
        threads=search.threads[0],
        streams=1 if search.throughput else None,
    )
    count = max(2, int(search.deadline.remaining_s / 2 / _FINALIST_S))
    return list({each.name: each for each in (reference, *ordered)}.values())[:count]


def _notes(search: Search, images_note: str, *, threads: Sequence[int], calibrated: bool) -> tuple[str, ...]:
    """Return notes on what was tried; `threads` are the numbers that were requested."""
    notes = [images_note, *_group_notes(search), _threads_note(threads, search.threads)]
    if not calibrated:
        notes.append("int8 was not tried: give calibration images with --calib DIR")
    if search.interrupted:
        notes.append("interrupted: this is the best so far; run the command again to go on")
    elif search.not_tried:
        notes.append("the time was up before everything was tried; run the command again to go on")
    return tuple(note for note in notes if note)


def _threads_note(requested: Sequence[int], tried: Sequence[int]) -> str:
    """Return a note on the numbers of threads that were requested and are more than the cores."""
    excess = [str(count) for count in requested if count not in tried]
    if not excess:
        return ""
    used = ",".join(map(str, tried))
    return f"--threads {','.join(excess)} was not tried, since this process may use fewer cores; tried: {used}"


def _group_notes(search: Search) -> list[str]:
    """Return a note for each group of layers whose precision is not that of the rule."""
    return [
        f"{each.variant.name}: {choice.reason}; it is in {'int8' if choice.in_int8 else 'float'}"
        for each in search.best.values()
        for choice in each.variant.groups
        if choice.moved
    ]


def _publish(report: TuningReport, bundle: Bundle, parity: ParityReport) -> None:
    """Publish a copy of `bundle` with the search, the samples and `parity`."""
    target = report.path
    with store.staging(target.parent) as staging:
        folder = staging / target.name
        reports = [] if report.under_load else [row.latency for row in report.rows]
        manifest = replace(
            bundle.manifest,
            parity=_joined(bundle.manifest.parity, parity),
            latency=tuple(latency_figures(each) for each in reports),
            environment=Environment.capture().to_json(),
        )
        with store.translate_write_errors(target):
            store.copy_folder(bundle.path, folder, left_out=(MANIFEST_FILE, LATENCY_FILE))
            if reports:
                write_latency(folder, reports)
            (folder / TUNING_FILE).write_text(json.dumps(report.to_json(), indent=2, allow_nan=False) + "\n", "utf-8")
            store.write_manifest(folder, manifest)
        store.publish({folder: target})


def _joined(built: Json | None, final: ParityReport) -> Json:
    """Return the parity of the build with that of the engine as it is published, with its settings."""
    found = final.to_json()
    return found if built is None else {**found, "results": [*built.get("results", []), *found["results"]]}


def keep_for_auto(report: TuningReport, key: str) -> bool:
    """Keep the engines that passed for --fmt auto, and remove those that are wrong; False if that fails."""
    refused = {each.name for each in report.refused if each.is_final}
    return write_choices(key, report.model, report.choices(), refused=refused)
