"""`tune`: search, measure the finalists, check them, and publish the bundle that is recommended."""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import shutil
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import takewhile
from pathlib import Path

from edgevit.bundles import store
from edgevit.bundles.bundle import Bundle, bundle_name
from edgevit.bundles.latency_file import write_latency
from edgevit.bundles.manifest import LATENCY_FILE, MANIFEST_FILE, TUNING_FILE
from edgevit.errors import BuildError, EdgevitError, MeasureError, MissingError, ParityError, UsageError
from edgevit.export.forms import STANDARD
from edgevit.export.graph import OnnxGraph
from edgevit.formats import Int8Range
from edgevit.latency.compare import latency_figures, side_by_side
from edgevit.latency.environment import Environment
from edgevit.latency.report import LatencyReport
from edgevit.models.description import ModelDescription
from edgevit.pipeline import run as pipeline
from edgevit.pipeline.config import (
    DEFAULT_MAX_DROP,
    Calibration,
    ExportConfig,
    require_max_drop,
    widest_int8_range,
)
from edgevit.pipeline.export_run import Progress, StageTimer
from edgevit.pipeline.source import source_of
from edgevit.pipeline.tuning.bench import Bench
from edgevit.pipeline.tuning.builder import Builder
from edgevit.pipeline.tuning.deadline import Deadline
from edgevit.pipeline.tuning.device_cache import device_key, write_choices
from edgevit.pipeline.tuning.examiner import Examiner, Verification, require_readable
from edgevit.pipeline.tuning.finals import Finalist, measure_finalists, stage, with_peak_memory
from edgevit.pipeline.tuning.report import Row, TuningReport, decides, recommended
from edgevit.pipeline.tuning.search import Search
from edgevit.pipeline.tuning.space import Configuration, Variant, usable_formats, usable_threads, variants
from edgevit.pipeline.tuning.workspace import Refusal, Workspace, discard, open_workspace
from edgevit.runtimes.base import BuildOptions
from edgevit.runtimes.parity import ParityReport
from edgevit.untrusted import Json

DEFAULT_LIMIT_S = 600.0
FINAL_S = 1.5  # at least, of the runs of each engine in the final measurement
_RESERVE_FRACTION, _RESERVE_S = 0.3, 120.0  # of the time, for the finals: a fraction, and at most so many seconds
_INTERRUPTED_S = 20.0  # for the finals after Ctrl-C
_FINAL_FRACTION = 0.35  # of the rest of the time, for the final measurement
_PEAK_S = 10.0  # must be left to measure the peak memory of an engine, in a process of its own
_FINALIST_S = 3.0  # at least for each engine of the final measurement


@dataclass(frozen=True, slots=True, kw_only=True)
class TuneConfig:
    """The options of a search. Raises UsageError for values that make no sense."""

    formats: tuple[str, ...] = ()  # empty: all that are installed
    threads: tuple[int, ...] = ()  # to try; empty: all cores, and half of them
    limit_s: float = DEFAULT_LIMIT_S  # of the whole search, builds and checks included
    calib: Calibration | None = None  # without it, int8 is not tried
    eval: Path | None = None
    max_drop: float | None = None
    int8_range: Int8Range | None = None  # None: see `widest_int8_range`
    images: Path | None = None
    strict: bool = False
    out: Path = Path()
    throughput: bool = False  # whether images per second under full load count, not the latency
    fresh: bool = False  # whether an earlier, unfinished search is discarded
    start_s: float = field(default_factory=time.monotonic)  # of `time.monotonic`, from which the limit counts

    def __post_init__(self) -> None:
        if not 0 < self.limit_s < math.inf:
            raise UsageError(f"--time must be a time above 0, such as 10m; got {self.limit_s:g} s")
        if self.max_drop is not None and self.eval is None and self.calib is None:
            raise UsageError("--max-drop needs --eval DIR or --calib DIR: nothing can lose accuracy otherwise")
        require_max_drop(self.max_drop)
        for count in self.threads:
            BuildOptions(threads=count)  # raises UsageError for an impossible number

    @property
    def allowed_drop(self) -> float | None:
        return DEFAULT_MAX_DROP if self.max_drop is None and self.eval is not None else self.max_drop

    @property
    def weight_range(self) -> Int8Range:
        """The range of int8 weights. An engine tuned for this machine need not be correct on another one."""
        return self.int8_range or widest_int8_range()


