"""Run a module in float64, to see how far its own float32 outputs are off.

The module is not converted: each function gets its float32 tensors as float64. A parameter's copy lives as long as the
call, so that only the parameters of one call are held twice, whatever the size of the model. The copy of an input or a
buffer lives as long as the run, since `forward` may write to it in place and read it again. Casts to float32 inside
`forward` become casts to float64. Functions are intercepted twice: as Python calls them, since many check that their
arguments have one type, and as PyTorch executes them, since some create tensors inside. The cost is two to three times
the time of the same run in float32, and twice the memory of its activations.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map


def run_in_float64(module: nn.Module, inputs: Sequence[torch.Tensor], *, limit_s: float) -> Any:
    """Return `module(*inputs)` with all operators in float64; the inputs and the module's tensors stay as they are.

    Raises TimeoutError after `limit_s` seconds, and any error of the module: it may require float32.
    """
    kept = _Float64Tensors()
    with _tensors_restored(module), torch.no_grad():
        given = kept.convert(tuple(inputs))
        with _Float64Operators(kept, time.monotonic() + limit_s), _Float64Functions(kept):
            result = module(*given)
        return kept.convert(result)  # it may return a buffer


@contextmanager
def _tensors_restored(module: nn.Module) -> Iterator[None]:
    """Restore the buffers and plain tensors of a module on exit: an assignment in `forward` makes them float64."""
    places = [place for part in module.modules() for place in (vars(part), part._buffers)]
    before = [{name: value for name, value in place.items() if isinstance(value, torch.Tensor)} for place in places]
    try:
        yield
    finally:
        for place, tensors in zip(places, before, strict=True):
            place.update(tensors)


class _Float64Tensors:
    """Converts float32 tensors to float64, each that is no parameter once: changes in place stay until the end."""

    def __init__(self) -> None:
        self._kept: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}  # by id; both live, so that no id comes again

    def call(self, func: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """Call a function with its arguments in float64 and return its results in float64."""
        return _map(_to_float64, func(*self.convert(args), **self.convert(kwargs)))

    def convert(self, tree: Any) -> Any:
        """Convert the tensors in nested containers."""
        return _map(self._convert, tree)

    def _convert(self, value: Any) -> Any:
        if not _is_float32(value) or isinstance(value, nn.Parameter):
            return _to_float64(value)
        if id(value) not in self._kept:
            self._kept[id(value)] = (value, value.double())
        return self._kept[id(value)][1]


class _Float64Functions(TorchFunctionMode):
    """Replaces float32 by float64 in the arguments and results of each function that Python calls."""

    def __init__(self, kept: _Float64Tensors) -> None:
        super().__init__()
        self._kept = kept

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        return self._kept.call(func, args, kwargs or {})


class _Float64Operators(TorchDispatchMode):  # type: ignore[no-untyped-call]  # its __init_subclass__
    """Replaces float32 by float64 in the arguments and results of each operator that PyTorch executes."""

    def __init__(self, kept: _Float64Tensors, deadline_s: float) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._kept, self._deadline_s = kept, deadline_s

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        if time.monotonic() > self._deadline_s:
            raise TimeoutError
        return self._kept.call(func, args, kwargs or {})


def _map(function: Callable[[Any], Any], tree: Any) -> Any:
    """Map the leaves of nested containers. A torch.Size stays one: as a tuple it would have no `numel`."""
    return tree_map(function, tree, is_leaf=lambda value: isinstance(value, torch.Size))


def _is_float32(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and value.dtype == torch.float32


def _to_float64(value: Any) -> Any:
    if _is_float32(value):
        return value.double()
    return torch.float64 if value is torch.float32 else value
