"""The table of precisions in docs/dense.md is written from dense_precisions.jsonl."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np

from edgevit.runtimes.parity import ParityReport, compare
from edgevit.types import Reference
from tests.tools import dense_precisions
from tests.tools.dense_precisions import Outcome

FP32 = Outcome(system="fpn_r50", side=128, fmt="ort", precision="fp32", failure="", max_error_std=2e-6, pixels=1.0)
INT8 = replace(FP32, precision="int8", cosine=0.9987, pixels=0.93, share=0.99)
EMPTY = "before\n<!-- precisions -->\nold\n<!-- /precisions -->\nafter\n"


def test_the_page_is_up_to_date() -> None:
    text = dense_precisions.PAGE.read_text("utf-8")
    assert dense_precisions.page(text, dense_precisions.read(dense_precisions.RESULTS)) == text


def test_a_later_result_replaces_an_earlier_one(tmp_path: Path) -> None:
    later = replace(FP32, failure="parity failed")
    path = tmp_path / "results.jsonl"
    path.write_text("".join(json.dumps(asdict(each)) + "\n" for each in (FP32, INT8, later)), "utf-8")
    assert dense_precisions.read(path) == [later, INT8]


def test_the_page_has_a_row_for_each_system_and_names_what_did_not_pass() -> None:
    refused = replace(FP32, system="e2e_mf_508m", precision="fp16", fmt="onnx", failure="SNR 12 dB")
    page = dense_precisions.page(EMPTY, [FP32, INT8, refused])
    lines = {line.split("`")[1]: line for line in page.splitlines() if line.startswith("| `")}
    assert lines["fpn_r50"].startswith("| `fpn_r50` | 128 | 2e-06 std, 100.00% of pixels |  |  | cosine 0.9987, 93.00%")
    assert "99% in int8" in lines["fpn_r50"]
    assert "**no**" in lines["e2e_mf_508m"]
    assert "* `e2e_mf_508m` at 128 px, fp16 for onnx: SNR 12 dB" in page
    assert page.startswith("before\n") and page.endswith("after\n") and "old" not in page


def test_the_measures_are_the_worst_of_the_formats_own_stages() -> None:
    output = np.random.default_rng(0).standard_normal((4, 10)).astype(np.float32)
    reference = Reference(kind="photos", inputs={"x": output}, outputs={"y": output})

    def off(stage: str, error: float) -> ParityReport:
        return compare(stage, lambda feeds: {"y": feeds["x"] + error}, [reference], precision="fp32")

    report = off("ONNX", 1.0) + off("ort: engine", 1e-5) + off("ort: optimized ONNX", 1e-4) + off("openvino: engine", 1)
    found = dense_precisions._measures(report, "ort", "fp32")
    assert found["max_error_std"] is not None and 0.9e-4 < found["max_error_std"] < 2e-4
    assert found["pixels"] is None
