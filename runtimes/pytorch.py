"""PyTorch as an Engine: the reference of parity checks, and a candidate in latency measurements."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from edgevit.errors import MissingError, unknown_name
from edgevit.files import first_line
from edgevit.memory import PYTORCH_MB, require_address_space
from edgevit.runtimes.base import (
    GPU,
    GPU_MULTIPROCESSORS,
    GPU_UUID,
    GRAPH_OPERATIONS,
    Engine,
    Operations,
    available_cores,
)
from edgevit.runtimes.precision import TF32, ExecutedPrecision
from edgevit.types import Array, Feeds, TensorSpec

CPU, CUDA = "cpu", "cuda"
_TITLES = {CPU: "CPU", CUDA: "CUDA"}


@dataclass(frozen=True, slots=True)
class TorchMode:
    """A way to run a PyTorch module."""

    device: str = CPU
    compiled: bool = False

    @property
    def title(self) -> str:
        """The name in tables and reports, with the device: "torch (CPU)"."""
        return f"{'torch.compile' if self.compiled else 'torch'} ({_TITLES[self.device]})"


TORCH_CPU = TorchMode()
TORCH_MODES = ("torch", "torch-cuda", "torch-compile")  # names on the command line


def torch_mode(name: str) -> TorchMode:
    """Return the mode with a name of TORCH_MODES; `torch-compile` uses the GPU if PyTorch has one.

    Raises MissingError if PyTorch is not installed, or has no GPU for `torch-cuda`.
    """
    if name not in TORCH_MODES:
        raise unknown_name("way to run PyTorch", name, TORCH_MODES)
    if name == "torch":
        return TORCH_CPU
    has_cuda = bool(load_torch().cuda.is_available())
    if name == "torch-cuda":
        if not has_cuda:
            raise MissingError("PyTorch has no CUDA GPU here; install a build with CUDA, or leave torch-cuda out")
        return TorchMode(CUDA)
    return TorchMode(CUDA if has_cuda else CPU, compiled=True)


def output_specs(module: Any, example: Sequence[Any]) -> tuple[TensorSpec, ...]:
    """Return the outputs of a module for its example inputs, named as in a captured graph, the batch as first axis."""
    torch = load_torch()
    from edgevit.models.output_names import named_outputs
    from edgevit.models.reference import register_dataclasses

    with torch.inference_mode():
        result = module(*(tensor.clone() for tensor in example))  # the module may modify its input in place
    register_dataclasses(result)
    return tuple(
        TensorSpec(name, str(tensor.dtype).removeprefix("torch."), ("batch", *tensor.shape[1:]) if tensor.ndim else ())
        for name, tensor in named_outputs(result).items()
    )


class TorchEngine(Engine):
    """A PyTorch module in fp32: eager on the CPU, unless `mode` says otherwise."""

    fmt = "torch"

    def __init__(
        self,
        module: Any,
        inputs: Sequence[TensorSpec],
        outputs: Sequence[TensorSpec],
        *,
        threads: int | None = None,
        mode: TorchMode = TORCH_CPU,
    ) -> None:
        self._torch = load_torch()
        from edgevit.models.reference import flatten_outputs

        self._flatten = flatten_outputs
        self._torch.set_num_threads(threads or available_cores())
        self._mode = mode
        self._module = module if mode.device == CPU else module.to(mode.device)
        with contextlib.suppress(NotImplementedError):  # a program of torch.export cannot switch modes
            module.eval()
        self._call = self._torch.compile(self._module) if mode.compiled else self._module
        self._events = None if mode.device == CPU else self._create_events()
        self.inputs = tuple(inputs)
        self.outputs = tuple(outputs)

    def compile(self, feeds: Feeds) -> None:
        """Run once, which compiles a compiled module. Raises MissingError if it cannot be compiled here."""
        try:
            self.run(feeds)
        except Exception as error:
            raise MissingError(
                f"torch.compile does not work here ({first_line(error)}); install a C++ compiler, or leave "
                "torch-compile out"
            ) from error

    def _create_events(self) -> tuple[Any, Any]:
        """Return two CUDA events: the GPU notes the time when it gets to each."""
        event = self._torch.cuda.Event
        return event(enable_timing=True), event(enable_timing=True)

    def _infer(self, feeds: Feeds) -> dict[str, Array]:
        if self._events is None:
            return self._forward(feeds)
        begin, end = self._events
        begin.record()
        outputs = self._forward(feeds)
        end.record()
        return outputs

    def _forward(self, feeds: Feeds) -> dict[str, Array]:
        # torch.tensor copies: a module may modify its input in place, or return a view of it.
        tensors = [self._torch.tensor(feeds[spec.name], device=self._mode.device) for spec in self.inputs]
        with self._torch.inference_mode():
            result = self._call(*tensors)
        values = [result] if isinstance(result, self._torch.Tensor) else self._flatten(result)
        return {spec.name: value.cpu().numpy() for spec, value in zip(self.outputs, values, strict=True)}

    def compute_ms(self) -> float | None:
        if self._events is None or not self.has_run:
            return None
        begin, end = self._events
        end.synchronize()  # it is noted after the outputs arrived
        return float(begin.elapsed_time(end))

    def executed_precision(self) -> ExecutedPrecision:
        """Precision of the layers with weights. On CUDA, PyTorch multiplies in TF32 where its settings allow it."""
        layers = [layer for layer in self._module.modules() if hasattr(layer, "weight") and layer.weight is not None]
        return ExecutedPrecision(
            Counter(self._precision(layer.weight.ndim) for layer in layers if layer.weight.ndim > 1)
        )

    def _precision(self, rank: int) -> str:
        backends = self._torch.backends
        allows_tf32 = backends.cudnn.allow_tf32 if rank > 2 else backends.cuda.matmul.allow_tf32
        return TF32 if self._mode.device == CUDA and allows_tf32 else "fp32"

    def matmul(self, shape: tuple[int, int, int], precision: str) -> Operations | None:
        on_gpu = self._mode.device != CPU
        if precision not in ("fp32", *((TF32,) if on_gpu else ())):
            return None
        rows, inner, columns = shape
        left = self._torch.ones((rows, inner), device=self._mode.device)
        right = self._torch.ones((inner, columns), device=self._mode.device)

        def product() -> object:
            with self._torch.inference_mode():
                return left @ right

        if not on_gpu:
            return Operations(run=product)
        with self._tf32(allowed=precision == TF32):
            return self._repeated(product)

    def copy(self, size_bytes: int) -> Operations | None:
        if self._mode.device == CPU:
            return None
        source = self._torch.ones(size_bytes, dtype=self._torch.uint8, device=self._mode.device)
        target = self._torch.zeros_like(source)
        return self._repeated(lambda: target.copy_(source))

    def _repeated(self, operation: Callable[[], object]) -> Operations:
        """Return an operation many times over on the GPU.

        One CUDA graph holds them, so that the GPU's time counts and not that of the launches.
        """
        cuda = self._torch.cuda
        operation()  # loads the kernel, which a capture must not do
        cuda.synchronize()
        graph = cuda.CUDAGraph()
        with cuda.graph(graph):
            for _ in range(GRAPH_OPERATIONS):
                operation()

        def call() -> None:
            graph.replay()
            cuda.synchronize()

        return Operations(run=call, count=GRAPH_OPERATIONS)

    @contextlib.contextmanager
    def _tf32(self, *, allowed: bool) -> Iterator[None]:
        settings = self._torch.backends.cuda.matmul
        before = settings.allow_tf32
        settings.allow_tf32 = allowed
        try:
            yield
        finally:
            settings.allow_tf32 = before

    @property
    def conditions(self) -> Mapping[str, str]:
        if self._mode.device == CPU:
            return {}
        properties = self._torch.cuda.get_device_properties(self._mode.device)
        return {
            GPU: properties.name,
            GPU_UUID: str(properties.uuid),
            GPU_MULTIPROCESSORS: str(properties.multi_processor_count),
        }


def module_bytes(module: Any) -> int:
    """Return the bytes of all parameters and buffers of a module; one that several layers share counts once."""
    tensors = {tensor.data_ptr(): tensor for tensor in (*module.parameters(), *module.buffers())}
    return sum(tensor.nbytes for tensor in tensors.values())


def load_torch() -> Any:
    """Import torch. Raises MissingError with the command that installs it, or if there is too little memory."""
    require_address_space(PYTORCH_MB, user="PyTorch")
    try:
        import torch
    except ModuleNotFoundError as error:
        raise MissingError("PyTorch is not installed; install it: pip install 'edgevit[export]'") from error
    return torch