def tune(
    model: ModelDescription, config: TuneConfig, progress: Progress | None = None, *, captured: OnnxGraph | None = None
) -> TuningReport:
    """Find the fastest engine of `model` on this machine, check it, and publish its bundle.

    `captured` is the model's graph if it has been captured before.

    Ends within `config.limit_s`, or at Ctrl-C, with the best so far; the next call goes on from there. Raises
    MissingError if no runtime is installed, MeasureError if the time allows no measurement, ParityError if no engine
    passes its checks, and if none can be built, the error that all have in common, else BuildError.
    """
    reserve_s = min(_RESERVE_S, _RESERVE_FRACTION * config.limit_s)
    deadline = Deadline(config.limit_s, reserve_s=reserve_s, start_s=config.start_s)
    formats, not_installed = usable_formats(config.formats)
    if not formats:
        raise MissingError(f"no runtime runs here: {'; '.join(not_installed.values())}")
    tried = variants(formats, calibrated=config.calib is not None, batch=model.batch)
    _require_writable(config.out, [bundle_name(model.name, each.precision, each.fmt) for each in tried])
    timer = StageTimer(progress)
    base = _export_config(config, formats, batch=model.batch)
    if captured is None and config.calib is None:  # an ONNX file with int8 layers is tried as it is
        captured = source_of(model).capture(timer, BuildOptions(batch=model.batch))
    with tempfile.TemporaryDirectory(prefix="edgevit-") as scratch:
        export, graph, graph_parity = pipeline.prepare(model, base, timer, Path(scratch), captured=captured)
        graph_parity.require()
        require_readable(export.references.eval_dataset)
        key = device_key(graph)
        with open_workspace(_search_key(key, model, config), fresh=config.fresh) as workspace:
            limited = _limited(progress, deadline)
            builder = Builder(export=export, graph=graph, graph_parity=graph_parity, progress=limited)
            search = _search(builder, workspace, deadline, config, tried, timer)
            search.run()
            if search.interrupted:
                deadline.shorten(_INTERRUPTED_S)
            timer.update("final measurement")
            report = _finish(search, config, Path(scratch), timer, not_installed, key)
            if report.complete:
                discard(workspace)
    return report


def _require_writable(out: Path, names: Sequence[str]) -> None:
    """Raise ExportError before the search if no bundle can be written in `out`, or one of them would replace a file.

    Leaves no folder behind: a search may end without a bundle.
    """
    created = list(takewhile(lambda folder: not os.path.lexists(folder), (out, *out.parents)))
    try:
        with store.staging(out):
            for name in names:
                store.require_replaceable(out / name)
    finally:
        with contextlib.suppress(OSError):
            for folder in created:
                folder.rmdir()


def _export_config(config: TuneConfig, formats: Sequence[str], *, batch: int) -> ExportConfig:
    """Return the options of the export that all variants share: those of the most demanding precision."""
    return pipeline.target_this_machine(
        ExportConfig(
            formats=tuple(formats),
            options=BuildOptions(precision="fp16" if config.calib is None else "int8", batch=batch),
            images=config.images,
            calib=config.calib,
            eval=config.eval,
            int8_range="safe" if config.calib is None else config.weight_range,
            max_drop=config.max_drop,
            strict=config.strict,
        )
    )


def _limited(progress: Progress | None, deadline: Deadline) -> Progress:
    """Return a progress function that also ends a build whose time is up."""

    def on_stage(name: str, elapsed_s: float | None) -> None:
        if progress is not None:
            progress(name, elapsed_s)
        deadline.check()

    return on_stage


def _search(
    builder: Builder,
    workspace: Workspace,
    deadline: Deadline,
    config: TuneConfig,
    tried: Sequence[Variant],
    timer: StageTimer,
) -> Search:
    bundles: dict[str, Bundle] = {}
    refused: list[Refusal] = []
    bench = Bench(
        workspace=workspace,
        bundles=bundles,
        feeds=builder.export.references.outputs[0].batch,
        check_time=deadline.check,
        remaining_s=lambda: deadline.search_s,
        on_refused=lambda name, error: refused.append(Refusal.of(name, error)),
    )
    return Search(
        builder=builder,
        workspace=workspace,
        bench=bench,
        deadline=deadline,
        variants=tried,
        threads=usable_threads(config.threads),
        throughput=config.throughput,
        on_step=timer.update,
        bundles=bundles,
        refused=refused,
    )


