"""The candidates of the benchmark, and which of them are compared."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Literal

from edgevit.runtimes.openvino import OpenVino
from edgevit.types import Precision

Kind = Literal["ours", "plain", "quantizer"]
ORT, OPENVINO, TORCH = "ort", "openvino", "torch"  # runtimes


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """An engine of a model that the benchmark measures. `name` stands in the results, `title` on the page."""

    name: str
    title: str
    runtime: str
    precision: Precision
    kind: Kind

    def is_peer_of(self, own: Candidate) -> bool:
        """Whether an engine of ours is compared with this one: own fp32 for int8, peers of its runtime, torch.compile.

        Engines of ours in two runtimes are compared too, since the user chooses the faster one.
        """
        if own.kind != "ours" or self is own:
            return False
        if self.kind == "ours":
            return self.precision == own.precision or self.runtime == own.runtime
        return self.runtime in (own.runtime, TORCH)


CANDIDATES = (
    Candidate(name="ort", title="edgevit", runtime=ORT, precision="fp32", kind="ours"),
    Candidate(name="openvino", title="edgevit", runtime=OPENVINO, precision="fp32", kind="ours"),
    Candidate(name="onnx-ort", title="torch.onnx.export", runtime=ORT, precision="fp32", kind="plain"),
    Candidate(name="onnx-openvino", title="torch.onnx.export", runtime=OPENVINO, precision="fp32", kind="plain"),
    Candidate(name="ov-direct", title="openvino.convert_model", runtime=OPENVINO, precision="fp32", kind="plain"),
    Candidate(name="openvino-bf16", title="edgevit", runtime=OPENVINO, precision="bf16", kind="ours"),
    Candidate(name="onnx-openvino-bf16", title="torch.onnx.export", runtime=OPENVINO, precision="bf16", kind="plain"),
    Candidate(name="ov-direct-bf16", title="openvino.convert_model", runtime=OPENVINO, precision="bf16", kind="plain"),
    Candidate(name="torch-compile", title="torch.compile", runtime=TORCH, precision="fp32", kind="plain"),
    Candidate(name="ort-int8", title="edgevit", runtime=ORT, precision="int8", kind="ours"),
    Candidate(name="openvino-int8", title="edgevit", runtime=OPENVINO, precision="int8", kind="ours"),
    Candidate(
        name="nncf-performance",
        title="NNCF, performance preset",
        runtime=OPENVINO,
        precision="int8",
        kind="quantizer",
    ),
    Candidate(name="nncf-mixed", title="NNCF, mixed preset", runtime=OPENVINO, precision="int8", kind="quantizer"),
    Candidate(name="static-full", title="quantize_static", runtime=ORT, precision="int8", kind="quantizer"),
    Candidate(
        name="static-reduced",
        title="quantize_static, reduced range",
        runtime=ORT,
        precision="int8",
        kind="quantizer",
    ),
)
BY_NAME = {each.name: each for each in CANDIDATES}


def usable_candidates(precisions: Collection[Precision]) -> tuple[Candidate, ...]:
    """Return the candidates of these precisions that run here."""
    runtime = OpenVino()
    usable = [precision for precision in precisions if precision != "bf16" or runtime.runs_precision("bf16")]
    return tuple(each for each in CANDIDATES if each.precision in usable)


def peers_of(own: Candidate) -> tuple[Candidate, ...]:
    """Return the candidates that an engine of ours is compared with."""
    return tuple(each for each in CANDIDATES if each.is_peer_of(own))
