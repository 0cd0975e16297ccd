"""OpenVINO on CPU: IR files that every OpenVINO tool reads, compiled for latency when they are loaded."""

from __future__ import annotations

import shlex
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar, Literal

import numpy as np

from edgevit.cpu import has_bf16
from edgevit.errors import BuildError, InferenceError, PrecisionError
from edgevit.precisions import get_policy
from edgevit.runtimes import subprocess_build
from edgevit.runtimes.base import (
    Artifact,
    BuildOptions,
    Engine,
    Operations,
    Runtime,
    ThroughputRunner,
    ToolCommand,
    available_cores,
)
from edgevit.runtimes.denormals import KEEP, denormals
from edgevit.runtimes.huge_pages import HUGE_PAGES, HugePages, watch_memory
from edgevit.runtimes.layer_profile import PROFILE_WARMUP, LayerProfile
from edgevit.runtimes.mapped_pages import dropping_pages
from edgevit.runtimes.node_names import node_names
from edgevit.runtimes.openvino_convert import error_reason
from edgevit.runtimes.openvino_layers import profile_layers
from edgevit.runtimes.openvino_precision import (
    CAPABILITIES,
    DEVICE,
    capabilities,
    multiplying_operators,
    read_precision,
)
from edgevit.runtimes.openvino_product import matmul
from edgevit.runtimes.precision import ExecutedPrecision
from edgevit.runtimes.session_settings import SessionSettings, Setting
from edgevit.types import Array, Dim, Feeds, Precision, TensorSpec

# Allowed difference between p50 and benchmark_app's median: relative part, and absolute part in ms.
APP_RELATIVE, APP_ABSOLUTE_MS = 0.1, 0.2
APP_TOLERANCE = f"{100 * APP_RELATIVE:g} % plus {APP_ABSOLUTE_MS:g} ms"
# "throughput" splits the threads into streams.
HINT = Setting("hint", ("latency", "throughput"), of_threads=True, of_streams=True)
PINNING = Setting("pinning", ("on", "off"))  # whether each thread keeps to one core
# Whether both logical cores of a physical one are used.
HYPER_THREADING = Setting("hyper_threading", ("on", "off"), of_threads=True)
DENORMALS = Setting("denormals", ("keep", "zero"))  # numbers below 1.2e-38, which slow some processors down
# Precision of an int8 bundle's float operators; refused for fp32 and bf16 bundles. Processors without it run f32.
INFERENCE_PRECISION = Setting("inference_precision", ("f32", "bf16", "f16"), of_precision=True)
_COPIED_BYTES = 1 << 16  # largest input that is copied into the request's own memory
_TELEMETRY = "openvino_telemetry"