def _finish(
    search: Search,
    config: TuneConfig,
    scratch: Path,
    timer: StageTimer,
    not_installed: Mapping[str, str],
    key: str,
) -> TuningReport:
    """Measure the finalists, check them from the fastest on, and publish the bundle that is recommended.

    Those that passed are kept under `key`, the graph's on this machine, before that.
    """
    _require_bundles(search, config.limit_s)
    finalists = _stage(search, scratch / "finalists")
    reports = _measure(search, finalists, timer)
    examiner = Examiner(export=search.builder.export, deadline=search.deadline, max_drop=config.allowed_drop)
    checked = _verify(examiner, finalists, reports, timer)
    search.refused += [Refusal(name, found.failure, found.error) for name, found in checked.items() if found.failure]
    rows = _rows(_with_peak_memory(search.deadline, finalists, reports, timer), finalists, checked)
    winner = recommended(rows)
    if winner is None:
        raise ParityError(f"no engine passed its checks: {'; '.join(found.failure for found in checked.values())}")
    tuned = TuningReport(
        model=search.builder.export.model.name,
        rows=rows,
        winner=winner,
        path=config.out / _name(search, winner),
        races=tuple(search.races),
        refused=tuple(search.refused),
        not_tried=tuple(search.not_tried),
        not_installed=dict(not_installed),
        notes=(*examiner.warnings(checked[winner.name]), *_notes(search, config, examiner)),
        elapsed_s=search.deadline.elapsed_s,
        limit_s=config.limit_s,
        complete=not search.not_tried,
        cached=False,
    )
    parity = checked[winner.name].parity
    assert parity is not None  # of an engine that passed
    tuned = replace(tuned, cached=not config.throughput and _keep(tuned, key))
    _publish(tuned, finalists[winner.name].bundle, parity)
    return tuned


def _require_bundles(search: Search, limit_s: float) -> None:
    """Raise the reason why the search built no engine, if it built none."""
    if search.bundles:
        return
    if search.interrupted:
        raise KeyboardInterrupt
    if search.refused:
        raise _nothing_built(search.refused)
    raise MeasureError(f"no engine was built within {limit_s:g} s; give more time: {_more_time(limit_s)}")


def _more_time(limit_s: float) -> str:
    """Return the option for twice the time, and for the default at least."""
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


def _name(search: Search, winner: Row) -> str:
    variant = winner.configuration.variant
    return bundle_name(search.builder.export.model.name, variant.precision, variant.fmt)


def _notes(search: Search, config: TuneConfig, examiner: Examiner) -> tuple[str, ...]:
    notes = [examiner.images_note, *_group_notes(search), _threads_note(config.threads, search.threads)]
    if config.calib is None:
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
    used = ", ".join(map(str, tried))
    return f"--threads {','.join(excess)} was not tried, since this process may use fewer cores; {used} was"


def _group_notes(search: Search) -> list[str]:
    """Return a note for each group of layers whose precision is not that of the rule."""
    return [
        f"{each.variant.name}: {choice.reason}; it is in {'int8' if choice.in_int8 else 'float'}"
        for each in search.best.values()
        for choice in each.variant.groups
        if choice.moved
    ]


def _publish(report: TuningReport, bundle: Bundle, parity: ParityReport) -> None:
    """Write the recommended bundle, with the search in tuning.json and all samples in latency.json."""
    target = report.path
    with store.staging(target.parent) as staging:
        folder = staging / target.name
        shutil.copytree(bundle.path, folder, ignore=shutil.ignore_patterns(MANIFEST_FILE, LATENCY_FILE))
        reports = [] if report.under_load else [row.latency for row in report.rows]
        if reports:
            write_latency(folder, reports)
        (folder / TUNING_FILE).write_text(json.dumps(report.to_json(), indent=2, allow_nan=False) + "\n", "utf-8")
        manifest = replace(
            bundle.manifest,
            parity=_joined(bundle.manifest.parity, parity),
            latency=tuple(latency_figures(each) for each in reports),
            environment=Environment.capture().to_json(),
        )
        store.write_manifest(folder, manifest)
        store.publish({folder: target})


def _joined(built: Json | None, final: ParityReport) -> Json:
    """Return the parity of the build with that of the engine as it is published, with its settings."""
    found = final.to_json()
    return found if built is None else {**found, "results": [*built.get("results", []), *found["results"]]}


def _keep(report: TuningReport, key: str) -> bool:
    """Keep the engines that passed for --fmt auto, and remove those that are wrong; False if that fails."""
    refused = {each.name for each in report.refused if each.is_final}
    return write_choices(key, report.model, report.choices(), refused=refused)


def _search_key(key: str, model: ModelDescription, config: TuneConfig) -> str:
    """Return the name of the search's folder: a hash of what decides the bundles that are built, or refused.

    They hold the preprocessing, the class names and the origin of the model, which `key` does not cover.
    """
    described = (model.name, model.preprocessing, model.preprocessing_source, model.classes, model.origin)
    folders = [_fingerprint(data) for data in (config.calib, config.eval, config.images)]
    content = [key, repr(described), folders, config.max_drop, config.weight_range, config.strict]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:32]


def _fingerprint(data: Calibration | None) -> list[str]:
    """Return what changes if the files of a folder change, images and labels, or the hashes of arrays."""
    if data is None:
        return []
    if isinstance(data, Mapping):
        return [f"{name} {hashlib.sha256(array.tobytes()).hexdigest()}" for name, array in sorted(data.items())]
    if not data.is_dir():
        return [str(data)]
    files = sorted(path for path in data.rglob("*") if path.is_file() and not path.name.startswith("."))
    return [f"{path} {path.stat().st_size} {path.stat().st_mtime_ns}" for path in files]
