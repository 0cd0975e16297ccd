"""Several inferences of one engine in flight: a context, a CUDA stream and a CUDA graph for each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress

from edgevit.errors import BuildError, InferenceError
from edgevit.runtimes.base import ThroughputRunner
from edgevit.runtimes.tensorrt import cuda, cuda_graph
from edgevit.runtimes.tensorrt.api import IExecutionContext
from edgevit.runtimes.tensorrt.bindings import Bindings
from edgevit.types import Feeds, TensorSpec

_LEAVE_OUT = "leave --throughput out"


class Stream:
    """A context with a CUDA stream and buffers of its own, which keeps one inference in flight."""

    def __init__(self, context: IExecutionContext, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]) -> None:
        self._context, self._inputs, self._outputs = context, tuple(inputs), tuple(outputs)
        self._shapes: dict[str, tuple[int, ...]] = {}  # of the inputs
        self._graph: cuda_graph.CapturedGraph | None = None
        with ExitStack() as stack:
            self._device = stack.enter_context(cuda.Device())
            self._bindings = Bindings(self._device, inputs, outputs)
            stack.callback(self._free)
            self._stack = stack.pop_all()

    def start(self, feeds: Feeds) -> None:
        """Start an inference; the one before must have ended. Raises InferenceError if it fails."""
        shapes = {name: array.shape for name, array in feeds.items()}
        if shapes != self._shapes:
            self._prepare(shapes, feeds)
        self._bindings.write(feeds)
        if self._graph is not None:
            self._graph.launch()
        else:
            self._enqueue()

    def wait(self) -> None:
        """Wait for the inference that was started, and for its outputs on the host."""
        self._device.synchronize()

    def close(self) -> None:
        self._stack.close()

    def _prepare(self, shapes: dict[str, tuple[int, ...]], feeds: Feeds) -> None:
        """Allocate buffers for the shapes of the inputs, and record the inference if CUDA can."""
        self._free()
        for spec in self._inputs:
            if spec.is_dynamic and not self._context.set_input_shape(spec.name, shapes[spec.name]):
                raise BuildError(f"TensorRT does not accept {spec} in another context; {_LEAVE_OUT}")
        of_outputs = {spec.name: tuple(self._context.get_tensor_shape(spec.name)) for spec in self._outputs}
        self._bindings.allocate({**shapes, **of_outputs})
        refused = self._bindings.bind(self._context)
        if refused is not None:
            raise BuildError(f"TensorRT does not accept a buffer for {refused} in another context; {_LEAVE_OUT}")
        self._bindings.write(feeds)
        self._enqueue()  # after its first run TensorRT is set up for the shape, and can be recorded
        self._device.synchronize()
        with suppress(BuildError, InferenceError):  # it runs without a graph, as a single inference does
            self._graph = cuda_graph.capture(self._device, self._enqueue)
        self._shapes = shapes

    def _enqueue(self) -> None:
        if not self._bindings.enqueue(self._context):
            raise InferenceError(f"TensorRT failed to run in several streams; {_LEAVE_OUT}")

    def _free(self) -> None:
        self._shapes = {}
        if self._graph is not None:
            self._graph.free()
        self._graph = None
        self._bindings.free()


class TensorRtStreams(ThroughputRunner):
    """Streams of one engine, fed in turn by this thread."""

    def __init__(self, create: Callable[[], Stream], streams: int) -> None:
        """`create` makes a stream. Raises BuildError if there is no memory for so many."""
        with ExitStack() as stack:
            self._created: list[Stream] = []
            for _ in range(streams):
                self._created.append(create())
                stack.callback(self._created[-1].close)
            self._stack = stack.pop_all()
        self.streams = streams

    def _run_while(self, feeds: Feeds, more: Callable[[int], bool]) -> int:
        started = 0
        while more(started):
            stream = self._created[started % len(self._created)]
            stream.wait()
            stream.start(feeds)
            started += 1
        for stream in self._created:
            stream.wait()
        return started

    def close(self) -> None:
        self._stack.close()