class OpenVino(Runtime):
    """OpenVINO's CPU plugin, without its automatic changes of precision."""

    fmt: ClassVar[str] = "openvino"
    module: ClassVar[str] = "openvino"
    caches_compiled: ClassVar[bool] = True
    settings: ClassVar[tuple[Setting, ...]] = (
        HINT,
        PINNING,
        HYPER_THREADING,
        DENORMALS,
        HUGE_PAGES,
        INFERENCE_PRECISION,
    )

    def load(self) -> ModuleType:
        """Import OpenVINO without its telemetry.

        If the package openvino_telemetry is installed, OpenVINO reports each import and each conversion to Intel from
        a thread of its own. OpenVINO works without that package.
        """
        sys.modules.setdefault(_TELEMETRY, None)  # type: ignore[arg-type]  # None: an import raises ImportError
        return super().load()

    def int8_session(self) -> SessionSettings:
        """Return bf16 for x86 processors that have it: the float operators between int8 layers gain from it."""
        is_faster = has_bf16() and "bf16" in self.usable_values(INFERENCE_PRECISION)
        return self.session_settings({INFERENCE_PRECISION.name: "bf16"} if is_faster else {})

    def usable_values(self, setting: Setting) -> tuple[str, ...]:
        if setting is DENORMALS:  # one mode a process: its threads inherit that of the thread that compiles first
            return (setting.default,)
        if setting is not INFERENCE_PRECISION:
            return super().usable_values(setting)
        known = capabilities(self.load())
        return tuple(value for value in setting.values if CAPABILITIES[value] in known)

    def require_precision(self, precision: Precision) -> None:
        super().require_precision(precision)
        if precision == "bf16":
            require_bf16(self.load())

    def build(self, model: Path, folder: Path, options: BuildOptions) -> Artifact:
        """Convert the ONNX file to IR files in a subprocess, since some invalid graphs crash OpenVINO."""
        self.require_precision(options.precision)
        self.load()  # report a missing package before a process is started
        start = time.perf_counter()
        xml, weights = folder / "model.xml", folder / "model.bin"
        job = subprocess_build.Job(
            module="edgevit.runtimes.openvino_worker",
            builder="OpenVINO",
            model=model.name,
            when_killed="free some memory, or use a smaller model",
            when_crashed="some invalid graphs crash OpenVINO: check the file with edgevit lint, or export it again",
            when_broken="reinstall OpenVINO: pip install --force-reinstall 'edgevit[openvino]'",
        )
        with tempfile.TemporaryDirectory(prefix=".build-", dir=folder) as place:
            subprocess_build.run(job, {"model": str(model.resolve()), "xml": str(xml.resolve())}, Path(place))
        return Artifact(fmt=self.fmt, files=(xml, weights), build_s=time.perf_counter() - start)

    def time_command(
        self, engine: Path, options: BuildOptions, *, inputs: Sequence[TensorSpec] = ()
    ) -> ToolCommand | None:
        """Return the benchmark_app command with the settings of OpenVinoEngine, as far as that tool has them."""
        shapes = ",".join(
            f"{spec.name}[{','.join(map(str, spec.with_batch(options.batch_to_measure)))}]" for spec in inputs
        )
        floats = all(spec.dtype == "float32" for spec in inputs)
        command = [
            *("benchmark_app", "-m", str(engine), "-d", DEVICE, "-api", "sync", "-nireq", "1", "-nstreams", "1"),
            *("-hint", "none", "-nthreads", str(options.threads or available_cores())),
            *("-infer_precision", _inference_precision(options)),
            *(["-ip", "f32"] if floats else []),  # else it feeds images as uint8 and times their conversion
            *(["-data_shape", shapes] if options.dynamic_batch else []),
            *("-t", "10"),
        ]
        note = (
            f"p50 must be within {APP_TOLERANCE} of its median on an idle machine; it does not time the copy of the "
            "outputs and Python's part of the call."
        )
        return ToolCommand(shlex.join(command), note)

    def open(self, artifact: Path, options: BuildOptions) -> Engine:
        return OpenVinoEngine(self.load(), artifact, options)


def compiled_threads(compiled: Any) -> int:
    """Return the number of threads of a compiled model: OpenVINO takes no more than there are cores."""
    return int(compiled.get_property("INFERENCE_NUM_THREADS"))


