"""Find out why a module gives two outputs for one input, and which of its submodules does.

Parity compares an engine with a function. Dropout or noise left on in eval mode, and a counter or a moving average that
`forward` updates, make a module something else.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils._pytree import tree_leaves

_SEED = 0
_TRIES = 8  # until two runs differ: a single value behind dropout is zero in every second run


@dataclass(frozen=True, slots=True)
class _Call:
    """A call of a submodule: its path, and hashes of its inputs and outputs."""

    path: str
    inputs: str
    outputs: str


def explain_difference(module: nn.Module, inputs: Sequence[torch.Tensor]) -> str:
    """Return why `module(*inputs)` is not the same each time, in one sentence that begins with the submodule.

    It runs the module six times or more. Raises any error of the module.
    """
    path = next((path for _ in range(_TRIES) if (path := _first_difference(module, inputs)) is not None), "")
    where = f"{path} ({type(module.get_submodule(path)).__name__})" if path else f"{type(module).__name__}.forward()"
    if _is_random(module, inputs):
        return f"{where} draws random numbers in eval mode: use self.training to switch dropout or noise off"
    changed = _changed_buffers(module, inputs)
    state = f", as in {changed[0]}," if changed else ""
    return f"{where} keeps state{state} from one call to the next: leave it as it is in eval mode, or make it an input"


def _first_difference(module: nn.Module, inputs: Sequence[torch.Tensor]) -> str | None:
    """Return the first submodule with two outputs for one input in two runs; None if the runs agree by chance."""
    first, second = _record_calls(module, inputs), _record_calls(module, inputs)
    differing = (
        call.path for call, again in zip(first, second, strict=False)
        if call.path == again.path and call.inputs == again.inputs and call.outputs != again.outputs
    )  # fmt: skip
    return next(differing, None)  # calls are recorded as they end, inner ones before outer ones


def _record_calls(module: nn.Module, inputs: Sequence[torch.Tensor]) -> list[_Call]:
    """Run the module once and return the calls of its submodules, and its own, in the order in which they end."""
    calls: list[_Call] = []
    begun: list[str] = []
    handles = []
    for path, each in module.named_modules():

        def before(_: nn.Module, args: Any, kwargs: Any) -> None:
            begun.append(_hash((args, kwargs)))

        def after(_: nn.Module, _args: Any, _kwargs: Any, output: Any, path: str = path) -> None:
            calls.append(_Call(path, begun.pop(), _hash(output)))

        handles.append(each.register_forward_pre_hook(before, with_kwargs=True))
        handles.append(each.register_forward_hook(after, with_kwargs=True))
    try:
        _run(module, inputs)
    finally:
        for handle in handles:
            handle.remove()
    return calls


def _is_random(module: nn.Module, inputs: Sequence[torch.Tensor]) -> bool:
    """Return whether two runs with the same seed agree."""
    hashes = []
    for _ in range(2):
        with _seeded():
            hashes.append(_hash(_run(module, inputs)))
    return hashes[0] == hashes[1]


@contextmanager
def _seeded() -> Iterator[None]:
    """Seed the generators of PyTorch, NumPy and Python, and restore their states on exit."""
    states = random.getstate(), np.random.get_state()  # the one that users' modules draw from
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(_SEED)
        np.random.seed(_SEED)
        random.seed(_SEED)
        try:
            yield
        finally:
            random.setstate(states[0])
            np.random.set_state(states[1])


def _changed_buffers(module: nn.Module, inputs: Sequence[torch.Tensor]) -> list[str]:
    """Run the module once and return the names of the parameters and buffers that it changes."""
    before = _state(module)
    _run(module, inputs)
    return [name for name, content in _state(module).items() if before.get(name) != content]


def _state(module: nn.Module) -> Mapping[str, str]:
    return {name: _hash(tensor) for name, tensor in (*module.named_parameters(), *module.named_buffers())}


def _run(module: nn.Module, inputs: Sequence[torch.Tensor]) -> Any:
    with torch.no_grad():
        return module(*(tensor.clone() for tensor in inputs))


def _hash(values: Any) -> str:
    """Hash all tensors in nested containers."""
    found = hashlib.sha256()
    for leaf in tree_leaves(values):
        if isinstance(leaf, torch.Tensor):
            found.update(leaf.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return found.hexdigest()
