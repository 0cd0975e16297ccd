"""A whole search on a tiny model: it ends, resumes, refuses wrong engines, and --fmt auto uses what it found."""

from __future__ import annotations

import functools
import json
import logging
import resource
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import edgevit
from edgevit import cpu
from edgevit.bundles.bundle import Bundle
from edgevit.cli.tune import report_parts
from edgevit.errors import BuildError, EdgevitError, ExportError, ImageError, MeasureError, ParityError, UsageError
from edgevit.export import passes
from edgevit.export.graph import OnnxGraph
from edgevit.formats import Int8Range
from edgevit.latency import throughput
from edgevit.latency.candidate import Candidate
from edgevit.latency.measure import measure as measure_candidates
from edgevit.latency.report import LatencyReport
from edgevit.models.loading import LoadedModel, from_module
from edgevit.pipeline import run as pipeline
from edgevit.pipeline.config import ExportConfig, widest_int8_range
from edgevit.pipeline.export_run import Progress, StageTimer
from edgevit.pipeline.source import source_of
from edgevit.pipeline.torch_source import TorchSource
from edgevit.pipeline.tuning import auto, bench, outcome, space, tune
from edgevit.pipeline.tuning import search as search_steps
from edgevit.pipeline.tuning.auto import find_tuned
from edgevit.pipeline.tuning.builder import Builder
from edgevit.pipeline.tuning.config import TuneConfig
from edgevit.pipeline.tuning.deadline import Deadline, OutOfTimeError
from edgevit.pipeline.tuning.device_cache import Choice, device_key, read_choices, write_choices
from edgevit.pipeline.tuning.racing import RUNGS
from edgevit.pipeline.tuning.report import TuningReport
from edgevit.pipeline.tuning.space import Configuration, Variant
from edgevit.runtimes import onnxruntime
from edgevit.runtimes.base import BuildOptions
from edgevit.runtimes.registry import get_runtime
from edgevit.types import Precision
from edgevit.untrusted import JsonObject
from tests.helpers.bundles import manifest_json
from tests.helpers.cli import PHOTO, USER_MODEL, last_line, status
from tests.helpers.graphs import noise
from tests.helpers.reports import printed

LIMIT_S = 60.0


class KilledError(BaseException):
    """Stands for the end of the process: nothing in the search handles it."""


