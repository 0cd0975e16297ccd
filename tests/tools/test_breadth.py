"""The table of exported architectures: failures first, one line each; results are kept and read again."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

from tests.tools.breadth import RUNS, Outcome, page, read
from tests.tools.breadth_models import SMP, TIMM, TORCHVISION, TRANSFORMERS, default_names


def passed(name: str, run: str = "fp32", **figures: float) -> Outcome:
    return Outcome(name=name, run=run, reason="", million_parameters=5.31, nodes=70, day="2026-11-26", **figures)


def test_the_page_counts_what_passed_and_shows_failures_first() -> None:
    outcomes = [
        passed("timm:a", error_of_std=2e-6, float32_error_of_std=1e-6),
        passed("timm:a", "int8"),
        passed("timm:c", "dynamic"),
        Outcome(name="timm:d", run="int8", reason="crashed: Killed", day="2026-11-26"),
        Outcome(name="timm:b", run="fp32", reason="parity failed:\n a|b", elapsed_s=12.4, day="2026-11-27"),
    ]
    text = page(outcomes)
    assert "2026-11-26 to 2026-11-27" in text
    assert (
        text.splitlines()[2]
        == f"4 architectures of timm and 0 of other packages so far; {len(default_names())} are listed."
    )
    for count in (
        "| fp32, fixed or dynamic batch | ONNX Runtime, OpenVINO | 2 | 3 |",
        "| fp32, fixed batch | ONNX Runtime, OpenVINO | 1 | 2 |",
        "| fp32, dynamic batch | ONNX Runtime, OpenVINO | 1 | 1 |",
        "| int8 | ONNX Runtime | 1 | 2 |",
    ):
        assert f"{count}\n" in text
    assert "1 of 2 int8 exports ended with a verdict" in text
    assert text.splitlines()[-4:] == [
        "| `timm:b` |  |  |  |  | 12 | parity failed: a\\|b |  |  |  |",
        "| `timm:d` |  |  |  |  | 0 |  |  | crashed: Killed |  |",
        "| `timm:a` | 5.3 | 70 | 2e-06 | 1e-06 | 0 | passed |  | passed |  |",
        "| `timm:c` | 5.3 | 70 |  |  | 0 |  |  |  | passed |",
    ]


def test_the_last_result_of_an_export_counts(tmp_path: Path) -> None:
    first, last = passed("timm:a"), Outcome(name="timm:a", run="fp32", reason="it failed")
    file = tmp_path / "results.jsonl"
    assert read(file) == []
    file.write_text("".join(json.dumps(asdict(each)) + "\n" for each in (first, passed("timm:b"), last)))
    assert read(file) == [last, passed("timm:b")]


def test_each_architecture_is_named_once() -> None:
    names = default_names()
    assert len(names) == len(set(names)) == sum(map(len, (TIMM, TORCHVISION, TRANSFORMERS, SMP)))
    assert len(TIMM) >= 100 and len(names) >= 120 and set(RUNS) == {"fp32", "fp16", "int8", "dynamic"}
