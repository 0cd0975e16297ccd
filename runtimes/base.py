"""Interfaces of all runtimes: build options, artifacts, engines and the runtime itself."""

from __future__ import annotations

import contextlib
import importlib
import importlib.metadata
import importlib.util
import os
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import MappingProxyType, ModuleType, TracebackType
from typing import Any, ClassVar, TypeAlias, TypeVar

import numpy as np

from edgevit.errors import MissingError, PrecisionError, UsageError, unknown_name
from edgevit.files import first_line
from edgevit.formats import Format, get_format
from edgevit.runtimes.huge_pages import HUGE_PAGES, Mappable, can_map_in_huge_pages
from edgevit.runtimes.layer_profile import LayerProfile
from edgevit.runtimes.precision import ExecutedPrecision
from edgevit.runtimes.session_settings import SessionSettings, Setting
from edgevit.runtimes.tensorrt_rtx.capabilities import check_capabilities
from edgevit.types import PRECISIONS, Array, Feeds, Precision, Shape, TensorSpec
from edgevit.words import counted

_Session = TypeVar("_Session")


def available_cores() -> int:
    """Return the number of processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def require_usable_threads(threads: int) -> None:
    """Raise UsageError for so many threads that they would do little but wait for a core."""
    cores = available_cores()
    if threads > _THREADS_PER_CORE * cores:
        raise UsageError(
            f"{threads} threads are too many for {counted(cores, 'usable core')}; give at most "
            f"{_THREADS_PER_CORE * cores}"
        )


# Entries of `Engine.conditions` of an engine on a GPU.
GPU, GPU_UUID = "gpu", "gpu_uuid"  # its name; its UUID, which some Jetsons lack
GPU_MULTIPROCESSORS = "gpu_multiprocessors"  # two Jetsons with GPUs of one name differ in it
CUDA_GRAPH = "cuda_graph"  # "yes", or why not
THREADS_REQUESTED = "threads_requested"  # in the details of a measurement, if the engine runs another number
GRAPH_OPERATIONS = 32  # in the CUDA graphs whose time tells a GPU's rates: one launch for all
MAX_BATCH = 1 << 16  # images; no real engine comes near
MAX_THREADS = 1024  # runtimes start as many threads as requested, however many cores there are
_ARRAY = np.ndarray  # found in fewer steps than an attribute of the module
_THREADS_PER_CORE = 4  # with more, an inference can take minutes


@dataclass(frozen=True, slots=True)
class BatchRange:
    """Smallest and largest batch of an engine with a dynamic batch, and the one that it is optimized for."""

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
    """Options of a build. Raises UsageError for invalid values and contradictions."""

    precision: Precision = "fp32"
    batch: int = 1
    dynamic_batch: BatchRange | None = None
    threads: int | None = None  # None: one per core
    workspace_mb: int | None = None
    cache_dir: Path | None = None  # for the runtime's cache of compiled models or timings
    compute_capabilities: tuple[int, ...] | None = None  # of the GPUs to compile for; None: a portable engine
    session: SessionSettings = field(default_factory=SessionSettings)  # of the engine when it is opened

    def __post_init__(self) -> None:
        if self.precision not in PRECISIONS:
            raise unknown_name("precision", self.precision, PRECISIONS)
        if self.batch < 1:
            raise UsageError(f"the batch must be at least one image, not {self.batch}")
        if (largest := max(self.batch_sizes)) > MAX_BATCH:
            raise UsageError(f"the batch must be at most {MAX_BATCH} images, not {largest}")
        if self.dynamic_batch and self.batch not in (1, self.dynamic_batch.optimum):
            raise UsageError("give either a batch or a dynamic batch, not both")
        threads = self.threads
        if threads is not None and (type(threads) is not int or not 1 <= threads <= MAX_THREADS):
            raise UsageError(f"the number of threads must be at least 1 and at most {MAX_THREADS}, not {threads!r}")
        if self.workspace_mb is not None and self.workspace_mb < 1:
            raise UsageError(f"the workspace must be at least 1 MB, not {self.workspace_mb}")
        if self.compute_capabilities is not None:
            check_capabilities(self.compute_capabilities, self.precision)

    @property
    def batch_sizes(self) -> tuple[int, ...]:
        """Batch sizes to check: the fixed one, or the minimum, optimum and maximum of a dynamic batch."""
        dynamic = self.dynamic_batch
        if dynamic is None:
            return (self.batch,)
        return tuple(sorted({dynamic.minimum, dynamic.optimum, dynamic.maximum}))

    @property
    def smallest_batch(self) -> int:
        """The fixed batch size, or the minimum of a dynamic batch."""
        return self.batch_sizes[0]

    @property
    def batch_to_measure(self) -> int:
        """The fixed batch size, or the optimum of a dynamic batch."""
        return self.dynamic_batch.optimum if self.dynamic_batch else self.batch


@dataclass(frozen=True, slots=True, kw_only=True)
class Artifact:
    """Files that a build wrote; `path`, the first of them, is the one to open."""

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


@dataclass(frozen=True, slots=True, kw_only=True)
class Operations:
    """Equal operations to be timed: matrix products, or copies. To be used in a `with` block."""

    run: Callable[[], object]  # runs all of them, and waits
    count: int = 1
    device_s: Callable[[], float] | None = None  # seconds of the last run by the device's own clock, if it has one
    resources: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)  # released at the end

    def __enter__(self) -> Operations:
        return self

    def __exit__(self, *error: object) -> None:
        self.resources.close()


class Engine(Mappable, ABC):
    """A loaded engine, to be used in a `with` block.

    `run` checks its inputs; subclasses compute in `_infer`. Output arrays are not overwritten by the next call.
    """

    fmt: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    batches: BatchRange | None = None  # bounds of a dynamic batch; None: static, or unbounded
    device_memory_mb: float | None = None  # on the GPU, without what CUDA itself takes; None if it is not known
    has_run: bool = False
    product_library: str = ""  # that multiplies for `matmul`; empty: the runtime itself
    # Multiply-adds of the graph's nodes by name, for runtimes that name the nodes of a layer but no multiply-adds.
    node_macs: Mapping[str, int] = MappingProxyType({})
    _checked: tuple[tuple[str, np.dtype[Any], Shape], ...] | None = None  # names, dtypes, shapes of the last feeds

    def run(self, feeds: Feeds) -> dict[str, Array]:
        """Run one inference and return the output arrays by name.

        Raises UsageError for wrong names, dtypes or shapes, InferenceError if the runtime fails.
        """
        if not self._are_as_before(feeds):
            self._check(feeds)
            self._checked = tuple((name, feeds[name].dtype, feeds[name].shape) for name in feeds)
        self.has_run = True
        if self._huge_pages is not None:
            return self._run_watched(partial(self._infer, feeds))
        return self._infer(feeds)

    @abstractmethod
    def _infer(self, feeds: Feeds) -> dict[str, Array]:
        """Run one inference; `feeds` has been checked."""

    @abstractmethod
    def executed_precision(self) -> ExecutedPrecision:
        """Return layers and MACs by precision, read back from the compiled model."""

    def executed_layers(self) -> ExecutedPrecision:
        """Return layers by precision, without MACs if counting them would load the model a second time."""
        return self.executed_precision()

    @property
    def conditions(self) -> Mapping[str, str]:
        """How the engine runs, for reports: the GPU, and whether CUDA graphs are used. Known after the first run."""
        return {}

    @property
    def threads(self) -> int | None:
        """The number of threads that run, read back from the runtime; None if it runs as many as it is asked for."""
        return None

    def compute_ms(self) -> float | None:
        """Return the time of the last inference on the GPU, by its own clock; None if it was not measured."""
        return None

    def profile_layers(self, feeds: Feeds, *, runs: int) -> LayerProfile | None:
        """Profile `runs` inferences of a second instance of the engine; None if the runtime has no profiler here."""
        return None

    def matmul(self, shape: tuple[int, int, int], precision: str) -> Operations | None:
        """Return products of the runtime, (M, K) times constant (K, N), on the engine's device, with its threads.

        `shape` is (M, K, N). None if the runtime does not multiply in `precision`. Raises MissingError, with the
        reason, if it cannot multiply at all here.
        """
        return None

    def copy(self, size_bytes: int) -> Operations | None:
        """Return copies of bytes within the memory of the engine's device; None if that memory is the host's."""
        return None

    def throughput_runner(self, streams: int) -> ThroughputRunner | None:
        """Return a second instance of the engine with `streams` inferences in flight; None if there is no such way."""
        return None

    def close(self) -> None:  # most engines have nothing to release
        """Release the engine. It cannot run afterwards."""

    def __enter__(self) -> Engine:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _require_open(self, session: _Session | None) -> _Session:
        """Return `session`, which `close` sets to None in any thread. Raises UsageError if it has."""
        if session is None:
            raise UsageError("the engine is closed; load it again and run it inside the `with` block")
        return session

    def _are_as_before(self, feeds: Feeds) -> bool:
        """Whether the feeds have the names, dtypes and shapes of the last ones that have passed the check.

        An inference displaces the interpreter from the caches, so that the whole check takes 25 microseconds after it,
        and these few steps 4.
        """
        if self._checked is None or type(feeds) is not dict or len(feeds) != len(self._checked):
            return False
        for name, dtype, shape in self._checked:
            array = feeds.get(name)
            if type(array) is not _ARRAY or array.dtype is not dtype or array.shape != shape:
                return False
        return True

    def _check(self, feeds: Feeds) -> None:
        names = {spec.name for spec in self.inputs}
        if not isinstance(feeds, Mapping):
            raise UsageError(f"the engine takes a dict of arrays, {{name: array}}, not {type(feeds).__name__}")
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


class ThroughputRunner(Mappable, ABC):
    """An instance of an engine that keeps several inferences in flight, one in each stream."""

    streams: int

    def run_while(self, feeds: Feeds, more: Callable[[int], bool]) -> int:
        """Start inferences while `more(started)`; return their number when all are complete."""
        return self._run_watched(partial(self._run_while, feeds, more))

    @abstractmethod
    def _run_while(self, feeds: Feeds, more: Callable[[int], bool]) -> int:
        """Start inferences while `more(started)`; return their number when all are complete."""

    @abstractmethod
    def close(self) -> None:
        """Release the instance."""

    def run_for(self, feeds: Feeds, seconds: float) -> tuple[int, float]:
        """Run for a time; return the number of complete inferences and the seconds that they took."""
        start = time.perf_counter()
        end = start + seconds
        inferences = self.run_while(feeds, lambda started: started < self.streams or time.perf_counter() < end)
        return inferences, time.perf_counter() - start


# Called with the phase of a build and its progress, 0 to 1.
OnPhase: TypeAlias = Callable[[str, float], None]


@dataclass(frozen=True, slots=True)
class ToolCommand:
    """A command of the runtime's own tool that times an engine, and how its result compares with edgevit's."""

    line: str
    note: str


class Runtime(ABC):
    """An inference runtime: builds artifacts from ONNX files and opens them as engines."""

    fmt: ClassVar[str]  # name of its format
    module: ClassVar[str]  # Python module of the runtime
    caches_compiled: ClassVar[bool] = False  # whether it loads compiled models from `BuildOptions.cache_dir`
    settings: ClassVar[tuple[Setting, ...]] = ()  # of a session, that `BuildOptions.session` chooses

    def __init__(self, on_phase: OnPhase | None = None) -> None:
        """`on_phase` is called during builds that take minutes, if the runtime reports progress."""
        self._on_phase = on_phase

    @property
    def format(self) -> Format:
        """The format's entry in `edgevit.formats`."""
        return get_format(self.fmt)

    @property
    def title(self) -> str:
        """The runtime's name in tables and messages."""
        return self.format.title

    @property
    def install_hint(self) -> str:
        """The command that installs the runtime on this machine."""
        return f"pip install 'edgevit[{self.format.extra}]'"

    @abstractmethod
    def build(self, model: Path, folder: Path, options: BuildOptions) -> Artifact:
        """Build the engine of the ONNX file `model` into `folder`. Raises BuildError."""

    @abstractmethod
    def open(self, artifact: Path, options: BuildOptions) -> Engine:
        """Load an artifact that `build` wrote. Raises BuildError if that fails."""

    def session(self) -> contextlib.AbstractContextManager[object]:
        """Start what all its engines share, such as CUDA, so that none of them is timed with it.

        Keep it open until the engine is loaded. Raises MissingError if it does not start.
        """
        return contextlib.nullcontext()

    def open_with_precision(self, artifact: Path, options: BuildOptions) -> tuple[Engine, ExecutedPrecision]:
        """Load an artifact and read back the precision of its layers in one step. Raises BuildError."""
        engine = self.open(artifact, options)
        try:
            return engine, engine.executed_layers()
        except BaseException:
            engine.close()
            raise

    def built_precision(self, artifact: Path) -> ExecutedPrecision | None:
        """Return the precision that the build reported, for an engine that cannot run here; None if unknown."""
        return None

    def time_command(
        self, engine: Path, options: BuildOptions, *, inputs: Sequence[TensorSpec] = ()
    ) -> ToolCommand | None:
        """Return the command of the runtime's own tool that times an engine file; None if it has no such tool.

        `options.threads` are the threads of the measurement. The runtime need not be installed.
        """
        return None

    def version(self) -> str | None:
        """Return the installed version; None if the runtime is not installed."""
        if importlib.util.find_spec(self.module) is None:
            return None
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            return importlib.metadata.version(self.module)
        return str(getattr(self.load(), "__version__", "unknown"))

    def load(self) -> ModuleType:
        """Import the runtime's Python module. Raises MissingError with the command that installs it."""
        try:
            return importlib.import_module(self.module)
        except ImportError as error:
            raise MissingError(
                f"{self.title} is not installed ({first_line(error)}); install it: {self.install_hint}"
            ) from error

    def session_settings(self, chosen: Mapping[str, str]) -> SessionSettings:
        """Return session settings by name. Raises UsageError for a name or a value that the runtime does not have."""
        return SessionSettings.of(chosen, self.settings, runtime=self.title)

    def int8_session(self) -> SessionSettings:
        """Return the settings with which int8 engines are fastest here, if all that is in float may be less precise.

        Measured for a kind of processor: docs/quantization.md.
        """
        return SessionSettings()

    def usable_values(self, setting: Setting) -> tuple[str, ...]:
        """Return the values of a session setting that make a difference on this machine."""
        if setting is HUGE_PAGES and not can_map_in_huge_pages():
            return (setting.default,)
        return setting.values

    def require_precision(self, precision: Precision) -> None:
        """Raise PrecisionError if this runtime does not run `precision` on this machine."""
        known = self.format.precisions
        if precision not in known:
            raise PrecisionError(f"{self.title} does not run {precision} here; it runs {', '.join(known)}")

    def runs_precision(self, precision: Precision) -> bool:
        """Return whether this runtime runs `precision` on this machine."""
        try:
            self.require_precision(precision)
        except PrecisionError:
            return False
        return True