@pytest.fixture(autouse=True, scope="module")
def short_measurements(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Measure for a fraction of a second, and keep the results of each module apart."""
    with pytest.MonkeyPatch.context() as patch:
        short = tuple(
            replace(plan, min_duration_s=0.02, turn_s=0.002, warmup_max_s=0.1, clock_settle_s=0.0) for plan in RUNGS
        )
        patch.setattr(bench, "RUNGS", short)
        patch.setattr(bench, "COMPARISON", short[-1])
        patch.setattr(outcome, "_PEAK_S", LIMIT_S)  # the peak memory takes a process of its own
        patch.setattr(outcome, "FINAL_S", 0.1)
        captured()  # before the time of the first search begins
        cache = tmp_path_factory.mktemp("cache")
        patch.setenv("EDGEVIT_CACHE", str(cache))
        yield cache


def model(seed: int = 0) -> LoadedModel:
    torch.manual_seed(seed)
    module = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(1568, 10))
    return replace(from_module(module, example_input=torch.rand(1, 3, 16, 16)), name="tiny")


@functools.cache
def captured(seed: int = 0) -> OnnxGraph:
    return source_of(model(seed)).capture(StageTimer(), BuildOptions())


def search(config: TuneConfig, progress: Progress | None = None) -> TuningReport:
    graph, capture = captured(), TorchSource.capture

    def capture_once(source: TorchSource, timer: StageTimer, options: BuildOptions) -> OnnxGraph:
        return graph if options.batch == 1 else capture(source, timer, options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TorchSource, "capture", capture_once)
        return tune.tune(model(), config, progress)


@pytest.fixture(scope="module")
def stages() -> list[str]:
    """The stages of `found`, in order."""
    return []


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory, stages: list[str]) -> TuningReport:
    """A complete search with both runtimes."""
    out = tmp_path_factory.mktemp("found")
    return search(config(out, "ort", "openvino"), lambda name, _: stages.append(name))


@pytest.mark.parametrize(
    ("flags", "stated", "expected"),
    [
        ("avx2", None, "safe"),
        ("avx2 avx_vnni", None, "full"),
        ("avx512f avx512_vnni amx_int8", None, "full"),
        ("avx2 avx_vnni", "safe", "safe"),
    ],
)
def test_int8_weights_have_the_widest_range_that_this_processor_computes(
    flags: str, stated: Int8Range | None, expected: Int8Range, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    monkeypatch.setattr(cpu, "cpu_flags", lambda: frozenset(flags.split()))
    config = TuneConfig(calib={"input": np.zeros((1, 3, 16, 16), np.float32)}, int8_range=stated)
    assert tune._export_config(config, ["ort"], batch=1).int8_range == expected


def test_a_search_recommends_an_engine_that_passed(found: TuningReport, stages: list[str]) -> None:
    assert {row.configuration.variant.name for row in found.rows} >= {"fp32-ort", "fp32-openvino"}
    assert all(row.passed for row in found.rows)
    assert found.complete
    milestones = ["build fp32-ort", "build fp32-openvino", "race of the variants", "final measurement"]
    assert [name for name in dict.fromkeys(stages) if name in milestones] == milestones
    assert stages[-1].startswith("check ")  # within the time that is kept for it: see test_deadline.py
    assert found.sentence.startswith(f"recommended: {found.winner.name}")


def test_the_recommended_bundle_opens_with_the_settings_that_won(found: TuningReport) -> None:
    build = manifest_json(found.path)["build"]
    assert build["threads"] == 1
    assert build.get("session", {}) == found.winner.configuration.session.to_json()
    bundle = found.bundle
    assert bundle.options.session == found.winner.configuration.session
    with edgevit.load(bundle) as engine:
        engine.run(bundle.references()[0].batch(1))
    assert status("verify", found.path) == 0


def test_the_bundle_keeps_the_search(found: TuningReport) -> None:
    content = json.loads((found.path / "tuning.json").read_text())
    assert content["schema"] == 1
    assert content["recommended"] == found.winner.name
    assert {engine["name"] for engine in content["engines"]} == {row.name for row in found.rows}
    assert content["races"][0]["title"] == "variants"
    assert "tuning.json" in {file["path"] for file in manifest_json(found.path)["files"]}
    assert len(json.loads((found.path / "latency.json").read_text())) == len(found.rows)


def test_the_report_fits_80_columns(found: TuningReport) -> None:
    assert max(len(line.rstrip()) for line in printed(*report_parts(found, detailed=True))) <= 80


def test_a_complete_search_leaves_no_engines_in_the_cache(found: TuningReport, short_measurements: Path) -> None:
    assert found.complete
    assert not list((short_measurements / "tuning").glob("*/fp32-*"))


def test_the_report_has_the_range_of_int8_weights(found: TuningReport) -> None:
    assert found.int8_range == widest_int8_range()


def test_fmt_auto_takes_what_was_found(found: TuningReport, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(TorchSource, "capture", lambda *_: captured())
    tuned = find_tuned(model(), precision=None, threads=None, calibrated=False)
    assert tuned.choice.configuration == found.winner.configuration
    assert found.winner.name in tuned.sentence
    with pytest.raises(UsageError, match="no tuned engine of tiny fits"):
        find_tuned(model(), precision=None, threads=7, calibrated=False)
    monkeypatch.setattr("edgevit.pipeline.tuning.auto.read_choices", lambda _key: [])
    message = r"tiny was not tuned on this machine in this form \(batch, image size, classes\), so --fmt auto knows no"
    with pytest.raises(UsageError, match=f"{message}.* with the same options and weights "):
        find_tuned(model(), precision=None, threads=None, calibrated=False)


@pytest.mark.parametrize(("requested", "exported"), [(None, "full"), ("full", "full"), ("safe", "safe")])
def test_fmt_auto_exports_the_int8_range_that_was_tuned_unless_another_is_requested(
    requested: Int8Range | None, exported: Int8Range, own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(auto, "device_key", lambda _: "key")
    monkeypatch.setattr(TorchSource, "capture", lambda *_: captured())
    configuration = Configuration(variant=Variant(fmt="ort", precision="int8"), threads=1)
    write_choices(
        "key", "tiny", [Choice(configuration=configuration, p50_ms=1.0, accuracy="SNR 30 dB", int8_range="full")]
    )
    tuned = find_tuned(model(), precision=None, threads=None, calibrated=True, int8_range=requested)
    options = tuned.config(ExportConfig, BuildOptions(), calib=own_cache, labeled=None, max_drop=None)
    assert options.int8_range == exported
    assert ("those of --int8-range full" in tuned.note) == (exported != "full")


def killed_at(stage: str, options: TuneConfig) -> list[str]:
    """Run a search that dies when a stage starts; return the stages before it."""
    seen: list[str] = []

    def progress(name: str, elapsed_s: float | None) -> None:
        if elapsed_s is None and name.startswith(stage):
            raise KilledError
        seen.append(name)

    with pytest.raises(KilledError):
        search(options, progress)
    return seen


def config(out: Path, *formats: str) -> TuneConfig:
    return TuneConfig(formats=formats, threads=(1,), limit_s=LIMIT_S, out=out)


def interrupt(name: str, _: float | None) -> None:
    """Interrupt a search after the race of the variants."""
    if name.startswith("session settings of"):
        raise KeyboardInterrupt


@pytest.fixture
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("EDGEVIT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_a_killed_search_goes_on_from_where_it_was(
    own_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = killed_at("session settings of", config(tmp_path, "ort"))
    assert "ort: build" in before
    measured: list[str] = []
    monkeypatch.setattr(bench, "measure", _recording(measured))
    seen: list[str] = []
    report = search(config(tmp_path, "ort"), lambda name, _: seen.append(name))
    assert "ort: build" not in seen  # built before
    assert len(report.races) >= 2
    assert len(set(measured)) == len(report.races[1][1].standings)  # the race of the variants was run before
    assert report.complete
    assert own_cache.exists()


def changed_photo(folder: Path) -> Path:
    """Return a folder with one photo other than those that come with edgevit."""
    folder.mkdir()
    return Path(shutil.copy(PHOTO, folder / "other.jpg")).parent


def test_a_search_with_other_photos_builds_its_engines_anew(own_cache: Path, tmp_path: Path) -> None:
    killed_at("race of the variants", config(tmp_path, "ort"))
    seen = killed_at("race", replace(config(tmp_path, "ort"), images=changed_photo(tmp_path / "photos")))
    assert "ort: build" in seen
    assert len(list(own_cache.glob("tuning/*/fp32-ort"))) == 2


def _recording(measured: list[str]) -> Callable[..., Sequence[LatencyReport]]:

    def measure(candidates: Sequence[Candidate], *arguments: Any) -> Sequence[LatencyReport]:
        measured.extend(candidate.name for candidate in candidates)
        return measure_candidates(candidates, *arguments)

    return measure


def plant(cache: Path, fmt: str, wrong: LoadedModel) -> None:
    """Replace an engine that an unfinished search has built by that of another model."""
    (built,) = cache.glob(f"tuning/*/fp32-{fmt}/[!.]*")
    shutil.rmtree(built)
    pipeline.run(wrong, ExportConfig(formats=(fmt,), out=built.parent, latency=False), captured=captured(seed=1))
    assert Bundle.open(built)


def test_a_wrong_engine_is_refused_and_the_next_one_taken(own_cache: Path, tmp_path: Path) -> None:
    options = config(tmp_path, "ort", "openvino")
    killed_at("race of the variants", options)
    plant(own_cache, "ort", model(seed=1))
    key = device_key(passes.optimize(captured()))
    wrong = Configuration(variant=Variant(fmt="ort", precision="fp32"), threads=1)
    write_choices(key, "tiny", [Choice(configuration=wrong, p50_ms=1e-3, accuracy="SNR 120 dB")])
    report = search(options, interrupt)
    assert read_choices(key)[0].configuration == report.winner.configuration
    assert report.winner.configuration.variant.fmt == "openvino"
    refused = {each.name: each.reason for each in report.refused}
    assert "parity failed" in refused["fp32-ort: 1 thread"]
    for choices in (report.choices(), read_choices(key)):
        assert not [choice for choice in choices if choice.configuration.variant.fmt == "ort"]
    assert "refused" in "\n".join(printed(*report_parts(report)))


def test_without_an_engine_that_passes_nothing_is_written(own_cache: Path, tmp_path: Path) -> None:
    killed_at("race of the variants", config(tmp_path / "out", "ort"))
    plant(own_cache, "ort", model(seed=1))
    with pytest.raises(ParityError, match="no engine passed"):
        search(config(tmp_path / "out", "ort"), interrupt)
    assert not (tmp_path / "out").exists()
    assert not list(own_cache.glob("tuned/*"))


def test_threads_above_the_cores_are_not_tried(
    own_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(space, "available_cores", lambda: 1)
    report = search(replace(config(tmp_path, "ort"), threads=(4, 1, 8)), interrupt)
    assert {row.configuration.threads for row in report.rows} == {1}
    assert [note for note in report.notes if note.startswith("--threads 4,8 was not tried")]
    assert own_cache.exists()


def test_an_interrupt_ends_with_the_best_so_far(own_cache: Path, tmp_path: Path) -> None:
    report = search(config(tmp_path, "ort"), interrupt)
    assert report.path.is_dir()
    assert report.not_tried[0] == "session settings of ort"
    assert any(note.startswith("interrupted") for note in report.notes)
    assert list(own_cache.glob("tuning/*/fp32-ort"))  # kept for the next run


@pytest.mark.parametrize(
    ("ort", "openvino", "expected"),
    [
        (BuildError, BuildError, BuildError),
        (ParityError, ParityError, ParityError),
        (ParityError, BuildError, BuildError),
        (UsageError, ParityError, BuildError),
    ],
)
def test_a_search_that_builds_nothing_ends_with_the_error_of_the_builds(
    ort: type[EdgevitError],
    openvino: type[EdgevitError],
    expected: type[EdgevitError],
    own_cache: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def build(_: Builder, variant: Variant, __: Path) -> Bundle:
        raise {"ort": ort, "openvino": openvino}[variant.fmt](f"{variant.fmt} is broken")

    monkeypatch.setattr(Builder, "build", build)
    for _ in ("first", "resumed"):
        with pytest.raises(EdgevitError, match="fp32-ort: ort is broken; .*: openvino is broken; .*--fresh") as raised:
            search(config(tmp_path, "ort", "openvino"))
        assert type(raised.value) is expected
    assert own_cache.exists()


def test_an_engine_that_failed_to_build_is_built_in_the_next_run(
    own_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as full:
        full.setattr(Builder, "build", _raising(ExportError("cannot write: File too large")))
        with pytest.raises(ExportError, match="File too large"):
            search(config(tmp_path, "ort"))
    assert search(config(tmp_path, "ort"), interrupt).winner.passed
    assert own_cache.exists()


def test_a_place_that_cannot_be_written_is_refused_before_the_search(own_cache: Path, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("")
    (tmp_path / "taken" / "tiny-fp32-ort").mkdir(parents=True)
    for out, problem in ((file / "out", "cannot write to"), (tmp_path / "taken", "is not a bundle")):
        with pytest.raises(ExportError, match=problem):
            search(config(out, "ort"), lambda name, _: pytest.fail(f"{name} has begun"))
    with pytest.raises(MeasureError):
        search(replace(config(tmp_path / "new" / "out", "ort"), limit_s=0.01))
    assert not (tmp_path / "new").exists()
    assert own_cache.exists()


def labeled_folder(folder: Path, *, photos: int, broken: int = 0) -> Path:
    """Return a folder with photos of class 0, the last `broken` of which cannot be read."""
    (folder / "0").mkdir(parents=True)
    for index in range(photos):
        place = folder / "0" / f"{index:03}{PHOTO.suffix}"
        if index < photos - broken:
            shutil.copy(PHOTO, place)
        else:
            place.write_bytes(b"no image")
    return folder


def test_labeled_images_of_which_none_can_be_read_are_refused_before_the_search(
    own_cache: Path, tmp_path: Path
) -> None:
    stages: list[str] = []
    folder = labeled_folder(tmp_path / "eval", photos=2, broken=2)
    with pytest.raises(ImageError, match="cannot read"):
        search(replace(config(tmp_path, "ort"), eval=folder), lambda name, _: stages.append(name))
    assert not [name for name in stages if "race" in name or name.startswith("build")]
    assert not own_cache.exists()


def test_a_labeled_image_that_cannot_be_read_is_no_fault_of_an_engine(own_cache: Path, tmp_path: Path) -> None:
    folder = labeled_folder(tmp_path / "eval", photos=2, broken=1)
    with pytest.raises(ImageError, match="cannot read"):
        search(replace(config(tmp_path, "ort"), eval=folder, strict=True), interrupt)
    assert own_cache.exists()


def test_a_labeled_image_that_is_left_out_is_named(
    own_cache: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = labeled_folder(tmp_path / "eval", photos=3, broken=1)
    with caplog.at_level(logging.WARNING):
        report = search(replace(config(tmp_path, "ort"), eval=folder), interrupt)
    assert "on 2 images" in report.sentence
    assert [note for note in report.notes if "on 2 images, which are too few" in note or "may be guessing" in note]
    assert len([each for each in caplog.records if "1 of 3 images could not be read" in each.getMessage()]) == 1
    assert own_cache.exists()


@pytest.fixture
def small_files() -> Iterator[None]:
    """Let no file grow above 16 KB: the weights of the model have 64 KB."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (16 << 10, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.usefixtures("small_files")
def test_a_cache_that_cannot_be_written_is_named(own_cache: Path, tmp_path: Path) -> None:
    with pytest.raises(ExportError) as raised:
        search(config(tmp_path / "out", "ort"))
    assert f"cannot write {own_cache}" in str(raised.value)
    assert "File too large; free some space, or set EDGEVIT_CACHE to another folder" in str(raised.value)
    assert "--out" not in str(raised.value)


def _raising(error: EdgevitError) -> Callable[..., Bundle]:
    def build(*_: object) -> Bundle:
        raise error

    return build


def test_a_search_ends_within_its_time(own_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By a clock on which each stage takes three seconds, so that the whole search would take longer than the limit."""
    stages: list[str] = []

    def progress(name: str, _: float | None) -> None:
        if name not in stages[-1:]:
            stages.append(name)

    monkeypatch.setattr(tune, "Deadline", functools.partial(Deadline, clock=lambda: 3.0 * len(stages)))
    report = search(replace(config(tmp_path, "ort", "openvino"), start_s=0.0), progress)
    assert report.not_tried and not report.complete, stages
    assert 0.6 * LIMIT_S < report.elapsed_s <= report.limit_s == LIMIT_S
    assert report.winner.passed
    assert own_cache.exists()


def test_too_little_time_is_an_error_that_says_so(own_cache: Path, tmp_path: Path) -> None:
    with pytest.raises(MeasureError, match=r"no engine was built within 0\.01 s; give more time: --time 10m"):
        search(replace(config(tmp_path, "ort"), limit_s=0.01))
    assert own_cache.exists()


def test_a_search_that_had_ten_minutes_is_told_to_take_twenty(
    own_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def build(*_: object) -> Bundle:
        raise OutOfTimeError

    monkeypatch.setattr(Builder, "build", build)
    with pytest.raises(MeasureError, match=r"no engine was built within 600 s; give more time: --time 20m"):
        search(replace(config(tmp_path, "ort"), limit_s=600.0))
    assert own_cache.exists()


def test_export_auto_on_the_command_line(
    own_cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(auto, "device_key", lambda _: "key")
    (tmp_path / "user.py").write_text(USER_MODEL)
    name = f"{tmp_path / 'user.py'}:build"
    arguments = ("export", name, "--img-size", "32", "--fmt", "auto", "--no-latency", "--out", tmp_path)
    assert status(*arguments) == 2
    assert "edgevit tune" in last_line(capsys)
    configuration = Configuration(variant=Variant(fmt="ort", precision="fp32"), threads=1).with_setting("arena", "off")
    write_choices("key", "user", [Choice(configuration=configuration, p50_ms=1.0, accuracy="SNR 120 dB")])
    assert status(*arguments) == 0
    assert "auto: fp32-ort: 1 thread, arena off, found by edgevit tune" in capsys.readouterr().out
    (path,) = tmp_path.glob("*-fp32-ort")
    assert manifest_json(path)["build"]["session"] == {"arena": "off"}
    assert manifest_json(path)["build"]["threads"] == 1
    assert own_cache.is_dir()


@pytest.mark.parametrize(
    ("precision", "given"),
    [("bf16", ("--calib", PHOTO.parent)), ("fp32", ("--int8-range", "full", "--keep-float", "conv"))],
)
def test_export_auto_leaves_options_to_the_precisions_that_use_them(
    precision: Precision,
    given: tuple[str | Path, ...],
    own_cache: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(auto, "device_key", lambda _: "key")
    (tmp_path / "user.py").write_text(USER_MODEL)
    configuration = Configuration(variant=Variant(fmt="openvino", precision=precision), threads=1)
    write_choices("key", "user", [Choice(configuration=configuration, p50_ms=1.0, accuracy="SNR 40 dB")])
    expected = 0 if get_runtime("openvino").runs_precision(precision) else 9  # as for --bf16, and not 2
    name, out = f"{tmp_path / 'user.py'}:build", tmp_path / "out"
    options = ("--img-size", "32", "--fmt", "auto", *given, "--no-latency", "--out", out)
    assert status("export", name, *options) == expected
    assert own_cache.is_dir()


@pytest.mark.large
def test_a_group_of_layers_that_int8_slows_down_stays_in_float(
    own_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every engine is slowed down by a millisecond but those that have the linear layer in float."""
    monkeypatch.setattr(bench, "measure", _slow_unless("in-float", "by-gain"))
    calib = {captured().inputs[0].name: noise(8, 3, 16, 16, scale=2.0)}
    report = search(replace(config(tmp_path, "ort"), calib=calib))
    (row,) = (each for each in report.rows if each.configuration.variant.precision == "int8")
    assert row.configuration.variant.name == "int8-ort-by-gain"
    (choice,) = (each for each in row.configuration.variant.groups if each.moved)
    assert choice.group == "linear-1568-10-on-1"
    assert choice.ratio is not None
    assert choice.ratio > 1
    assert any("linear-1568-10-on-1 in int8; it is in float" in note for note in report.notes)
    assert Configuration.parse(JsonObject.of(row.configuration.to_json())) == row.configuration
    assert own_cache.exists()


def _slow_unless(*names: str) -> Callable[..., Sequence[LatencyReport]]:
    def slowed(candidate: Candidate) -> Candidate:
        def infer() -> object:
            time.sleep(1e-3)
            return candidate.infer()

        return candidate if any(name in candidate.name for name in names) else replace(candidate, infer=infer)

    def measure(candidates: Sequence[Candidate], *arguments: Any) -> Sequence[LatencyReport]:
        return measure_candidates([slowed(each) for each in candidates], *arguments)

    return measure


@pytest.mark.large
def test_under_load_images_per_second_decide(own_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every inference is slowed down by 10 ms, which the images of a batch share."""
    monkeypatch.setattr(onnxruntime, "_run", _slowed(onnxruntime._run))
    monkeypatch.setattr(throughput, "_TURN_MS", 1.0)
    monkeypatch.setattr(search_steps, "_MAX_BATCH", 4)
    report = search(replace(config(tmp_path, "ort"), throughput=True))
    winner = report.winner
    assert report.under_load and winner.configuration.streams is not None
    assert winner.configuration.variant.batch == 4
    assert report.reference.configuration.streams == 1 and report.reference.configuration.variant.batch == 1
    assert f"{winner.images_per_s:.1f} images/s" in report.sentence and "one inference at a time" in report.sentence
    assert "images/s" in "\n".join(printed(*report_parts(report)))
    assert report.next_command.endswith("--throughput")
    assert not report.cached and not list(own_cache.glob("tuned/*"))  # --fmt auto is for the latency
    bundle = report.bundle
    assert bundle.options.batch == 4 and not bundle.manifest.latency and not (bundle.path / "latency.json").exists()
    assert status("verify", bundle.path) == 0
    content = json.loads((bundle.path / "tuning.json").read_text())
    assert content["throughput"] and {engine["p50_ms"] for engine in content["engines"]} == {None}


def _slowed(run: Callable[..., Any]) -> Callable[..., Any]:
    def slowed(*arguments: Any, **options: Any) -> Any:
        time.sleep(1e-2)
        return run(*arguments, **options)

    return slowed
