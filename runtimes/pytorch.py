"""PyTorch as an Engine: the reference of parity checks, and a candidate in latency measurements."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from typing import Any

from edgevit.errors import MissingError
from edgevit.runtimes.base import Engine, available_cores
from edgevit.runtimes.precision import ExecutedPrecision
from edgevit.types import Array, TensorSpec


class TorchEngine(Engine):
    """A PyTorch module, run eagerly in fp32 on the CPU."""

    fmt = "torch"

    def __init__(
        self, module: Any, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec], *, threads: int | None = None
    ) -> None:
        self._torch = load_torch()
        from edgevit.models.reference import flatten_outputs

        self._flatten = flatten_outputs
        self._torch.set_num_threads(threads or available_cores())
        self._module = module
        with contextlib.suppress(NotImplementedError):  # a program of torch.export cannot switch modes
            module.eval()
        self.inputs = tuple(inputs)
        self.outputs = tuple(outputs)

    def _infer(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        # torch.tensor copies: a module may modify its input in place, or return a view of it.
        tensors = [self._torch.tensor(feeds[spec.name]) for spec in self.inputs]
        with self._torch.inference_mode():
            result = self._module(*tensors)
        values = [result] if isinstance(result, self._torch.Tensor) else self._flatten(result)
        return {spec.name: value.numpy() for spec, value in zip(self.outputs, values, strict=True)}

    def executed_precision(self) -> ExecutedPrecision:
        layers = [layer for layer in self._module.modules() if hasattr(layer, "weight") and layer.weight is not None]
        return ExecutedPrecision({"fp32": sum(layer.weight.ndim > 1 for layer in layers)})


def load_torch() -> Any:
    """Import torch. Raises MissingError with the command that installs it."""
    try:
        import torch
    except ImportError as error:
        raise MissingError("PyTorch is not installed; install it: pip install 'edgevit[export]'") from error
    return torch
