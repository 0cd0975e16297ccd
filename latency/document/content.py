"""The content of a document: interleaved runs, their engines, and the bundles that the engines belong to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from edgevit.latency.compare import side_by_side
from edgevit.latency.names import short_names
from edgevit.latency.report import LatencyReport
from edgevit.latency.settings import Setting, clock_settings
from edgevit.latency.statistics import Ratio


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineParity:
    """The last comparison of an engine with PyTorch; the SNR is None if it is infinite."""

    passed: bool
    snr_db: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Accuracy:
    """Top-1 on labeled images, as a fraction."""

    top1: float
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


@dataclass(frozen=True, slots=True)
class Entry:
    """One engine of a run. `product` is None for what was measured for comparison only."""

    title: str  # short, unique in the run
    report: LatencyReport
    ratio: Ratio | None
    product: Product | None

    @property
    def name(self) -> str:
        return _name(self.report, self.product)

    @property
    def precision(self) -> str | None:
        """The precision that was read back from the engine."""
        return self.report.details.get("precision")

    @property
    def ms_per_image(self) -> float:
        return self.report.p50_ms / self.report.batch


@dataclass(frozen=True, slots=True)
class Session:
    """One interleaved run on one machine."""

    entries: tuple[Entry, ...]

    @property
    def first(self) -> LatencyReport:
        return self.entries[0].report

    @property
    def on_gpu(self) -> bool:
        return any(entry.report.uses_gpu for entry in self.entries)

    @property
    def settings(self) -> tuple[Setting, ...]:
        return clock_settings(self.first.environment, on_gpu=self.on_gpu)

    @property
    def device(self) -> str:
        """The board, or else the GPU and the processor, in a few words."""
        environment, details = self.first.environment, self.first.details
        gpu = next((entry.report.details["gpu"] for entry in self.entries if entry.report.uses_gpu), None)
        named = [environment.board, gpu, environment.cpu or details.get("cpu") or environment.architecture]
        return ", ".join(dict.fromkeys(part for part in named if part))


@dataclass(frozen=True, slots=True, kw_only=True)
class Document:
    """Runs of one or several machines, in the order given."""

    sessions: tuple[Session, ...]
    edgevit_version: str
    notes: tuple[str, ...] = ()

    @property
    def models(self) -> tuple[str, ...]:
        products = [entry.product for session in self.sessions for entry in session.entries]
        return tuple(dict.fromkeys(product.model for product in products if product is not None))


def session_of(reports: Sequence[LatencyReport], products: Mapping[str, Product]) -> Session:
    """Return the session of one run; `products` are the bundles by the name of their report.

    Raises MeasureError if the reports come from different runs.
    """
    rows = side_by_side(reports)
    names = {report.name: _name(report, products.get(report.name)) for report in reports}
    titles = {**names, **_short_titles([report for report in reports if "engine_sha256" in report.details], names)}
    if len(set(titles.values())) < len(titles):
        titles = names
    return Session(
        tuple(Entry(titles[row.report.name], row.report, row.ratio, products.get(row.report.name)) for row in rows)
    )


def _short_titles(bundles: Sequence[LatencyReport], names: Mapping[str, str]) -> dict[str, str]:
    """Return short titles of bundles by the name of their report; the names of others have no parts to share."""
    short = short_names([names[report.name] for report in bundles])
    return {report.name: title for report, title in zip(bundles, short, strict=True)}


def _name(report: LatencyReport, product: Product | None) -> str:
    return report.name if product is None else product.name
