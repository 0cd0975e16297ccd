"""The content of a document: interleaved runs, their engines, and the bundles that the engines belong to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from edgevit.latency.compare import device_name, side_by_side
from edgevit.latency.document.product import Product
from edgevit.latency.document.validity import Check, checks_of
from edgevit.latency.names import short_names
from edgevit.latency.report import LatencyReport
from edgevit.latency.settings import Setting, clock_settings
from edgevit.latency.statistics import Ratio


@dataclass(frozen=True)  # without slots, which leave no place for what is derived once
class Entry:
    """One engine of a run. `product` is None for what was measured for comparison only."""

    title: str  # short, unique in the run
    report: LatencyReport
    ratio: Ratio | None
    product: Product | None

    @property
    def name(self) -> str:
        return _name(self.report, self.product)

    @cached_property
    def checks(self) -> tuple[Check, ...]:
        """The conditions of a valid measurement."""
        return checks_of(self.report, self.product)

    @property
    def precision(self) -> str | None:
        """The precision that was read back from the engine."""
        return self.report.details.get("precision")

    @property
    def ms_per_image(self) -> float:
        return self.report.ms_per_image


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
        return device_name([entry.report for entry in self.entries])


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