class OpenVinoEngine(Engine):
    """One inference request of a model compiled for latency."""

    fmt = OpenVino.fmt

    def __init__(self, ov: Any, artifact: Path, options: BuildOptions) -> None:
        """`ov` is the module openvino, `artifact` the .xml file.

        Raises BuildError if it cannot be loaded, PrecisionError if the processor has no bf16 arithmetic for a bf16
        bundle, or if the session settings of an fp32 or bf16 bundle ask for another inference precision.
        """
        chosen = options.session.get(INFERENCE_PRECISION)
        if not get_policy(options.precision).converts_graph and chosen != INFERENCE_PRECISION.default:
            raise PrecisionError(
                f"requested {options.precision}, but the session settings ask OpenVINO for {chosen}; remove "
                "inference_precision from build.session in the manifest, or export the model again"
            )
        if options.precision == "bf16":
            require_bf16(ov)
        settings: dict[str, Any] = {
            **_session_settings(options.session),
            "INFERENCE_NUM_THREADS": options.threads or available_cores(),
            # By default the plugin runs fp32 models in bf16 if the processor supports it.
            "INFERENCE_PRECISION_HINT": _available(ov, _inference_precision(options)),
        }
        cache = {} if options.cache_dir is None else {"CACHE_DIR": str(options.cache_dir)}
        huge_pages = watch_memory(options.session)
        try:
            # "zero" would also change the mode of this thread, in which NumPy and PyTorch compute.
            with dropping_pages(artifact.with_suffix(".bin")), denormals(KEEP):
                self._compiled = ov.Core().compile_model(str(artifact), DEVICE, {**settings, **cache})
        except Exception as error:
            raise BuildError(f"OpenVINO cannot load {artifact}: {error_reason(error)}") from error
        devices = self._compiled.get_property("EXECUTION_DEVICES")
        if list(devices) != [DEVICE]:
            raise BuildError(f"OpenVINO runs on {devices} instead of {DEVICE}")
        self._request = self._compiled.create_infer_request()
        self._ov, self._settings, self._cache = ov, settings, cache
        self._artifact = artifact.absolute()  # read again later, when the current folder may have changed
        self.inputs = self._specs("inputs")
        self.outputs = self._specs("outputs")
        self.batches = options.dynamic_batch
        memory = [_own_memory(self._request, index, spec) for index, spec in enumerate(self.inputs)]
        named = [(index, spec.name, own) for index, (spec, own) in enumerate(zip(self.inputs, memory, strict=True))]
        self._copied_inputs = [(name, own) for _, name, own in named if own is not None]
        self._shared_inputs = [(index, name) for index, name, own in named if own is None]
        is_static = not any(spec.is_dynamic for spec in self.outputs)
        self._static_outputs = self._memory(self._request) if is_static else []
        self._lock = threading.Lock()
        self._chosen = options.session
        self._watch(huge_pages)

    def _specs(self, side: Literal["inputs", "outputs"]) -> tuple[TensorSpec, ...]:
        """Return the specs of all inputs or outputs.

        A compiled port also has the names of tensors that the plugin merged with it, in no order. Its own name is that
        of the port at the same position in the file, which has one name.
        """
        ports: Sequence[Any] = getattr(self._compiled, side)
        named = ports
        if any(len(port.get_names()) > 1 for port in ports):
            named = getattr(self._ov.Core().read_model(str(self._artifact)), side)
        return tuple(_spec(port, own.get_any_name()) for port, own in zip(ports, named, strict=True))

    @property
    def threads(self) -> int:
        return compiled_threads(self._require_open(self._compiled))

    def _infer(self, feeds: Feeds) -> dict[str, Array]:
        # Each step takes longer than it seems to: the inference before has displaced it from the caches.
        with self._lock:  # a request refuses a second call while it is busy
            request = self._request
            if request is None:
                self._require_open(request)
            try:
                for name, memory in self._copied_inputs:
                    memory[...] = feeds[name]
                if self._shared_inputs:
                    arrays = [_usable(feeds[name]) for _, name in self._shared_inputs]  # kept until the request has run
                    for (index, _), array in zip(self._shared_inputs, arrays, strict=True):
                        request.set_input_tensor(index, self._ov.Tensor(array, shared_memory=True))
                # A third of the time of `infer(feeds)`, which looks ports up and wraps the results.
                request.infer(share_inputs=True, share_outputs=True)
            except Exception as error:
                raise InferenceError(f"OpenVINO failed to run the model: {error_reason(error)}") from error
            outputs = {}
            for name, memory in self._static_outputs or self._memory(request):
                outputs[name] = memory.copy()  # the request writes its next outputs into the same memory
            return outputs

    def _memory(self, request: Any) -> list[tuple[str, Array]]:
        """Return the request's outputs by name; those of static shapes stay where they are."""
        return [(spec.name, tensor.data) for spec, tensor in zip(self.outputs, request.output_tensors, strict=True)]

    def executed_precision(self) -> ExecutedPrecision:
        """Return layers and MACs of the compiled model, as the plugin reports them.

        A model compiled for a dynamic batch has no shapes, and a model from the cache does not list its fused
        operators. Their MACs are counted in the same model compiled again for the optimum batch, if that runs in the
        same precisions. MACs are unknown if they differ from those of the graph by more than 2 %.
        """
        compiled, source = self._require_open(self._compiled), self._source()
        operators = multiplying_operators(source)
        executed = read_precision(compiled, operators)
        if self.batches is not None or self._cache:
            again = read_precision(self._ov.Core().compile_model(source, DEVICE, self._settings), operators)
            same = again.layers.keys() == executed.layers.keys()
            executed = replace(executed, macs=again.macs if same else {})
        total = sum(operator.macs or 0 for operator in operators.values())
        counted = sum(executed.macs.values())
        return executed if abs(counted - total) <= 0.02 * total else replace(executed, macs={})

    def executed_layers(self) -> ExecutedPrecision:
        compiled = self._require_open(self._compiled)
        return replace(read_precision(compiled, multiplying_operators(self._source())), macs={})

    def profile_layers(self, feeds: Feeds, *, runs: int) -> LayerProfile:
        profiled = self._compile({**self._settings, "PERF_COUNT": True})
        names = node_names(self._artifact.with_suffix(".onnx"))  # a bundle has the ONNX file beside it
        operators = multiplying_operators(self._source())
        return profile_layers(profiled, feeds, names, operators, runs=runs, skip=PROFILE_WARMUP)

    def matmul(self, shape: tuple[int, int, int], precision: str) -> Operations | None:
        return matmul(self._ov, self._settings, shape, precision)

    def throughput_runner(self, streams: int) -> ThroughputRunner:
        settings = {**self._settings, **self._cache, "PERFORMANCE_HINT": "THROUGHPUT", "NUM_STREAMS": streams}
        huge_pages = watch_memory(self._chosen)
        return OpenVinoStreams(self._ov, self._compile(settings), streams, huge_pages=huge_pages)

    def _compile(self, settings: Mapping[str, Any]) -> Any:
        with denormals(KEEP):
            return self._ov.Core().compile_model(str(self._artifact), DEVICE, dict(settings))

    def _source(self) -> Any:
        """Read the source model again, reshaped to the optimum batch if dynamic."""
        try:
            model = self._ov.Core().read_model(str(self._artifact))
            if self.batches is not None:
                model.reshape({spec.name: list(spec.with_batch(self.batches.optimum)) for spec in self.inputs})
        except Exception as error:
            raise BuildError(f"OpenVINO cannot read {self._artifact} again: {error_reason(error)}") from error
        return model

    def close(self) -> None:
        self._request = self._compiled = None  # refuses the next inference
        with self._lock:  # one in another thread ends first
            self._copied_inputs = self._static_outputs = []


