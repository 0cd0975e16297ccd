"""Matrix products and copies of a GPU, recorded in a CUDA graph, for the machine's limit."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack

from edgevit.runtimes.base import GRAPH_OPERATIONS, Operations
from edgevit.runtimes.tensorrt import cuda_graph
from edgevit.runtimes.tensorrt.cublas import Cublas
from edgevit.runtimes.tensorrt.cuda import Device


def products(device: Device, shape: tuple[int, int, int], precision: str) -> Operations | None:
    """Return products by cuBLAS, as Engine.matmul does; None if this GPU has none in `precision`.

    Raises MissingError without cuBLAS.
    """
    with ExitStack() as stack:
        cublas = Cublas(device)
        stack.callback(cublas.close)
        product = cublas.product(shape, precision)
        if product is None:
            return None
        stack.callback(product.free)
        return _recorded(device, product.enqueue, stack) if product.enqueue() else None


def copies(device: Device, size_bytes: int) -> Operations:
    """Return copies within the memory of the device, as Engine.copy does."""
    with ExitStack() as stack:
        source = device.allocate(size_bytes)
        stack.callback(source.free)
        target = device.allocate(size_bytes)
        stack.callback(target.free)
        target.copy_from(source)
        return _recorded(device, lambda: target.copy_from(source), stack)


def _recorded(device: Device, enqueue: Callable[[], object], stack: ExitStack) -> Operations:
    """Return an operation many times over in one graph, timed by events; `stack` has its resources.

    It was enqueued once, which loads its kernel: a capture must not do that.
    """
    device.synchronize()

    def enqueue_all() -> None:
        for _ in range(GRAPH_OPERATIONS):
            enqueue()

    graph = cuda_graph.capture(device, enqueue_all)
    stack.callback(graph.free)
    stopwatch = cuda_graph.Stopwatch(device)
    stack.callback(stopwatch.free)

    def run() -> None:
        stopwatch.start()
        graph.launch()
        stopwatch.stop()
        device.synchronize()

    return Operations(
        run=run,
        count=GRAPH_OPERATIONS,
        device_s=lambda: stopwatch.elapsed_ms() / 1e3,
        resources=stack.pop_all(),
    )
