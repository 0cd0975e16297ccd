"""The benchmark's page shows what the rows say, and a row that is there is not measured again."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.tools.bench import __main__ as bench
from tests.tools.bench import rows
from tests.tools.bench.kept import Folders, kept
from tests.tools.bench.page import geometric_mean, page
from tests.tools.bench.rows import Figures, Row, Speedup

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


def test_summary_compares_with_the_best_rival() -> None:
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


def test_other_calibration_rows_have_other_engines(tmp_path: Path) -> None:
    crops, zeros, ones = (
        Folders.below(tmp_path, "deit_t", calibration=rows)
        for rows in (None, np.zeros((1, 3, 2, 2), np.float32), np.ones((1, 3, 2, 2), np.float32))
    )

    assert len({crops.peers, zeros.peers, ones.peers}) == len({crops.own, zeros.own, ones.own}) == 3
