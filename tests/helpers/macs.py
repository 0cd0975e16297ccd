"""Multiply-adds as the papers count them: those of convolutions, linear layers and matrix products."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode, flop_registry


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """The work of a function."""

    macs: int
    activation_bytes: int  # results of the counted operators, written and read once, as in `export.macs`


class _ResultBytes(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Sum the bytes of the results of all operators that have multiply-adds."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.total = 0

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if func.overloadpacket in flop_registry:
            first = result if isinstance(result, Tensor) else result[0]
            self.total += first.numel() * first.element_size()
        return result


def macs(model: Callable[[Tensor], object] | nn.Module, shape: tuple[int, ...]) -> int:
    """Return the multiply-adds of one forward pass over a float32 input of `shape`.

    Only shapes are computed, so that a large model takes no longer than a small one. Norms, activations, softmax and
    sums are not counted, and a padded convolution counts its padding.
    """
    with FakeTensorMode(allow_non_fake_inputs=True):
        return count(lambda: model(torch.empty(shape))).macs


def count(run: Callable[[], object]) -> Work:
    """Return the work of a function that computes with tensors of any kind, such as those of the device "meta"."""
    counter, results = FlopCounterMode(display=False), _ResultBytes()
    with counter, results:
        run()
    return Work(macs=counter.get_total_flops() // 2, activation_bytes=2 * results.total)
