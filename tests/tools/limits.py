"""Layer times of the engines, against the best rate of a matrix product: docs/limits.md.

    python -m tests.tools.limits --keep DIR                     # all variants up to 30 M parameters
    python -m tests.tools.limits --keep DIR --models deit_t,swin_t
    python -m tests.tools.smaller_cpu avx2 python -m tests.tools.limits --keep DIR --page docs/limits_avx2.md

`DIR` is the folder of engines of `python -m tests.tools.bench --keep DIR`; those that are missing are built. Run it on
an idle machine: layers are timed by the runtime's own profiler, one engine after another, on one thread.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from edgevit.bundles.bundle import bundle_name, model_file
from edgevit.export.graph import OnnxGraph
from edgevit.latency.roofline import copy_rate, matmul_rate
from edgevit.models import registry
from edgevit.runtimes.layer_profile import LayerTime
from edgevit.types import PRECISIONS
from tests.tools.bench.__main__ import MILLION_PARAMETERS
from tests.tools.bench.candidates import CANDIDATES, Candidate, usable_candidates
from tests.tools.bench.engine_builder import EngineBuilder
from tests.tools.bench.kept import Folders
from tests.tools.bench.rows import this_processor
from tests.tools.bench.tables import RUNTIMES, table
from tests.tools.layer_kinds import ITEM_SIZES, KINDS, KindUse, LayerShapes, kinds_of

PAGE = Path(__file__).parents[2] / "docs" / "limits.md"
_RUNS = 20
_SHOWN = 3  # kinds of layers that do not multiply
_COPY_BYTES = 1 << 20  # whose copy is timed: they stay in the caches, as the results of most layers do
_READ_BYTES = 64 << 20  # whose reading the page states
_READS = 20
_HEAD = """# Layer times of the engines

`python -m tests.tools.limits --keep DIR` writes this page: the layers of edgevit's engines, timed by the runtime's own
profiler, one thread, batch 1. {processor}; {models}. There are four of it: [AMX](limits.md),
[AVX-512](limits_avx512.md), [AVX2](limits_avx2.md) and [AVX-VNNI](limits_avx_vnni.md), the last two measured as with
the smaller processor's instructions alone.

* **products**: layers with multiply-adds: convolutions, linear layers, attention. OpenVINO compiles products with the
  softmax and the elementwise operators around them into one layer, which is a product here.
* **rate**: of the multiply-adds of these layers, in G/s, and the fraction of their time that they would take at the
  best rate of a matrix product that the runtime reaches in their precision.
* **roofline**: of the layers of one kind, the time of their multiply-adds at that best rate, or of their bytes, layer
  by layer, whichever takes longer. Weights are read once, at the rate at which an array as large as all weights of the
  model is read ({read:.0f} GB/s for 64 MB), activations are copied at the rate of the caches ({copied:.0f} GB/s). The
  runtime's kernels decide how close a layer comes to it, not the graph.
* **others**: all other layers: norms, activation functions, softmax, moving and converting data; the three kinds that
  take longest.
* **limit of rewriting**: the time of all layers over that of the products alone. A rewrite of the graph that made all
  other layers free, and left the products to the same kernels, would be that many times as fast.

The profiler adds some microseconds to each layer, so that engines of many small layers (Mobile-Former has 500) take
longer here than in [bench.md](bench.md). Profiled engines are second instances, in small pages of memory.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class TimeUse:
    """The layers of one engine: those that multiply, and the others by kind."""

    model: str
    products_ms: float
    ideal_ms: float  # of the same multiply-adds at the best rates
    giga_macs: float
    others_ms: Mapping[str, float]  # by kind of layer, the longest first
    kinds: Mapping[str, KindUse] = field(default_factory=dict)  # of the layers that multiply

    @property
    def all_ms(self) -> float:
        return self.products_ms + sum(self.others_ms.values())

    def cells(self) -> list[str]:
        longest = list(self.others_ms.items())[:_SHOWN]
        return [
            f"`{self.model}`",
            f"{self.all_ms:.2f}",
            f"{self.products_ms:.2f}",
            f"{1e3 * self.giga_macs / self.products_ms:.0f}, {self.ideal_ms / self.products_ms:.0%}",
            f"{sum(self.others_ms.values()):.2f}: " + ", ".join(f"{kind} {ms:.2f}" for kind, ms in longest),
            f"{self.all_ms / self.products_ms:.2f}",
        ]


