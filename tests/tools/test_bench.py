"""The benchmark's page shows what the rows say, and a row that is there is not measured again."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from edgevit.errors import UsageError
from tests.tools.bench import __main__ as bench
from tests.tools.bench import rows, tuned, tuned_rows
from tests.tools.bench.kept import Folders, compiled_by_inductor, kept
from tests.tools.bench.labeled import ImageFolders
from tests.tools.bench.page import geometric_mean, page
from tests.tools.bench.rows import Figures, Row, Speedup, this_revision
from tests.tools.bench.tuned_rows import Entry, TunedRow, counts

ROW = Row(
    model="deit_t",
    threads=1,
    processor="EPYC (avx2)",
    figures={
        "ort": Figures(p50_ms=10.0, snr_db=120.0, bound_ms=8.0),
        "onnx-ort": Figures(p50_ms=12.0, snr_db=121.0),
        "ort-int8": Figures(p50_ms=5.0, snr_db=30.0, bound_ms=4.0),
        "static-full": Figures(p50_ms=7.5, snr_db=20.0),
        "static-reduced": Figures(p50_ms=6.0, snr_db=21.0),
    },
    speedups={
        "ort": {"onnx-ort": Speedup(1.2, 1.1, 1.3)},
        "ort-int8": {
            "ort": Speedup(2.0, 1.9, 2.1),
            "static-full": Speedup(1.5, 1.4, 1.6),
            "static-reduced": Speedup(1.25, 1.2, 1.3),
        },
    },
    missing={"nncf-mixed": "NNCF is not installed"},
    million_parameters=5.7,
    weights="random (seed 0)",
    rounds=20,
    busy_others=0.02,
    packages={"torch": "2.9.0", "openvino": "2025.3"},
    day="2026-01-02",
)
TUNED_ROW = TunedRow(
    model="shiftvit_cifar10",
    threads=1,
    processor="EPYC (avx2)",
    engine="int8-ort-by-gain: 1 thread, arena off",
    limit_s=300.0,
    tuned=Entry(p50_ms=1.0, top1=0.76, counts=True, slowdown=None),
    peers={
        "torch-compile": Entry(p50_ms=3.0, top1=0.7625, counts=True, slowdown=Speedup(3.0, 2.9, 3.1)),
        "nncf-mixed": Entry(p50_ms=1.5, top1=0.755, counts=True, slowdown=Speedup(1.5, 1.4, 1.6)),
        "static-full": Entry(p50_ms=0.8, top1=0.7, counts=False, slowdown=Speedup(0.8, 0.7, 0.9)),
    },
    missing={"nncf-performance": "NNCF failed"},
    torch_top1=0.7625,
    images=2000,
    calibration_images=32,
    weights="included",
    rounds=20,
    busy_others=0.02,
    packages={"torch": "2.9.0"},
    day="2026-01-02",
)


def test_summary_compares_with_the_best_peer() -> None:
    text = page([ROW])

    assert "## EPYC (avx2), 1 thread\n" in text
    assert "| fp32, ONNX Runtime: against the best plain way | 1.20 (1.10 to 1.30) | 1 | `deit_t`" in text
    assert "| int8, ONNX Runtime: against the best quantizer | 1.25 (1.20 to 1.30) | 1 |" in text
    assert "| int8, ONNX Runtime: against edgevit's fp32 | 2.00 (1.90 to 2.10) | 1 |" in text
    assert "OpenVINO: against" not in text  # it was not measured


def test_each_row_has_accuracy_bound_and_what_is_missing() -> None:
    text = page([ROW])

    assert "| `deit_t` | 5.7 | 10.00 | 12.00 | 1.25 | 120 |" in text
    assert "| `deit_t` | random (seed 0) | 5.00 at 30.0 | 7.50 at 20.0 | 6.00 at 21.0 |" in text
    assert "* `deit_t`, nncf-mixed: NNCF is not installed" in text


def test_a_section_names_the_commits_that_were_measured() -> None:
    newer = replace(ROW, model="swin_t", revision="2cffd42")

    assert "2026-01-02; edgevit an unrecorded commit and 2cffd42, torch 2.9.0, openvino 2025.3;" in page([ROW, newer])


def test_a_revision_is_empty_without_git(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")

    assert this_revision() == ""


def test_processors_and_threads_are_kept_apart() -> None:
    text = page([ROW, replace(ROW, threads=2), replace(ROW, processor="Xeon (avx512_vnni)")])

    assert [line for line in text.splitlines() if line.startswith("## ")] == [
        "## EPYC (avx2), 1 thread",
        "## EPYC (avx2), 2 threads",
        "## Xeon (avx512_vnni), 1 thread",
    ]


def test_geometric_mean_is_narrower_than_its_parts() -> None:
    mean = geometric_mean([Speedup(1.0, 0.9, 1 / 0.9), Speedup(4.0, 3.6, 4 / 0.9)])

    assert mean.value == pytest.approx(2.0)
    assert mean.low == pytest.approx(2.0 * 0.9 ** (1 / math.sqrt(2)))
    assert mean.high == pytest.approx(2.0 / 0.9 ** (1 / math.sqrt(2)))


def test_last_row_of_a_key_is_read(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    for row in (ROW, replace(ROW, threads=2), replace(ROW, rounds=21)):
        rows.append(file, row)

    found = rows.read(file)

    assert [(row.threads, row.rounds) for row in found.values()] == [(1, 21), (2, 20)]
    assert found[ROW.key] == replace(ROW, rounds=21)


def test_measured_rows_are_not_measured_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, target = tmp_path / "rows.jsonl", tmp_path / "bench.md"
    rows.append(file, replace(ROW, processor=rows.this_processor()))
    arguments = ["--models", "deit_t", "--threads", "1", "--results", str(file), "--page", str(target)]
    monkeypatch.setattr("sys.argv", ["bench", *arguments])

    assert bench.main() == 0

    assert "`deit_t`" in target.read_text("utf-8")


def test_a_kept_engine_is_built_once_and_appears_whole(tmp_path: Path) -> None:
    def fails(folder: Path) -> None:
        (folder / "model.xml").touch()
        raise ValueError

    with pytest.raises(ValueError):
        kept(tmp_path, "nncf", fails)
    assert list(tmp_path.iterdir()) == []
    assert kept(tmp_path, "nncf", lambda folder: (folder / "model.xml").touch()) == tmp_path / "nncf"
    assert [path.name for path in kept(tmp_path, "nncf", fails).iterdir()] == ["model.xml"]


def test_other_weights_and_other_models_have_other_engines(tmp_path: Path) -> None:
    (tmp_path / "weights.pth").write_bytes(b"1")
    trained, random = Folders.below(tmp_path, "deit_t", tmp_path / "weights.pth"), Folders.below(tmp_path, "deit_t")
    assert trained.peers != random.peers
    assert trained.own != random.own
    assert Folders.below(tmp_path, "deit_t") == random
    assert Folders.below(tmp_path, "swin_t").peers != random.peers


def test_a_processor_with_other_instructions_has_engines_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here, compiled_here = Folders.below(tmp_path, "deit_t"), compiled_by_inductor(tmp_path)
    monkeypatch.setattr("tests.tools.bench.kept.cpu_flags", lambda: frozenset({"avx2"}))
    there = Folders.below(tmp_path, "deit_t")
    assert there.peers == here.peers
    assert there.own != here.own
    assert compiled_by_inductor(tmp_path) != compiled_here


def test_other_calibration_rows_have_other_engines(tmp_path: Path) -> None:
    crops, zeros, ones = (
        Folders.below(tmp_path, "deit_t", calibration=rows)
        for rows in (None, np.zeros((1, 3, 2, 2), np.float32), np.ones((1, 3, 2, 2), np.float32))
    )

    assert len({crops.peers, zeros.peers, ones.peers}) == len({crops.own, zeros.own, ones.own}) == 3


def test_an_engine_counts_if_it_loses_at_most_one_point() -> None:
    assert counts(1525, 1525, 2000)
    assert counts(1600, 1525, 2000)
    assert counts(1505, 1525, 2000)
    assert not counts(1504, 1525, 2000)
    assert counts(71, 72, 100)  # 0.72 - 0.71 is above 0.01 in floating point


def test_best_peer_is_the_fastest_that_counts() -> None:
    best = TUNED_ROW.best_peer
    assert best is not None
    assert best == ("nncf-mixed", Speedup(1.5, 1.4, 1.6))

    inexact = {name: replace(each, counts=False) for name, each in TUNED_ROW.peers.items()}
    assert replace(TUNED_ROW, peers=inexact).best_peer is None


def test_tuned_section_stands_before_the_processors() -> None:
    text = page([ROW], [TUNED_ROW])

    headings = [line for line in text.splitlines() if line.startswith("## ")]
    assert headings == ["## The tuned engine against the best of the peers", "## EPYC (avx2), 1 thread"]
    assert "**Speed 1.50 (1.40 to 1.60) against the best peer: NNCF, mixed preset, OpenVINO, int8.**" in text
    assert "| **edgevit tune: int8-ort-by-gain: 1 thread, arena off** | 1.000 | 76.00% | yes | 1 |" in text
    assert "| quantize_static, ONNX Runtime, int8 | 0.800 | 70.00% | no | 0.80 (0.70 to 0.90) |" in text
    assert "* NNCF, performance preset, OpenVINO, int8: NNCF failed" in text
    assert "tuned engine" not in page([ROW])


def test_a_tuned_engine_that_loses_too_much_is_not_compared() -> None:
    text = page([], [replace(TUNED_ROW, tuned=replace(TUNED_ROW.tuned, counts=False))])

    assert "loses more than a point" in text
    assert "against the best peer:" not in text


def test_tuned_rows_are_read_as_they_were_written(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    for row in (replace(TUNED_ROW, rounds=19), TUNED_ROW):
        rows.append(file, row)

    assert tuned_rows.read(file) == {TUNED_ROW.key: TUNED_ROW}


def test_a_tuned_row_is_not_measured_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, target = tmp_path / "rows.jsonl", tmp_path / "bench.md"
    rows.append(file, replace(TUNED_ROW, processor=rows.this_processor()))
    monkeypatch.setattr("sys.argv", ["tuned", "--results", str(file), "--page", str(target)])
    monkeypatch.setattr(tuned, "_measure", lambda _arguments: pytest.fail("measured again"))

    assert tuned.main() == 0

    assert "edgevit tune: int8-ort-by-gain" in target.read_text("utf-8")


def test_accuracy_is_not_measured_on_images_of_the_calibration(tmp_path: Path) -> None:
    for folder in ("calib", "val"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "0.png").touch()

    assert ImageFolders(calib=tmp_path / "calib", eval=tmp_path / "val").calib == tmp_path / "calib"
    with pytest.raises(UsageError, match=r"0\.png is in both folders"):
        ImageFolders(calib=tmp_path / "val", eval=tmp_path)
