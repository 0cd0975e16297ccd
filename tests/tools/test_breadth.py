"""The table of exported architectures: failures first, one line each."""

from __future__ import annotations

from tests.tools.breadth import Outcome, Request, page


def test_the_page_counts_what_passed_and_shows_failures_first() -> None:
    outcomes = [
        Outcome(name="a", reason="", million_parameters=5.31, nodes=70, error_of_std=2e-6, float32_error_of_std=1e-6),
        Outcome(name="b", reason="parity failed:\n a|b", elapsed_s=12.4),
    ]
    lines = page(outcomes, Request()).splitlines()
    assert lines[2].startswith("1 of 2 pass: exported in fp32 with a batch of 1 to ONNX Runtime and OpenVINO, ")
    assert lines[-2:] == [
        "| `b` |  |  |  |  | 12 | parity failed: a\\|b |",
        "| `a` | 5.3 | 70 | 2e-06 | 1e-06 | 0 | passed |",
    ]