class OpenVinoStreams(ThroughputRunner):
    """A queue of requests, one for each stream."""

    def __init__(self, ov: Any, compiled: Any, streams: int, *, huge_pages: HugePages | None) -> None:
        """`huge_pages` has watched the memory since before the model was compiled."""
        self._queue, self.streams = ov.AsyncInferQueue(compiled, streams), streams
        self._watch(huge_pages)

    def _run_while(self, feeds: Feeds, more: Callable[[int], bool]) -> int:
        arrays = {name: _usable(array) for name, array in feeds.items()}  # kept until all requests have run
        started = 0
        while more(started):
            self._queue.start_async(arrays, share_inputs=True)
            started += 1
        self._queue.wait_all()
        return started

    def close(self) -> None:
        self._queue = None


def require_bf16(ov: Any) -> None:
    """Raise PrecisionError if this processor has no bf16 arithmetic: OpenVINO would run another precision, or fail."""
    if CAPABILITIES["bf16"] not in capabilities(ov):
        raise PrecisionError(
            "OpenVINO finds no bf16 arithmetic in this processor (it takes AMX, AVX512-BF16 or Arm's bf16); export "
            "with --precision fp32 or int8"
        )


def _own_memory(request: Any, index: int, spec: TensorSpec) -> Array | None:
    """Return the memory of the request's own input tensor if an input is sooner copied into it than shared, else None.

    The plugin connects shared memory with the graph anew for each inference, which takes as long as to copy 100 KB.
    The memory of a dynamic shape changes with the batch.
    """
    if spec.is_dynamic:
        return None
    own: Array = request.get_input_tensor(index).data
    return own if own.nbytes <= _COPIED_BYTES else None


def _usable(array: Array) -> Array:
    """Return the array, or a copy if OpenVINO cannot share its memory; a tensor in that memory does not own it."""
    return np.require(array, requirements=("C_CONTIGUOUS", "ALIGNED", "WRITEABLE"))


def _inference_precision(options: BuildOptions) -> str:
    """Return the precision of the float operators."""
    return "bf16" if options.precision == "bf16" else options.session.get(INFERENCE_PRECISION)


def _available(ov: Any, inference_precision: str) -> str:
    """Return the precision if this processor has its arithmetic, else the default."""
    default = INFERENCE_PRECISION.default  # needs no question to the plugin, which would delay each load
    is_available = inference_precision == default or CAPABILITIES[inference_precision] in capabilities(ov)
    return inference_precision if is_available else default


def _session_settings(chosen: SessionSettings) -> dict[str, Any]:
    """Return the session settings of a bundle as OpenVINO's; its own defaults are left out."""
    settings: dict[str, Any] = {"PERFORMANCE_HINT": chosen.get(HINT).upper()}
    if chosen.get(PINNING) == "off":
        settings["ENABLE_CPU_PINNING"] = False
    if chosen.get(HYPER_THREADING) == "off":
        settings["ENABLE_HYPER_THREADING"] = False
    if chosen.get(DENORMALS) == "zero":
        settings["CPU_DENORMALS_OPTIMIZATION"] = True
    return settings


def _spec(port: Any, name: str) -> TensorSpec:
    shape: list[Dim] = [dim.get_length() if dim.is_static else "batch" for dim in port.get_partial_shape()]
    return TensorSpec(name, np.dtype(port.get_element_type().to_dtype()).name, tuple(shape))