@dataclass(slots=True, kw_only=True)
class Bandwidth:
    """The rates of memory for one thread."""

    copied_bytes_per_s: float  # in the caches, read and written bytes together
    _read: dict[int, float] = field(default_factory=dict)

    def read_bytes_per_s(self, size_bytes: int) -> float:
        """Return the best rate of reading an array of about this size again and again, measured once for each size."""
        size_bytes = 1 << max(20, size_bytes.bit_length())
        if size_bytes not in self._read:
            array = np.ones(size_bytes // 4, np.float32)
            self._read[size_bytes] = size_bytes / min(_seconds(lambda: array.dot(array)) for _ in range(_READS))
        return self._read[size_bytes]


def _seconds(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def time_use(
    model: str,
    layers: Sequence[LayerTime],
    macs_per_s: Mapping[str, float],
    kinds: Mapping[str, KindUse] | None = None,
) -> TimeUse:
    """Return the use of time of the layers of an engine, for the best rates of a product by precision."""
    others: dict[str, float] = {}
    for layer in layers:
        if not layer.macs:
            others[layer.kind] = others.get(layer.kind, 0.0) + layer.ms
    products = [layer for layer in layers if layer.macs]
    return TimeUse(
        model=model,
        products_ms=sum(layer.ms for layer in products),
        ideal_ms=sum(1e3 * (layer.macs or 0) / macs_per_s[layer.precision] for layer in products),
        giga_macs=sum(layer.macs or 0 for layer in products) / 1e9,
        others_ms=dict(sorted(others.items(), key=lambda item: -item[1])),
        kinds=kinds or {},
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--keep", type=Path, required=True, metavar="DIR", help="folder of the engines of the bench")
    parser.add_argument("--models", default="", metavar="NAMES", help="comma-separated (default: all up to 30 M)")
    parser.add_argument("--page", type=Path, default=PAGE, help="the file to write")
    arguments = parser.parse_args()
    found: dict[str, list[TimeUse]] = {}
    rates: dict[tuple[str, str], float] = {}
    bandwidth = Bandwidth(copied_bytes_per_s=copy_rate(1, _COPY_BYTES))
    for model in arguments.models.split(",") if arguments.models else registry.list_models():
        builder = EngineBuilder(model, Folders.below(arguments.keep, model))
        if not arguments.models and builder.million_parameters > MILLION_PARAMETERS:
            continue
        for candidate in usable_candidates(PRECISIONS):
            if candidate.kind != "ours":
                continue
            if (use := _time_use(builder, candidate, rates, bandwidth)) is not None:
                found.setdefault(candidate.name, []).append(use)
            else:  # bf16 on a processor without it
                print(f"{model}, {candidate.name}: {builder.failures[candidate.name]}", file=sys.stderr, flush=True)
        print(model, file=sys.stderr, flush=True)
    arguments.page.write_text(page(found, this_processor(), bandwidth), "utf-8")
    return 0


def page(found: Mapping[str, Sequence[TimeUse]], processor: str, bandwidth: Bandwidth) -> str:
    """Return the page of the engines by candidate."""
    chosen = [each for each in CANDIDATES if each.name in found]
    read, copied = bandwidth.read_bytes_per_s(_READ_BYTES) / 1e9, bandwidth.copied_bytes_per_s / 1e9
    most = max(len(uses) for uses in found.values())
    parts = [_HEAD.format(processor=processor, models=f"{most} models", read=read, copied=copied)]
    for candidate in chosen:
        title = f"## {candidate.precision}, {RUNTIMES[candidate.runtime]}"
        parts += [_kinds_table(title, found[candidate.name]), _models_table(found[candidate.name])]
    return "".join(parts)


def _kinds_table(title: str, uses: Sequence[TimeUse]) -> str:
    """Return the table of all models together, by kind of layer."""
    total_ms = sum(use.all_ms for use in uses)
    sums = {kind: sum((use.kinds.get(kind, KindUse()) for use in uses), KindUse()) for kind in KINDS}
    lines = [
        [
            kind,
            str(use.layers),
            f"{use.ms:.1f}, {use.ms / total_ms:.0%}",
            f"{1e3 * use.giga_macs / use.ms:.0f}, {use.product_ms / use.ms:.0%}",
            f"{use.ms / use.roofline_ms:.2f}",
        ]
        for kind, use in sums.items()
        if use.layers and use.ms
    ]
    others_ms = sum(sum(use.others_ms.values()) for use in uses)
    lines.append(["others", "", f"{others_ms:.1f}, {others_ms / total_ms:.0%}", "", ""])
    columns = [f"layers of {len(uses)} models", "layers", "ms, of all", "rate, of the best", "time over the roofline"]
    return table(title, columns, lines)


def _models_table(uses: Iterable[TimeUse]) -> str:
    columns = ["model", "all layers ms", "products ms", "rate, of the best", "others ms", "limit of rewriting"]
    lines = "".join(f"| {' | '.join(use.cells())} |\n" for use in uses)
    return f"\n| {' | '.join(columns)} |\n|---|{'--:|' * (len(columns) - 1)}\n{lines}"


def _time_use(
    builder: EngineBuilder, candidate: Candidate, rates: dict[tuple[str, str], float], bandwidth: Bandwidth
) -> TimeUse | None:
    """Profile an engine; None if it cannot be built or loaded here.

    `rates` are the best ones that were measured before, by runtime and precision.
    """
    with ExitStack() as stack:
        subject = builder.open(candidate, 1, stack)
        if subject is None:
            return None
        profile = subject.engine.profile_layers(builder.feeds(), runs=_RUNS)
        assert profile is not None  # of the runtimes of processors
        for precision in {layer.precision for layer in profile.layers if layer.macs}:
            if (candidate.runtime, precision) not in rates:
                rate = matmul_rate(subject.engine, precision)
                assert rate is not None  # since layers run in it
                rates[candidate.runtime, precision] = rate
    known = {precision: rate for (runtime, precision), rate in rates.items() if runtime == candidate.runtime}
    name = bundle_name(builder.name, candidate.precision, candidate.runtime)
    folder = builder.folders.own / f"{candidate.precision}-{candidate.runtime}" / name
    shapes = LayerShapes(OnnxGraph.load(model_file(folder)))
    size_bytes = shapes.weights * ITEM_SIZES[candidate.precision]
    kinds = kinds_of(
        profile.layers,
        shapes,
        known,
        read_bytes_per_s=bandwidth.read_bytes_per_s(size_bytes),
        copied_bytes_per_s=bandwidth.copied_bytes_per_s,
    )
    return time_use(builder.name, profile.layers, known, kinds)


if __name__ == "__main__":
    sys.exit(main())
