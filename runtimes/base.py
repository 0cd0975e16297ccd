"""What every runtime is to the rest: options in, an artefact built, an engine opened, outputs by name."""

from __future__ import annotations

import contextlib
import importlib
import importlib.metadata
import importlib.util
import math
import os
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType, TracebackType
from typing import Any, ClassVar, TypeAlias

import numpy as np

from edgevit.errors import MissingError, PrecisionError, UsageError, unknown_name
from edgevit.formats import Format, get_format
from edgevit.types import PRECISIONS, Array, Precision, TensorSpec

Shape: TypeAlias = tuple[int, ...]


def available_cores() -> int:
    """The processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


MOST_THREADS = 1024  # more would only wait for one another; runtimes start as many as they are told to
# What TensorRT-RTX compiles for with no GPU: Turing, Ampere, Ada, Blackwell. Jetson Orin (87) is not among them.
COMPUTE_CAPABILITIES = (75, 80, 86, 89, 120, 121)
TURING = 75  # has no fp32 products in TensorRT-RTX


@dataclass(frozen=True, slots=True)
class BatchRange:
    """The batches that an engine with a dynamic batch takes, and the one that it is tuned for."""

    minimum: int
    optimum: int
    maximum: int

    def __post_init__(self) -> None:
        if not 1 <= self.minimum <= self.optimum <= self.maximum:
            raise UsageError(f"a dynamic batch needs 1 <= MIN <= OPT <= MAX, not {self}")

    def __str__(self) -> str:
        return f"{self.minimum}:{self.optimum}:{self.maximum}"


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildOptions:
    """What an engine is built for. Contradictions are refused here, at the door."""

    precision: Precision = "fp32"
    batch: int = 1
    dynamic_batch: BatchRange | None = None
    threads: int | None = None  # None: as many as the machine has
    workspace_mb: int | None = None
    cache_dir: Path | None = None  # a runtime's own cache of compiled models, where it keeps one
    compute_capabilities: tuple[int, ...] | None = None  # of GPUs, for builds ahead of time; None: the portable default

    def __post_init__(self) -> None:
        if self.precision not in PRECISIONS:
            raise unknown_name("precision", self.precision, PRECISIONS)
        if self.batch < 1:
            raise UsageError(f"a batch holds at least one image, not {self.batch}")
        if self.dynamic_batch and self.batch not in (1, self.dynamic_batch.optimum):
            raise UsageError("give either a batch or a dynamic batch, not both")
        if self.threads is not None and not 1 <= self.threads <= MOST_THREADS:
            raise UsageError(f"an engine runs on at least one thread and at most {MOST_THREADS}, not {self.threads}")
        if self.workspace_mb is not None and self.workspace_mb < 1:
            raise UsageError(f"a workspace holds at least 1 MB, not {self.workspace_mb}")
        if self.compute_capabilities is not None:
            _check_capabilities(self.compute_capabilities, self.precision)

    @property
    def batch_sizes(self) -> tuple[int, ...]:
        """Batch sizes to check: the fixed one, or the minimum, optimum and maximum of a dynamic batch."""
        dynamic = self.dynamic_batch
        if dynamic is None:
            return (self.batch,)
        return tuple(sorted({dynamic.minimum, dynamic.optimum, dynamic.maximum}))


def _check_capabilities(capabilities: tuple[int, ...], precision: Precision) -> None:
    known = ", ".join(str(capability) for capability in COMPUTE_CAPABILITIES)
    if not capabilities or len(set(capabilities)) != len(capabilities):
        raise UsageError(f"name each compute capability once, out of {known}; leave --sm out for the portable default")
    unknown = [capability for capability in capabilities if capability not in COMPUTE_CAPABILITIES]
    if unknown:
        raise UsageError(
            f"no compute capability {unknown[0]} to build for ahead of time; there are {known}. "
            "For other GPUs, Jetson Orin's 87 included, build on the device: --fmt trt"
        )
    if TURING in capabilities and precision == "fp32":
        raise UsageError(
            f"TensorRT-RTX has no fp32 products for compute capability {TURING}; "
            "ask for --precision fp16, or leave that one out"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Artifact:
    """What a build left on disk: the files, the first of which is the one to open."""

    fmt: str
    files: tuple[Path, ...]
    build_s: float
    notes: tuple[str, ...] = ()

    @property
    def path(self) -> Path:
        return self.files[0]

    @property
    def size_bytes(self) -> int:
        return sum(file.stat().st_size for file in self.files)


UNKNOWN = "unknown"  # the precision of layers of which a runtime does not tell it
# How much of what a graph asks for in a lower precision has to run in it: runtimes join and pad layers a little.
LEAST_OF_ASKED = 0.95


@dataclass(frozen=True, slots=True)
class ExecutedPrecision:
    """What really runs, read back from the runtime: layers and, where known, multiply-adds by element type."""

    layers: Mapping[str, int] = field(default_factory=dict)  # of the layers that multiply: convolutions and products
    multiply_adds: Mapping[str, int] = field(default_factory=dict)  # of the same layers, batch as run; empty: unknown

    @property
    def found(self) -> str:
        """The precision that does most of the multiply-adds, or has most layers where multiply-adds are unknown;
        "unknown" where the runtime does not say."""
        known = self.multiply_adds or self.layers
        return max(known, key=lambda name: known[name]) if known else UNKNOWN

    def layer_share(self, precision: str) -> float:
        """The part of the layers that runs in `precision`, 0 to 1; NaN where the runtime does not say."""
        return _share(self.layers, precision)

    def share(self, precision: str) -> float:
        """The part of the multiply-adds that runs in `precision`, 0 to 1; of the layers where they are unknown."""
        return _share(self.multiply_adds or self.layers, precision)

    @property
    def summary(self) -> str:
        """The shares of each precision below fp32, such as "int8: 91 % of the layers, 97 % of the multiply-adds"; of
        fp32 where nothing is below it."""
        if not self.layers:
            return "not told"
        return "; ".join(self._shares_of(name) for name in (_lower(self.layers) or [self.found]))

    def _shares_of(self, precision: str) -> str:
        layers = f"{precision}: {_percent(self.layer_share(precision))} of the layers"
        if not self.multiply_adds:
            return layers
        return f"{layers}, {_percent(self.share(precision))} of the multiply-adds"

    def to_json(self) -> dict[str, Any]:
        """What was found, in counts and shares."""
        return {
            "found": self.found,
            "layers": dict(self.layers),
            "multiply_adds": dict(self.multiply_adds),
            "layer_shares": {name: self.layer_share(name) for name in self.layers},
            "multiply_add_shares": {name: self.share(name) for name in self.multiply_adds},
        }

    def require(self, precision: Precision, *, runtime: str, expected: float | None = None) -> None:
        """Raises PrecisionError where fp32 was asked for and something below runs, or less of `precision` than asked.

        `expected` is the share of the multiply-adds, 0 to 1, that the graph holds in `precision`; 0.95 of it has to run
        in it. Without it, and of a runtime that tells of layers alone, some layer has to. What a runtime does not tell
        at all is not held against it.
        """
        if expected is not None and not 0 <= expected <= 1:  # NaN too: no comparison with it would ever fail
            raise PrecisionError(
                f"no share of {precision} can be held against what runs: the graph's own is {expected}; "
                "count its multiply-adds again"
            )
        if precision == "fp32":
            self._require_fp32(runtime)
        elif self.layers and not self.layers.get(precision):
            raise PrecisionError(
                f"{precision} was asked for and {runtime} runs {dict(self.layers)}; "
                f"this machine or this runtime has no {precision} arithmetic: ask for fp32"
            )
        elif expected is not None and self.multiply_adds and not self.share(precision) >= LEAST_OF_ASKED * expected:
            raise PrecisionError(
                f"{precision} was asked for in {_percent(expected)} of the multiply-adds, and {runtime} runs "
                f"{self._shares_of(precision)}; build for another runtime, or ask for fp32"
            )

    def _require_fp32(self, runtime: str) -> None:
        lower = {name: self.layers[name] for name in _lower(self.layers) if name != UNKNOWN}
        if lower:
            raise PrecisionError(
                f"fp32 was asked for and {runtime} runs {lower} layers in lower precision; "
                "forbid it in the runtime's settings, or ask for that precision"
            )


def precision_json(asked: Precision, found: ExecutedPrecision | None) -> dict[str, Any]:
    """The entry of manifests and reports; `found` is None where nothing has run and nothing was told."""
    told = ExecutedPrecision().to_json() | {"found": None} if found is None else found.to_json()
    return {"asked": asked, **told}


def _lower(layers: Mapping[str, int]) -> list[str]:
    return [name for name in layers if name not in ("fp32", "fp64")]


def _share(counts: Mapping[str, int], precision: str) -> float:
    total = sum(counts.values())
    return counts.get(precision, 0) / total if total else math.nan


def _percent(share: float) -> str:
    """A share in whole per cent; 0 and 100 are said of nothing and of all alone."""
    if 0 < share < 0.005:
        return "less than 1 %"
    return "more than 99 %" if 0.995 <= share < 1 else f"{100 * share:.0f} %"


def by_precision(layers: Iterable[tuple[str, int | None]]) -> ExecutedPrecision:
    """Layers that multiply, each with its precision and its multiply-adds, in sum; one that is not known makes all
    multiply-adds unknown, since shares of the rest would be wrong."""
    counts: Counter[str] = Counter()
    multiply_adds: Counter[str] = Counter()
    known = True
    for precision, count in layers:
        counts[precision] += 1
        multiply_adds[precision] += count or 0
        known = known and bool(count)
    return ExecutedPrecision(dict(counts), dict(multiply_adds) if known else {})


def convolution_multiply_adds(out: Shape, weights: Shape, channels: int) -> int | None:
    """Of a convolution with all its `weights`, in any layout and any groups, to `out` with so many `channels`."""
    return math.prod(out) * (math.prod(weights) // channels) if out and weights and channels else None


def product_multiply_adds(left: Shape, out: Shape) -> int | None:
    """Of a product of matrices, (..., M, K) or transposed (..., K, M) with anything to (..., M, N), by NumPy's rules.

    None where the shapes are not such.
    """
    if not left or len(out) < len(left):  # times a vector
        return math.prod(left) if left and out == left[:-1] else None
    if len(left) == 1:
        return math.prod(out) * left[0]
    rows, batch = out[-2], zip(reversed(left[:-2]), reversed(out[:-2]), strict=False)
    if rows not in left[-2:] or any(ours not in (1, theirs) for ours, theirs in batch):
        return None
    return math.prod(out) * (left[-1] if left[-2] == rows else left[-2])


def attention_multiply_adds(query: Shape, key: Shape, out: Shape) -> int:
    """Of both products of attention: query and out (..., M, D) in one layout, heads apart or not, key (..., N, D)."""
    return (math.prod(query) + math.prod(out)) * key[-2]


class Engine(ABC):
    """A loaded engine. `run` checks what goes in; subclasses compute in `_infer`. Use it in a `with` block.

    Outputs belong to the caller: the next call does not overwrite them.
    """

    fmt: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    batches: BatchRange | None = None  # what a dynamic batch is bounded by; None where it is not

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """Output arrays by name. Raises UsageError for wrong names, dtypes or shapes."""
        self._check(feeds)
        return self._infer(feeds)

    @abstractmethod
    def _infer(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """Computes; `feeds` has been checked."""

    @abstractmethod
    def executed_precision(self) -> ExecutedPrecision:
        """The precision that runs, read back from what the runtime compiled."""

    def executed_layers(self) -> ExecutedPrecision:
        """The same, without the multiply-adds where these would be had by loading the model again."""
        return self.executed_precision()

    def close(self) -> None:  # noqa: B027  # most engines have nothing to release
        """Releases the engine. It cannot run afterwards."""

    def __enter__(self) -> Engine:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _require_open(self, session: object) -> None:
        """Raises UsageError where `session`, which `close` gives up, is gone."""
        if session is None:
            raise UsageError("the engine is closed; load it again, and run it inside the `with` block")

    def _check(self, feeds: Mapping[str, Array]) -> None:
        names = {spec.name for spec in self.inputs}
        if not isinstance(feeds, Mapping):
            raise UsageError(f"the engine takes arrays by name, {{name: array}}, not {type(feeds).__name__}")
        if feeds.keys() != names:
            raise UsageError(f"the engine takes the inputs {sorted(names)}, not {sorted(map(str, feeds))}")
        batches = set()
        for spec in self.inputs:
            array = feeds[spec.name]
            if not isinstance(array, np.ndarray) or array.dtype != np.dtype(spec.dtype):
                given = array.dtype if isinstance(array, np.ndarray) else type(array).__name__
                raise UsageError(f"the engine takes {spec}, not {given}; convert it: array.astype('{spec.dtype}')")
            if not spec.accepts(array.shape):
                raise UsageError(f"the engine takes {spec}, not the shape {list(array.shape)}")
            if spec.is_dynamic:
                batches.add(array.shape[spec.shape.index("batch")])
        if len(batches) > 1:
            raise UsageError(f"the inputs have different batches: {sorted(batches)}")
        if batches and self.batches and not self.batches.minimum <= max(batches) <= self.batches.maximum:
            raise UsageError(f"the engine takes batches of {self.batches} (MIN:OPT:MAX), not {max(batches)}")


# Called with the phase of a build and how much of it is done, 0 to 1.
OnPhase: TypeAlias = Callable[[str, float], None]


class Runtime(ABC):
    """A runtime: builds an artefact from an ONNX file, and opens one as an engine."""

    fmt: ClassVar[str]  # the name of its format
    module: ClassVar[str]  # the Python module that is imported

    def __init__(self, on_phase: OnPhase | None = None) -> None:
        """`on_phase` is told how far a build is, by a runtime that takes minutes and can tell."""
        self._on_phase = on_phase

    @property
    def format(self) -> Format:
        """The format's entry in `edgevit.formats`."""
        return get_format(self.fmt)

    @property
    def title(self) -> str:
        """The runtime's name in tables and messages."""
        return self.format.title

    @abstractmethod
    def build(self, model: Path, folder: Path, options: BuildOptions) -> Artifact:
        """Writes the engine files for the ONNX file `model` into `folder`. Raises BuildError."""

    @abstractmethod
    def open(self, artifact: Path, options: BuildOptions) -> Engine:
        """Loads an artefact that `build` wrote. Raises BuildError where it cannot be loaded."""

    def open_told(self, artifact: Path, options: BuildOptions) -> tuple[Engine, ExecutedPrecision]:
        """An engine and the precision of its layers, for those who load it to work with it. Raises BuildError."""
        engine = self.open(artifact, options)
        try:
            return engine, engine.executed_layers()
        except BaseException:
            engine.close()
            raise

    def built_precision(self, artifact: Path) -> ExecutedPrecision | None:
        """What the build tells of the precision, for an engine that cannot run here; None where it tells nothing."""
        return None

    def version(self) -> str | None:
        """The installed version; None where the runtime is not installed."""
        if importlib.util.find_spec(self.module) is None:
            return None
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            return importlib.metadata.version(self.module)
        return str(getattr(self.load(), "__version__", "unknown"))

    def load(self) -> ModuleType:
        """The runtime's Python module. Raises MissingError with the command that installs it."""
        try:
            return importlib.import_module(self.module)
        except ImportError as error:
            raise MissingError(
                f"{self.title} is not installed here ({error}); install it: pip install 'edgevit[{self.format.extra}]'"
            ) from error

    def require_precision(self, precision: Precision) -> None:
        """Raises PrecisionError where this runtime cannot run `precision` on this machine."""
        known = self.format.precisions
        if precision not in known:
            raise PrecisionError(f"{self.title} does not run {precision} here; it runs {', '.join(known)}")
