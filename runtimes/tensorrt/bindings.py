"""Buffers of an execution context: on the device, and in pinned host memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from edgevit.runtimes.tensorrt import cuda, cuda_graph
from edgevit.runtimes.tensorrt.api import IExecutionContext
from edgevit.types import Array, Feeds, TensorSpec


class Bindings:
    """A buffer on the device and pinned memory for each input and output of a context."""

    def __init__(self, device: cuda.Device, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]) -> None:
        self._device, self._inputs, self._outputs = device, tuple(inputs), tuple(outputs)
        self._specs = (*self._inputs, *self._outputs)
        self._buffers: dict[str, cuda.DeviceBuffer] = {}
        self._pinned: dict[str, cuda_graph.PinnedMemory] = {}
        self.views: dict[str, Array] = {}  # arrays on the pinned memory

    def allocate(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        """Allocate memory for tensors of these shapes, or smaller ones. Raises BuildError if there is too little."""
        for spec in self._specs:
            size = int(np.prod(shapes[spec.name], dtype=np.int64)) * np.dtype(spec.dtype).itemsize
            self._pinned[spec.name] = cuda_graph.PinnedMemory(self._device, size)
            self._buffers[spec.name] = self._device.allocate(size)
        self.view(shapes)

    def view(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        """Give the arrays these shapes; none before `allocate`."""
        dtypes = {spec.name: spec.dtype for spec in self._specs}
        self.views = {name: pinned.array(shapes[name], dtypes[name]) for name, pinned in self._pinned.items()}

    def bind(self, context: IExecutionContext) -> TensorSpec | None:
        """Let a context read and write the buffers; return the first tensor whose buffer it refuses."""
        refused = (
            spec for spec in self._specs if not context.set_tensor_address(spec.name, self._buffers[spec.name].address)
        )
        return next(refused, None)

    def write(self, feeds: Feeds) -> None:
        """Copy arrays into the pinned memory of the inputs."""
        for spec in self._inputs:
            np.copyto(self.views[spec.name], feeds[spec.name])

    def enqueue(self, context: IExecutionContext) -> bool:
        """Enqueue the copies to the device, an inference and the copies back; return whether TensorRT accepts it."""
        for spec in self._inputs:
            self._buffers[spec.name].upload(self.views[spec.name])
        if not context.execute_async_v3(self._device.stream):
            return False
        for spec in self._outputs:
            self._buffers[spec.name].download(self.views[spec.name])
        return True

    def free(self) -> None:
        self.views = {}
        for buffer in self._buffers.values():
            buffer.free()
        for pinned in self._pinned.values():
            pinned.free()
        self._buffers, self._pinned = {}, {}
