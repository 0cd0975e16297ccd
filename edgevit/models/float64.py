"""Run a module in float64, to see how far its own float32 outputs are off.

The module is not converted: each function gets its float32 tensors as float64, which live as long as the call. So only
the weights of one call are held twice, whatever the size of the model, and casts to float32 inside `forward` become
casts to float64. Functions are intercepted twice: as Python calls them, since many check that their arguments have one
type, and as PyTorch executes them, since some create tensors inside. The cost is two to three times the time of the
same run in float32, and twice the memory of its activations.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map


def run_in_float64(module: nn.Module, inputs: Sequence[torch.Tensor], *, limit_s: float) -> Any:
    """Return `module(*inputs)` with all operators in float64.

    Raises TimeoutError after `limit_s` seconds, and any error of the module: it may require float32.
    """
    with torch.no_grad(), _Float64Operators(time.monotonic() + limit_s), _Float64Functions():
        return module(*inputs)


class _Float64Functions(TorchFunctionMode):
    """Replaces float32 by float64 in the arguments and results of each function that Python calls."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        return _call(func, args, kwargs or {})


class _Float64Operators(TorchDispatchMode):  # type: ignore[no-untyped-call]  # its __init_subclass__
    """Replaces float32 by float64 in the arguments and results of each operator that PyTorch executes."""

    def __init__(self, deadline_s: float) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._deadline_s = deadline_s

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        if time.monotonic() > self._deadline_s:
            raise TimeoutError
        return _call(func, args, kwargs or {})


def _call(func: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    return _in_float64(func(*_in_float64(args), **_in_float64(kwargs)))


def _in_float64(tree: Any) -> Any:
    """Convert the tensors in nested containers. A torch.Size stays one: as a tuple it would have no `numel`."""
    return tree_map(_to_float64, tree, is_leaf=lambda value: isinstance(value, torch.Size))


def _to_float64(value: Any) -> Any:
    if isinstance(value, torch.Tensor) and value.dtype == torch.float32:
        return value.double()
    return torch.float64 if value is torch.float32 else value
