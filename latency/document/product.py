"""The bundle of an engine, as far as a report shows it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineParity:
    """The last comparison of an engine with PyTorch; the SNR is None if it is infinite."""

    passed: bool
    snr_db: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Accuracy:
    """Top-1, mAP or mIoU on labeled images, as a fraction."""

    metric: str
    value: float
    images: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Product:
    """The bundle of an engine, as far as a report shows it."""

    name: str
    path: str
    model: str
    weights: str
    fmt: str
    runtime: str  # with its version
    requested: str  # precision
    executed: str  # shares of the precisions that ran
    engine_sha256: str
    onnx_sha256: str
    engine_bytes: int
    edgevit_version: str
    parity: EngineParity | None = None  # of the engine file with `engine_sha256`
    accuracy: Accuracy | None = None
    tool_line: str = ""  # command of the runtime's own tool that times the engine, in the bundle's folder
    tool_note: str = ""
    torch_options: str | None = ""  # of `edgevit latency` that name the PyTorch model; None if no option does
