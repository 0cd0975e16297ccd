"""A TensorRT engine in this process: its buffers, its stream, and one inference after another.

Names as in tensorrt_builder.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any

import numpy as np

from edgevit.errors import BuildError
from edgevit.runtimes.base import BatchRange, Engine
from edgevit.runtimes.precision import ExecutedPrecision
from edgevit.runtimes.tensorrt import cuda, cuda_graph
from edgevit.runtimes.tensorrt.builder import failed, process_logger, type_name
from edgevit.runtimes.tensorrt.inspector import executed_precision
from edgevit.runtimes.tensorrt.shapes import tensor_spec
from edgevit.types import Array, TensorSpec

_AGAIN = "build it again here: edgevit build BUNDLE"


class TensorRtEngine(Engine):
    """An engine with its buffers. A shape's first inference is run as it comes, later ones as one captured CUDA graph.

    Copies to and from the device are part of every inference.
    """

    fmt = "trt"

    def __init__(self, trt: Any, content: bytes) -> None:
        self._trt = trt
        self._runtime: Any = None
        self._engine: Any = None
        self._context: Any = None
        self._batch: int | None = None
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._buffers: dict[str, cuda.DeviceBuffer] = {}
        self._pinned: dict[str, cuda_graph.PinnedMemory] = {}
        self._views: dict[str, Array] = {}  # of the page-locked memory, in the shapes of the batch of now
        self._graph: cuda_graph.CapturedGraph | None = None
        self._tried_capture = False
        with ExitStack() as stack:
            self._device = stack.enter_context(cuda.Device())
            stack.callback(self._let_go)
            self._load(trt, content)
            self.inputs, self.outputs = self._ends(trt)
            self.batches = self._bounds()
            stack.callback(self._free)
            self._set_batch(self.batches.maximum if self.batches else 1)
            self._allocate()
            self._set_batch(self.batches.optimum if self.batches else 1)
            self._stack = stack.pop_all()

    def close(self) -> None:
        self._device.activate()
        self._stack.close()

    def executed_precision(self) -> ExecutedPrecision:
        """By the layers of the engine that multiply, as its inspector tells them."""
        inspector = self._engine.create_engine_inspector()
        if inspector is None:
            raise failed(self._trt, "the engine has no inspector")
        inspector.execution_context = self._context  # or the types of a dynamic engine are not told
        text = inspector.get_engine_information(self._trt.LayerInformationFormat.JSON)
        return executed_precision(text)

    def _infer(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        self._device.activate()  # a thread's own, and this may be another thread
        dynamic = [spec for spec in self.inputs if spec.is_dynamic]
        self._set_batch(len(feeds[dynamic[0].name]) if dynamic else 1)
        for spec in self.inputs:
            np.copyto(self._views[spec.name], feeds[spec.name])
        self._run()
        return {spec.name: self._views[spec.name].copy() for spec in self.outputs}

    def _run(self) -> None:
        if self._graph is not None:
            self._graph.launch()
            self._device.synchronize()
            return
        self._enqueue()
        self._device.synchronize()
        if not self._tried_capture:  # TensorRT has set itself up for the shape: now its work can be recorded
            self._tried_capture = True
            self._graph = cuda_graph.capture(self._device, self._enqueue)
            process_logger(self._trt).take()  # what cannot be recorded is no error, and not the next one's reason

    def _enqueue(self) -> None:
        for spec in self.inputs:
            self._buffers[spec.name].upload(self._views[spec.name])
        if not self._context.execute_async_v3(self._device.stream):
            raise failed(self._trt, "the engine does not run", remedy=_AGAIN)
        for spec in self.outputs:
            self._buffers[spec.name].download(self._views[spec.name])

    def _load(self, trt: Any, content: bytes) -> None:
        logger = process_logger(trt)
        logger.take()
        try:
            self._runtime = trt.Runtime(logger)
        except TypeError as error:  # what pybind11 makes of a null pointer
            raise failed(
                trt, "it does not start", str(error), remedy="see that it fits the driver: nvidia-smi"
            ) from error
        self._engine = self._runtime.deserialize_cuda_engine(content)
        if self._engine is None:
            raise failed(trt, "the engine does not load, it may be damaged", remedy=_AGAIN)
        self._context = self._engine.create_execution_context()
        if self._context is None:
            raise failed(trt, "the engine gets no memory to run in", remedy="free memory of the GPU: nvidia-smi")

    def _ends(self, trt: Any) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
        """Inputs and outputs, in the engine's order."""
        inputs: list[TensorSpec] = []
        outputs: list[TensorSpec] = []
        for index in range(self._engine.num_io_tensors):
            name = self._engine.get_tensor_name(index)
            dtype = self._engine.get_tensor_dtype(name)
            shape = self._engine.get_tensor_shape(name)
            spec = tensor_spec(name, type_name(dtype), tuple(shape))
            is_input = self._engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT
            (inputs if is_input else outputs).append(spec)
        return tuple(inputs), tuple(outputs)

    def _bounds(self) -> BatchRange | None:
        """The batches of the engine's first profile, the only one that we build."""
        for spec in self.inputs:
            if spec.is_dynamic:
                bounds = self._engine.get_tensor_profile_shape(spec.name, 0)
                return BatchRange(*(shape[0] for shape in bounds))
        return None

    def _set_batch(self, batch: int) -> None:
        """Gives every dynamic input its shape; what was captured for another is dropped."""
        if batch == self._batch:
            return
        self._drop_graph()
        for spec in self.inputs:
            if spec.is_dynamic and not self._context.set_input_shape(spec.name, spec.with_batch(batch)):
                raise failed(self._trt, f"the engine does not take {spec} at a batch of {batch}")
        try:
            names = self._context.infer_shapes()
        except RuntimeError as error:
            raise failed(self._trt, f"no shapes follow from a batch of {batch}", str(error)) from error
        if names:
            raise failed(self._trt, f"the shapes of {', '.join(names)} stay unknown")
        self._shapes = {
            spec.name: tuple(self._context.get_tensor_shape(spec.name)) for spec in (*self.inputs, *self.outputs)
        }
        if any(size < 0 for shape in self._shapes.values() for size in shape):
            raise BuildError(f"an output's shape depends on the data ({self._shapes}), which edgevit has no buffer for")
        self._view()
        self._batch = batch

    def _view(self) -> None:
        dtypes = {spec.name: spec.dtype for spec in (*self.inputs, *self.outputs)}
        self._views = {name: pinned.array(self._shapes[name], dtypes[name]) for name, pinned in self._pinned.items()}

    def _allocate(self) -> None:
        """Buffers for the largest batch, which is set."""
        for spec in (*self.inputs, *self.outputs):
            size = int(np.prod(self._shapes[spec.name], dtype=np.int64)) * np.dtype(spec.dtype).itemsize
            self._pinned[spec.name] = cuda_graph.PinnedMemory(self._device, size)
            self._buffers[spec.name] = self._device.allocate(size)
            if not self._context.set_tensor_address(spec.name, self._buffers[spec.name].address):
                raise failed(self._trt, f"the engine takes no buffer for {spec}")
        self._view()

    def _drop_graph(self) -> None:
        self._tried_capture = False
        if self._graph is not None:
            self._graph.free()
        self._graph = None

    def _free(self) -> None:
        self._drop_graph()
        self._views = {}
        for buffer in self._buffers.values():
            buffer.free()
        for pinned in self._pinned.values():
            pinned.free()

    def _let_go(self) -> None:
        """Drops TensorRT's objects, each before the one that it came from."""
        self._context = None
        self._engine = None
        self._runtime = None
