"""The contestants of the benchmark, and which of them are compared."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Literal

from edgevit.runtimes.openvino import OpenVino
from edgevit.types import Precision

Kind = Literal["ours", "plain", "quantizer"]
ORT, OPENVINO, TORCH = "ort", "openvino", "torch"  # runtimes


@dataclass(frozen=True, slots=True, kw_only=True)
class Contestant:
    """An engine of a model. `name` stands in the results, `title` on the page."""

    name: str
    title: str
    runtime: str
    precision: Precision
    kind: Kind

    def is_rival_of(self, own: Contestant) -> bool:
        """Whether an engine of ours is compared with this one: own fp32 for int8, peers of its runtime, torch.compile.

        Engines of ours in two runtimes are compared too, since the user chooses the faster one.
        """
        if own.kind != "ours" or self is own:
            return False
        if self.kind == "ours":
            return self.precision == own.precision or self.runtime == own.runtime
        return self.runtime in (own.runtime, TORCH)


CONTESTANTS = (
    Contestant(name="ort", title="edgevit", runtime=ORT, precision="fp32", kind="ours"),
    Contestant(name="openvino", title="edgevit", runtime=OPENVINO, precision="fp32", kind="ours"),
    Contestant(name="onnx-ort", title="torch.onnx.export", runtime=ORT, precision="fp32", kind="plain"),
    Contestant(name="onnx-openvino", title="torch.onnx.export", runtime=OPENVINO, precision="fp32", kind="plain"),
    Contestant(name="ov-direct", title="openvino.convert_model", runtime=OPENVINO, precision="fp32", kind="plain"),
    Contestant(name="openvino-bf16", title="edgevit", runtime=OPENVINO, precision="bf16", kind="ours"),
    Contestant(name="onnx-openvino-bf16", title="torch.onnx.export", runtime=OPENVINO, precision="bf16", kind="plain"),
    Contestant(name="ov-direct-bf16", title="openvino.convert_model", runtime=OPENVINO, precision="bf16", kind="plain"),
    Contestant(name="torch-compile", title="torch.compile", runtime=TORCH, precision="fp32", kind="plain"),
    Contestant(name="ort-int8", title="edgevit", runtime=ORT, precision="int8", kind="ours"),
    Contestant(name="openvino-int8", title="edgevit", runtime=OPENVINO, precision="int8", kind="ours"),
    Contestant(
        name="nncf-performance",
        title="NNCF, performance preset",
        runtime=OPENVINO,
        precision="int8",
        kind="quantizer",
    ),
    Contestant(name="nncf-mixed", title="NNCF, mixed preset", runtime=OPENVINO, precision="int8", kind="quantizer"),
    Contestant(name="static-full", title="quantize_static", runtime=ORT, precision="int8", kind="quantizer"),
    Contestant(
        name="static-reduced",
        title="quantize_static, reduced range",
        runtime=ORT,
        precision="int8",
        kind="quantizer",
    ),
)
BY_NAME = {each.name: each for each in CONTESTANTS}


def contestants(precisions: Collection[Precision]) -> tuple[Contestant, ...]:
    """Return the contestants of these precisions that run here."""
    runtime = OpenVino()
    usable = [precision for precision in precisions if precision != "bf16" or runtime.runs_precision("bf16")]
    return tuple(each for each in CONTESTANTS if each.precision in usable)


def rivals(own: Contestant) -> tuple[Contestant, ...]:
    return tuple(each for each in CONTESTANTS if each.is_rival_of(own))
