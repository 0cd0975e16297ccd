"""Parts of the page."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from tests.tools.bench.candidates import OPENVINO, ORT, TORCH, Candidate
from tests.tools.bench.rows import InterleavedRun, Speedup

RUNTIMES = {ORT: "ONNX Runtime", OPENVINO: "OpenVINO", TORCH: "PyTorch"}


def table(title: str, names: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    """Return a table with a title; the first column is left-aligned."""
    head = f"\n{title}\n\n| {' | '.join(names)} |\n|---|{'--:|' * (len(names) - 1)}\n"
    return head + "".join(f"| {' | '.join(line)} |\n" for line in lines)


def speed(ratio: Speedup) -> str:
    return f"{ratio.value:.2f} ({ratio.low:.2f} to {ratio.high:.2f})"


def full_title(candidate: Candidate) -> str:
    """Return the title with the runtime, if it is another than PyTorch."""
    if candidate.runtime == TORCH:
        return candidate.title
    return f"{candidate.title}, {RUNTIMES[candidate.runtime]}"


def versions(rows: Sequence[InterleavedRun]) -> str:
    """Return the commits of edgevit that the rows were measured at, and the last row's packages."""
    packages = rows[-1].packages
    revisions = dict.fromkeys(row.revision or "an unrecorded commit" for row in rows)
    return ", ".join(
        [
            f"edgevit {' and '.join(revisions)}",
            *(f"{name} {packages[name]}" for name in ("torch", "onnxruntime", "openvino") if name in packages),
        ]
    )
