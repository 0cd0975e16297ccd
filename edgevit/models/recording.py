"""Record the calls of a module's submodules, and repeat them with other tensors."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import nn
from torch.utils._pytree import tree_leaves, tree_map

from edgevit.models.reference import register_dataclasses

Tensors: TypeAlias = tuple[torch.Tensor, ...]

_IDENTITY = "_edgevit_identity"  # attribute of a tensor that identifies it while it lives


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Call:
    """One call of a submodule: copies of its tensors, in the order of the flattened arguments and results.

    `read` and `written` identify these tensors: the same object stands for a tensor that one call writes and another
    reads.
    """

    path: str
    index: int  # among the calls of this module
    kind: str  # the module's class
    has_weights: bool  # parameters or buffers of its own, besides those of its submodules
    start: int  # among the starts and ends of all calls
    end: int
    arguments: Any  # (args, kwargs), with copies of all tensors
    inputs: Tensors
    outputs: Tensors
    read: tuple[object, ...]
    written: tuple[object, ...]

    def is_in(self, other: Call) -> bool:
        """Whether this call happened during another one."""
        return other.start < self.start and self.end < other.end


class Recording:
    """The calls of one run of a module, in the order in which they end; the last is that of the module itself."""

    def __init__(self, module: nn.Module, inputs: Sequence[torch.Tensor]) -> None:
        """Run `module(*inputs)`. All tensors are copied: this takes the memory of all activations together."""
        self._module = module
        self.calls = _record(module, inputs)

    @property
    def whole(self) -> Call:
        """The call of the module itself."""
        return self.calls[-1]

    def repeat(
        self,
        call: Call,
        *,
        inputs: Mapping[int, torch.Tensor] | None = None,
        results: Mapping[Call, Tensors] | None = None,
    ) -> Tensors:
        """Repeat a call and return its tensors.

        `inputs` replaces tensors of its arguments, by their position; `results` replaces what calls inside it return.
        """
        given, replaced = inputs or {}, results or {}
        new = [given.get(position, tensor).to(tensor.dtype).clone() for position, tensor in enumerate(call.inputs)]
        args, kwargs = _with_tensors(call.arguments, new)
        inside = [other for other in replaced if other.is_in(call)]
        handles = [
            self._module.get_submodule(path).register_forward_hook(
                _replace_results({other.index: replaced[other] for other in inside if other.path == path}, first)
            )
            for path, first in self._first_indices(call, {other.path for other in inside}).items()
        ]
        with torch.no_grad(), _removed(handles):
            return _tensors(self._module.get_submodule(call.path)(*args, **kwargs))

    def _first_indices(self, call: Call, paths: set[str]) -> dict[str, int]:
        """Return the index of the first call of each module inside `call`."""
        return {
            path: min(other.index for other in self.calls if other.path == path and other.is_in(call))
            for path in sorted(paths)
        }


def _record(module: nn.Module, inputs: Sequence[torch.Tensor]) -> tuple[Call, ...]:
    calls: list[Call] = []
    begun: list[tuple[int, Any, Tensors, tuple[object, ...]]] = []
    counts: Counter[str] = Counter()
    clock = itertools.count()

    def identify(tensor: torch.Tensor) -> object:
        if not hasattr(tensor, _IDENTITY):
            setattr(tensor, _IDENTITY, object())
        return getattr(tensor, _IDENTITY)

    def before(_: nn.Module, args: Any, kwargs: Any) -> None:
        tensors = _tensors((args, kwargs))
        copies = _with_tensors((args, kwargs), [tensor.clone() for tensor in tensors])
        begun.append((next(clock), copies, _tensors(copies), tuple(map(identify, tensors))))

    def after(path: str) -> Callable[[nn.Module, Any, Any, Any], None]:
        def hook(submodule: nn.Module, _args: Any, _kwargs: Any, output: Any) -> None:
            start, arguments, read, read_tensors = begun.pop()
            register_dataclasses(output)
            written = _tensors(output)
            calls.append(
                Call(
                    path=path,
                    index=counts[path],
                    kind=type(submodule).__name__,
                    has_weights=_has_weights(submodule),
                    start=start,
                    end=next(clock),
                    arguments=arguments,
                    inputs=read,
                    outputs=tuple(tensor.clone() for tensor in written),
                    read=read_tensors,
                    written=tuple(map(identify, written)),
                )
            )
            counts[path] += 1

        return hook

    handles = []
    for path, each in module.named_modules():
        handles.append(each.register_forward_pre_hook(before, with_kwargs=True))
        handles.append(each.register_forward_hook(after(path), with_kwargs=True))
    with torch.no_grad(), _removed(handles):
        module(*(tensor.clone() for tensor in inputs))
    return tuple(calls)


def _replace_results(by_index: Mapping[int, Tensors], first: int) -> Callable[[nn.Module, Any, Any], Any]:
    """Return a hook that replaces the tensors of single calls; `first` is the index of the first call that it sees."""
    indices = itertools.count(first)

    def hook(_: nn.Module, _args: Any, output: Any) -> Any:
        tensors = by_index.get(next(indices))
        return None if tensors is None else _with_tensors(output, [tensor.clone() for tensor in tensors])

    return hook


def _has_weights(module: nn.Module) -> bool:
    return any(True for _ in (*module.parameters(recurse=False), *module.buffers(recurse=False)))


def _tensors(value: Any) -> Tensors:
    return tuple(leaf for leaf in tree_leaves(value) if isinstance(leaf, torch.Tensor))


def _with_tensors(value: Any, tensors: Sequence[torch.Tensor]) -> Any:
    """Return nested containers with other tensors, in the order in which `_tensors` lists them."""
    remaining = iter(tensors)
    return tree_map(lambda leaf: next(remaining) if isinstance(leaf, torch.Tensor) else leaf, value)


@contextmanager
def _removed(handles: Sequence[Any]) -> Iterator[None]:
    """Remove hooks at the end of a block."""
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
