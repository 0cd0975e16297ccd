"""An engine of TensorRT or TensorRT-RTX in this process: its buffers, its stream, its CUDA graph."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path

from edgevit.errors import BuildError, EdgevitError, InferenceError
from edgevit.files import first_line
from edgevit.runtimes.base import CUDA_GRAPH, GPU, GPU_MULTIPROCESSORS, GPU_UUID, BatchRange, Engine, Operations
from edgevit.runtimes.layer_profile import LayerProfile
from edgevit.runtimes.precision import ExecutedPrecision
from edgevit.runtimes.tensorrt import cublas, cuda, cuda_graph, rates
from edgevit.runtimes.tensorrt.api import IExecutionContext
from edgevit.runtimes.tensorrt.bindings import Bindings
from edgevit.runtimes.tensorrt.inspector import executed_precision, layer_kinds
from edgevit.runtimes.tensorrt.layer_times import profile_context
from edgevit.runtimes.tensorrt.log import failure, load_plugins, process_logger
from edgevit.runtimes.tensorrt.memory import MB, nvmap_bytes
from edgevit.runtimes.tensorrt.shapes import tensor_spec
from edgevit.runtimes.tensorrt.streams import Stream, TensorRtStreams
from edgevit.runtimes.tensorrt.versions import TensorRtModule, is_86
from edgevit.types import Array, Feeds, TensorSpec

_MEMINFO = Path("/proc/meminfo")
_REBUILD = "rebuild it here: edgevit build BUNDLE"


class TensorRtEngine(Engine):
    """An engine with its buffers. The first inference of a shape runs directly, later ones as one CUDA graph.

    Every inference includes the copies to and from the device.
    """

    fmt = "trt"
    title = "TensorRT"
    product_library = cublas.TITLE

    def __init__(self, trt: TensorRtModule, content: bytes) -> None:
        self._trt = trt
        self._batch: int | None = None
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._graph: cuda_graph.CapturedGraph | None = None
        self._tried_capture = False
        self._graph_problem = "it has not run yet"
        self._stopwatch: cuda_graph.Stopwatch | None = None
        self._has_time = False  # of the last inference
        with ExitStack() as stack:
            self._device = stack.enter_context(cuda.Device())
            self._used_before = _used_bytes(self._device)
            stack.callback(self._release_tensorrt)
            self._load(trt, content)
            self.inputs, self.outputs = self._specs(trt)
            self.batches = self._profile()
            self._bindings = Bindings(self._device, self.inputs, self.outputs)
            stack.callback(self._free)
            self._stopwatch = cuda_graph.Stopwatch(self._device)
            self._set_batch(self.batches.maximum if self.batches else 1)
            self._allocate()
            self._set_batch(self.batches.optimum if self.batches else 1)
            self._stack: ExitStack | None = stack.pop_all()

    @property
    def conditions(self) -> Mapping[str, str]:
        """The GPU, how the processor waits for it, where the host's arrays are, and whether a CUDA graph runs."""
        self._require_open(self._stack)
        uuid = self._device.uuid
        return {
            GPU: self._device.name,
            **({GPU_UUID: uuid} if uuid else {}),
            GPU_MULTIPROCESSORS: str(self._device.multiprocessors),
            "cpu_wait": self._device.cpu_wait,
            "host_memory": "pinned",
            **self._context_memory(),
            CUDA_GRAPH: "yes" if self._graph is not None else self._graph_problem,
        }

    def compute_ms(self) -> float | None:
        """Time of the last inference by events around its CUDA graph, or its calls: kernels and both copies."""
        if self._stopwatch is None or not self._has_time:
            return None
        return self._stopwatch.elapsed_ms()

    def profile_layers(self, feeds: Feeds, *, runs: int) -> LayerProfile | None:
        """Profile a second context of the engine, whose layers run one by one and not as a CUDA graph."""
        if not self._has_contexts:
            return None
        self.run(feeds)  # sets the shapes, and fills the buffers on the device
        context = self._second_context(remedy="leave --layers out")
        for spec in self.inputs:
            if spec.is_dynamic and not context.set_input_shape(spec.name, feeds[spec.name].shape):
                raise self._failure(f"the engine does not accept {spec} in a second context")
        refused = self._bindings.bind(context)
        if refused is not None:
            raise self._failure(f"the engine does not accept a buffer for {refused} in a second context")
        kinds = layer_kinds(self._inspected())
        return profile_context(self._trt, context, self._device, kinds, runs=runs)

    def matmul(self, shape: tuple[int, int, int], precision: str) -> Operations | None:
        self._require_open(self._stack)
        self._device.activate()
        return rates.products(self._device, shape, precision)

    def copy(self, size_bytes: int) -> Operations:
        self._require_open(self._stack)
        self._device.activate()
        return rates.copies(self._device, size_bytes)

    def throughput_runner(self, streams: int) -> TensorRtStreams | None:
        """Return as many contexts of the engine, each with a CUDA stream and a CUDA graph of its own."""
        self._require_open(self._stack)
        if not self._has_contexts:
            return None
        self._device.activate()
        return TensorRtStreams(self._stream, streams)

    def _stream(self) -> Stream:
        return Stream(self._second_context(remedy="leave --throughput out"), self.inputs, self.outputs)

    @property
    def _has_contexts(self) -> bool:
        """Whether there can be a second context: one of 8.6 would need a second profile for a dynamic batch."""
        return self.batches is None or not is_86(self._trt)

    def _second_context(self, *, remedy: str) -> IExecutionContext:
        context = self._engine.create_execution_context()
        if context is None:
            raise self._failure("not enough memory for another context", remedy=remedy)
        return context

    def close(self) -> None:
        if self._stack is not None:
            self._device.activate()
            self._stack.close()
        self._stack = None

    def executed_precision(self) -> ExecutedPrecision:
        """Precision of the engine's convolutions and matmuls, from its inspector."""
        return executed_precision(self._inspected(), self.node_macs)

    def _inspected(self) -> str:
        """Return the inspector's description of the engine, as JSON."""
        self._require_open(self._stack)
        inspector = self._engine.create_engine_inspector()
        if inspector is None:
            raise self._failure("the engine has no inspector")
        inspector.execution_context = self._context  # without it the types of a dynamic engine are not reported
        return inspector.get_engine_information(self._trt.LayerInformationFormat.JSON)

    def _infer(self, feeds: Feeds) -> dict[str, Array]:
        self._require_open(self._stack)
        try:
            self._device.activate()  # the current device is per thread, and this may be another thread
            dynamic = [spec for spec in self.inputs if spec.is_dynamic]
            self._set_batch(len(feeds[dynamic[0].name]) if dynamic else 1)
            self._bindings.write(feeds)
            self._run()
        except BuildError as error:  # of CUDA
            raise InferenceError(str(error)) from error
        return {spec.name: self._bindings.views[spec.name].copy() for spec in self.outputs}

    def _run(self) -> None:
        self._has_time = False
        if self._stopwatch is None:
            raise BuildError("the engine is not loaded; load it again")
        self._stopwatch.start()
        if self._graph is not None:
            self._graph.launch()
        else:
            self._enqueue()
        self._stopwatch.stop()
        self._device.synchronize()
        self._has_time = True
        if self._graph is not None:
            return
        if not self._tried_capture:  # after its first run TensorRT is set up for the shape, and can be recorded
            self._tried_capture = True
            self._measure_memory()  # kernels are loaded by the first run
            try:
                self._graph = cuda_graph.capture(self._device, self._enqueue)
            except (BuildError, InferenceError) as error:  # it runs without one, and the conditions say so
                self._graph_problem = first_line(error)
            process_logger(self._trt).take()  # drop its messages: a failed capture is not an error

    def _enqueue(self) -> None:
        if not self._bindings.enqueue(self._context):
            raise self._failure("inference failed", kind=InferenceError)

    def _load(self, trt: TensorRtModule, content: bytes) -> None:
        logger = process_logger(trt)
        logger.take()
        try:
            self._runtime = trt.Runtime(logger)
        except TypeError as error:  # pybind11 raises it for a null pointer
            remedy = "check that its version supports the driver: nvidia-smi"
            raise self._failure("cannot start", str(error), remedy=remedy) from error
        load_plugins(trt)
        engine = self._runtime.deserialize_cuda_engine(content)
        if engine is None:
            gpu = f"{self._device.name} (compute capability {self._device.compute_capability})"
            remedy = f"if it is damaged or of another version, {_REBUILD}"
            raise self._failure(f"version {trt.__version__} cannot load the engine on {gpu}", remedy=remedy)
        self._engine = engine
        for message in logger.take_device_warnings():
            warnings.warn(f"{self.title}: {message}", RuntimeWarning, stacklevel=2)
        context = engine.create_execution_context()
        if context is None:
            raise self._failure("not enough memory to run the engine", remedy="free GPU memory: nvidia-smi")
        self._context = context

    def _failure(
        self, what: str, *messages: str, remedy: str = _REBUILD, kind: type[EdgevitError] = BuildError
    ) -> EdgevitError:
        return failure(self._trt, what, *messages, remedy=remedy, kind=kind, title=self.title)

    def _specs(self, trt: TensorRtModule) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
        """Return the specs of inputs and outputs, in the engine's order."""
        inputs: list[TensorSpec] = []
        outputs: list[TensorSpec] = []
        for index in range(self._engine.num_io_tensors):
            name = self._engine.get_tensor_name(index)
            dtype = self._engine.get_tensor_dtype(name).name
            spec = tensor_spec(name, dtype, tuple(self._engine.get_tensor_shape(name)))
            is_input = self._engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT
            (inputs if is_input else outputs).append(spec)
        return tuple(inputs), tuple(outputs)

    def _profile(self) -> BatchRange | None:
        """Return the batch sizes of the engine's only profile; None if its batch is fixed."""
        for spec in self.inputs:
            if spec.is_dynamic:
                shapes = self._engine.get_tensor_profile_shape(spec.name, 0)
                return BatchRange(*(shape[0] for shape in shapes))
        return None

    def _set_batch(self, batch: int) -> None:
        """Set the shape of every dynamic input, and drop the CUDA graph of another batch size."""
        if batch == self._batch:
            return
        self._drop_graph()
        self._batch = None  # if this fails, the context may have the new shape, with the outputs of the old one
        for spec in self.inputs:
            if spec.is_dynamic and not self._context.set_input_shape(spec.name, spec.with_batch(batch)):
                raise self._failure(f"the engine does not accept {spec} with a batch of {batch}")
        try:
            names = self._context.infer_shapes()
        except RuntimeError as error:
            raise self._failure(f"cannot infer shapes for a batch of {batch}", str(error)) from error
        if names:
            raise self._failure(f"the shapes of {', '.join(names)} are unknown")
        self._shapes = {
            spec.name: tuple(self._context.get_tensor_shape(spec.name)) for spec in (*self.inputs, *self.outputs)
        }
        if any(size < 0 for shape in self._shapes.values() for size in shape):
            raise BuildError(
                f"the shape of an output depends on the input's values ({self._shapes}), which edgevit does not "
                "support; export a model with fixed output shapes"
            )
        self._bindings.view(self._shapes)
        self._batch = batch

    def _allocate(self) -> None:
        """Allocate buffers for the current batch size, which is the largest."""
        self._bindings.allocate(self._shapes)
        refused = self._bindings.bind(self._context)
        if refused is not None:
            raise self._failure(f"the engine does not accept a buffer for {refused}")

    def _measure_memory(self) -> None:
        """Set `device_memory_mb`. Other processes that allocate or free meanwhile change it too."""
        used = _used_bytes(self._device)
        if self._used_before is not None and used is not None:
            self.device_memory_mb = max(0, used - self._used_before) / MB

    def _context_memory(self) -> dict[str, str]:
        """Return the memory that a context takes for its activations, as TensorRT reports it."""
        names = ("device_memory_size_v2", "device_memory_size")  # the first from 10.3 on, the second up to 10
        size = next((getattr(self._engine, name) for name in names if hasattr(self._engine, name)), None)
        return {} if size is None else {"context_memory_mb": f"{size / MB:.1f}"}

    def _drop_graph(self) -> None:
        self._tried_capture = False
        if self._graph is not None:
            self._graph.free()
        self._graph = None

    def _free(self) -> None:
        self._drop_graph()
        if self._stopwatch is not None:
            self._stopwatch.free()
        self._stopwatch = None
        self._bindings.free()

    def _release_tensorrt(self) -> None:
        """Drop TensorRT's objects, each before the one that created it."""
        for name in ("_context", "_engine", "_runtime"):
            self.__dict__.pop(name, None)


def _used_bytes(device: cuda.Device) -> int | None:
    """Return the GPU memory in use; None if it is the host's and the system does not report the GPU's share."""
    if not cuda_graph.shares_memory(device):
        return device.memory_bytes - cuda_graph.free_memory(device)
    return nvmap_bytes(_MEMINFO.read_text("ascii", "replace")) if _MEMINFO.exists() else None
