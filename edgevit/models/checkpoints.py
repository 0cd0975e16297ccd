"""Checkpoint files to parameters, safely: nothing in a file can run code, and no key is left over on either side."""

from __future__ import annotations

import argparse
import hashlib
import os
import pickle
import re
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import nn

from edgevit.errors import CheckpointError
from edgevit.files import file_sha256, first_line

# Where training scripts keep the weights, the published ones first: timm evaluates the averaged ("ema") weights.
CONTAINERS = ("state_dict_ema", "state_dict", "model", "module")
WRAPPER = "module."


@dataclass(frozen=True, slots=True)
class Weights:
    """Tensors by key, and the hash of the file (or of the tensors) that they came from."""

    tensors: dict[str, torch.Tensor]
    sha256: str


def included(name: str) -> Path:
    """The path of a checkpoint that edgevit carries."""
    return Path(str(resources.files("edgevit"))) / "data" / name


def read(path: str | os.PathLike[str]) -> Weights:
    """The weights in a `.safetensors` file or in anything that `torch.save` wrote.

    Training checkpoints keep their weights one level down (`CONTAINERS`).
    Raises CheckpointError where the file is missing, broken, not a checkpoint, or holds objects that would run code.
    """
    if not isinstance(path, str | os.PathLike):
        raise CheckpointError(f"weights are a checkpoint file or a state dict, not a {type(path).__name__}")
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"no weights file at {path}")
    try:
        content = load_file(path) if path.suffix.lower() == ".safetensors" else _load_pickle(path)
    except CheckpointError:
        raise
    except Exception as error:  # a damaged pickle is a program gone wrong: it can fail with anything
        raise CheckpointError(f"{path} is damaged or not a checkpoint: {first_line(error)}") from error
    return Weights(_state_dict(content, str(path)), file_sha256(path))


def from_state_dict(content: Mapping[str, Any]) -> Weights:
    """The weights in a state dict that is already in memory. Raises CheckpointError where it holds none."""
    tensors = _state_dict(content, "the state dict")
    digest = hashlib.sha256()
    for key, value in sorted(tensors.items()):
        digest.update(key.encode())
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return Weights(tensors, digest.hexdigest())


def unwrapped(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The tensors without the prefix that PyTorch's parallel wrappers put before every key; as they are where one
    key lacks it."""
    if not all(key.startswith(WRAPPER) for key in tensors):
        return dict(tensors)
    return {key.removeprefix(WRAPPER): value for key, value in tensors.items()}


def load_into(module: nn.Module, tensors: Mapping[str, torch.Tensor], *, source: str) -> None:
    """Loads `tensors` into `module`, strictly. Raises CheckpointError that names keys missing, left over or of
    another shape.

    A wrapper's prefix is taken off where more keys fit without it: a module can have a part named `module` itself.
    """
    own, plain = module.state_dict(), unwrapped(tensors)
    if len(plain.keys() & own.keys()) > len(tensors.keys() & own.keys()):
        tensors = plain
    problems = [
        *_named("missing in the checkpoint", own.keys() - tensors.keys()),
        *_named("left over in the checkpoint", tensors.keys() - own.keys()),
        *_named(
            "of another shape",
            (
                f"{key} {tuple(tensors[key].shape)} instead of {tuple(own[key].shape)}"
                for key in own.keys() & tensors.keys()
                if own[key].shape != tensors[key].shape
            ),
        ),
    ]
    if problems:
        raise CheckpointError(f"{source} does not fit {type(module).__name__}: {'; '.join(problems)}")
    try:
        module.load_state_dict(tensors)
    except RuntimeError as error:
        first = str(error).strip().splitlines()[1:2] or [first_line(error)]  # the line above it names no parameter
        raise CheckpointError(f"{source} cannot be copied into {type(module).__name__}: {first[0].strip()}") from error


def _load_pickle(path: Path) -> Any:
    # Official training checkpoints carry their command line as a Namespace: plain attributes, no code.
    with torch.serialization.safe_globals([argparse.Namespace]), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about the protocol of a pickle, which it then refuses
        try:
            return torch.load(path, map_location="cpu", weights_only=True)
        except (pickle.UnpicklingError, RuntimeError) as error:
            if isinstance(error, pickle.UnpicklingError) or "weights_only" in str(error):
                raise CheckpointError(
                    f"{path} is not a plain checkpoint and was not loaded: it {_refused(str(error))}. Save the state "
                    "dict alone: torch.save(model.state_dict(), …)"
                ) from error
            raise


def _refused(reason: str) -> str:
    """What PyTorch's safe loader met, in our words: its own advise to load the file unsafely."""
    found = re.search(r"GLOBAL (\S+)", reason)
    if found is not None:
        return f"holds {found[1]}, which is no tensor and could run code"
    return "is a TorchScript archive" if "TorchScript" in reason else "holds more than tensors, or is damaged"


def _state_dict(content: Any, source: str) -> dict[str, torch.Tensor]:
    if not isinstance(content, Mapping):
        raise CheckpointError(f"{source} holds a {type(content).__name__}, not a state dict")
    for container in CONTAINERS:
        if isinstance(content.get(container), Mapping):
            content = content[container]
            break
    tensors = {key: value for key, value in content.items() if isinstance(value, torch.Tensor)}
    if not tensors or len(tensors) != len(content):
        others = sorted(str(key) for key in content.keys() - tensors.keys())
        raise CheckpointError(f"{source} holds no state dict; its keys are {', '.join(others[:8]) or 'none'}")
    for key, value in tensors.items():
        _refuse_uncopyable(str(key), value, source)
    return {str(key): value for key, value in tensors.items()}


def _refuse_uncopyable(key: str, tensor: torch.Tensor, source: str) -> None:
    """Raises CheckpointError for a tensor without values, or with values that no parameter takes as they are."""
    kinds = {
        "on the meta device, which keeps no values": tensor.is_meta,
        "quantised": tensor.is_quantized,
        "complex": tensor.is_complex(),
        "sparse or nested": tensor.layout != torch.strided or tensor.is_nested,
    }
    for kind, holds in kinds.items():
        if holds:
            raise CheckpointError(f"{key} in {source} is {kind}; save the plain tensors of the model in fp32")


def _named(what: str, keys: Iterable[str]) -> list[str]:
    names = sorted(keys)
    if not names:
        return []
    shown = ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
    return [f"{len(names)} {what}: {shown}"]
