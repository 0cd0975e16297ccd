"""Read checkpoint files safely (no code runs, EMA weights first) and load them strictly."""

from __future__ import annotations

import argparse
import hashlib
import os
import pickle
import re
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import nn

from edgevit.errors import CheckpointError
from edgevit.files import file_sha256, first_line

# Keys under which training scripts keep state dicts. Averaged (EMA) weights come first: they are the evaluated ones.
CONTAINERS = ("state_dict_ema", "model_ema", "ema", "state_dict", "model_state_dict", "model", "module")
# Prefixes that wrappers put before every key: DataParallel, torch.compile, PyTorch Lightning.
PREFIXES = ("module.", "_orig_mod.", "model.")
# Of training steps and of averaged models. They have no effect on outputs in eval mode.
COUNTERS = ("num_batches_tracked", "n_averaged")
_EXTRA_STATE = "_extra_state"  # the last part of the key of what a module's get_extra_state() returned


@dataclass(frozen=True, slots=True)
class Weights:
    """Tensors by key, the SHA-256 of the file (or of the tensors), and the container in the checkpoint they were in.

    `extra` are the extra states of modules, by key, which may be anything.
    """

    tensors: dict[str, torch.Tensor]
    sha256: str
    key: str | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)


def included(name: str) -> Path:
    """Return the path of a checkpoint that comes with edgevit."""
    return Path(str(resources.files("edgevit"))) / "data" / name


def read(path: str | os.PathLike[str]) -> Weights:
    """Read the weights in a `.safetensors` file or a file written by `torch.save`.

    If the checkpoint has several state dicts, the first key of `CONTAINERS` is taken (EMA weights first);
    `FILE:KEY` chooses another.
    Raises CheckpointError if the file is missing, damaged, not a checkpoint, or holds objects that would run code.
    """
    if not isinstance(path, str | os.PathLike):
        raise CheckpointError(f"weights must be a checkpoint file or a state dict, not a {type(path).__name__}")
    file, key = _split_key(Path(path))
    if not file.is_file():
        raise CheckpointError(f"no weights file at {file}")
    try:
        _require_suffix(file)
        content = load_file(file) if file.suffix.lower() == ".safetensors" else _load_pickle(file)
    except CheckpointError:
        raise
    except Exception as error:  # unpickling a damaged file can raise anything
        raise CheckpointError(f"{file} is damaged or not a checkpoint: {first_line(error)}") from error
    tensors, extra, key = _state_dict(content, str(file), key)
    return Weights(tensors, file_sha256(file), key, extra)


def _require_suffix(file: Path) -> None:
    """Raise CheckpointError if a file has the suffix of another format than its own."""
    with file.open("rb") as content:
        start = content.read(9)
    has_header = start[6:] == b"\0\0{"  # safetensors: the length of the header in 8 bytes, then JSON
    if file.suffix.lower() != ".safetensors" and has_header:
        raise CheckpointError(f"{file} is a safetensors file: rename it to .safetensors")
    if file.suffix.lower() == ".safetensors" and start.startswith(b"PK\3\4") and not has_header:
        raise CheckpointError(f"{file} was written by torch.save: rename it to .pt")


def _split_key(path: Path) -> tuple[Path, str | None]:
    """Split `FILE:KEY`; a file whose own name has a colon is taken as it is."""
    name, colon, key = path.name.rpartition(":")
    return (path.with_name(name), key) if colon and name and key and not path.exists() else (path, None)


def from_state_dict(content: Mapping[str, Any]) -> Weights:
    """Return the weights in a state dict in memory. Raises CheckpointError if it holds none."""
    tensors, extra, key = _state_dict(content, "the state dict", None)
    digest = hashlib.sha256()
    for name, value in sorted(tensors.items()):
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return Weights(tensors, digest.hexdigest(), key, extra)


def without_prefix(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return the tensors without the prefixes that wrappers put before every key (`PREFIXES`)."""
    return _unwrapped(tensors)[-1]


def _unwrapped(tensors: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the tensors as they are, without their first prefix, without their second, and so on."""
    found = [dict(tensors)]
    while True:
        keys = found[-1].keys() - set(COUNTERS)  # AveragedModel has its counter beside `module`
        prefix = next((p for p in PREFIXES if keys and all(key.startswith(p) for key in keys)), None)
        if prefix is None:
            return found
        found.append({key.removeprefix(prefix): value for key, value in found[-1].items() if key in keys})


def load_into(module: nn.Module, tensors: Mapping[str, Any], *, source: str) -> None:
    """Load `tensors` into `module` strictly, with the values of extra states (`_extra_state`) among them.

    Raises CheckpointError that names keys missing, unexpected or of another shape; the module stays as it was then.
    As in `load_state_dict`, the module itself may convert older names. Counters (`COUNTERS`) may be missing or
    unexpected, and a parameter may be missing that shares its memory with a loaded one. Prefixes of wrappers are
    removed as far as more keys match without them: the module may have a submodule `module`.
    """
    own = module.state_dict()
    tensors = max(_unwrapped(tensors), key=lambda unwrapped: len(unwrapped.keys() & own.keys()))
    reshaped = _reshaped(own, tensors)
    codes = _integers_for_floats(module, tensors)
    fits = own.keys() == tensors.keys() and not reshaped and not codes
    before = {} if fits else {key: value.clone() for key, value in own.items() if isinstance(value, torch.Tensor)}
    try:
        missing, unexpected = _copy(module, {key: value for key, value in tensors.items() if key not in reshaped})
        problems = [
            *_named("missing in the checkpoint", missing - reshaped.keys() - _tied(own, tensors.keys())),
            *_named("unexpected in the checkpoint", unexpected),
            *_named("of another shape", reshaped.values()),
            *_named("of integers for a parameter of floats", codes),
        ]
        if problems:
            raise CheckpointError(f"{source} does not fit {type(module).__name__}: {'; '.join(problems)}")
    except RuntimeError as error:
        _restore(own, before)
        first = str(error).strip().splitlines()[1:2] or [first_line(error)]  # the first line names no parameter
        raise CheckpointError(f"{source} cannot be copied into {type(module).__name__}: {first[0].strip()}") from error
    except CheckpointError:
        _restore(own, before)
        raise


def _copy(module: nn.Module, tensors: Mapping[str, Any]) -> tuple[set[str], set[str]]:
    """Copy tensors into a module; return the keys missing and unexpected, without counters. Raises RuntimeError."""
    report = module.load_state_dict(tensors, strict=False)
    missing, unexpected = (
        {key for key in keys if key.rpartition(".")[2] not in COUNTERS}
        for keys in (report.missing_keys, report.unexpected_keys)
    )
    return missing, unexpected


def _restore(own: Mapping[str, Any], before: Mapping[str, torch.Tensor]) -> None:
    for key, value in before.items():
        own[key].copy_(value)


def _reshaped(own: Mapping[str, Any], tensors: Mapping[str, Any]) -> dict[str, str]:
    """Return the keys whose shape differs from the module's, each with both shapes in words."""
    shapes = [
        {key: tuple(value.shape) for key, value in state.items() if isinstance(value, torch.Tensor)}
        for state in (tensors, own)
    ]
    given, wanted = shapes
    differing = (key for key in given if key in wanted and given[key] != wanted[key])
    return {key: f"{key} {given[key]} instead of {wanted[key]}" for key in differing}


def _integers_for_floats(module: nn.Module, tensors: Mapping[str, Any]) -> list[str]:
    """Return the parameters of floats for which the checkpoint has integers or bool."""
    return [
        key
        for key, parameter in module.named_parameters(remove_duplicate=False)
        if parameter.is_floating_point() and key in tensors and not tensors[key].is_floating_point()
    ]


def _tied(own: Mapping[str, Any], loaded: Iterable[str]) -> set[str]:
    """Return the keys of the module whose tensor is also that of a loaded key, as safetensors stores tied weights."""
    places = {key: _place(value) for key, value in own.items() if isinstance(value, torch.Tensor) and value.numel()}
    taken = {places[key] for key in loaded if key in places}
    return {key for key, place in places.items() if place in taken}


def _place(tensor: torch.Tensor) -> tuple[object, ...]:
    return (tensor.device, tensor.data_ptr(), tensor.shape, tensor.stride())


def _load_pickle(path: Path) -> Any:
    # Official training checkpoints hold their command line as a Namespace: plain attributes, no code.
    with torch.serialization.safe_globals([argparse.Namespace]), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about the pickle protocol, before torch refuses the file
        try:
            return torch.load(path, map_location="cpu", weights_only=True)
        except (pickle.UnpicklingError, RuntimeError) as error:
            if isinstance(error, pickle.UnpicklingError) or "weights_only" in str(error):
                raise CheckpointError(
                    f"{path} is not a plain checkpoint and was not loaded: it {_refusal(str(error))}. Save the state "
                    "dict alone: torch.save(model.state_dict(), FILE)"
                ) from error
            raise


def _refusal(reason: str) -> str:
    """Say why torch's safe loader refused the file; its own message recommends unsafe loading."""
    found = re.search(r"GLOBAL (\S+)", reason)
    if found is not None:
        return f"holds {found[1]}, which is no tensor and could run code"
    return "is a TorchScript archive" if "TorchScript" in reason else "holds more than tensors, or is damaged"


def _state_dict(
    content: Any, source: str, key: str | None
) -> tuple[dict[str, torch.Tensor], dict[str, Any], str | None]:
    """Return the state dict in a checkpoint, its extra states and its key. Raises CheckpointError if there is none."""
    if not isinstance(content, Mapping):
        raise CheckpointError(f"{source} holds a {type(content).__name__}, not a state dict")
    held = [str(name) for name, value in content.items() if isinstance(value, Mapping)]
    if key is not None and key not in held:
        raise CheckpointError(f"{source} has no state dict {key!r}; it has {', '.join(held) or 'none'}")
    if key is None:
        key = next((name for name in CONTAINERS if name in held), None)
    if key is not None:
        if not content[key]:
            full = ", ".join(name for name in held if content.get(name)) or "none"
            raise CheckpointError(
                f"the state dict {key!r} in {source} is empty; it has {full}. Name one: --weights FILE:KEY"
            )
        content = content[key]
    extra = {str(name): value for name, value in content.items() if str(name).rpartition(".")[2] == _EXTRA_STATE}
    content = {name: value for name, value in content.items() if str(name) not in extra}
    tensors = {name: value for name, value in content.items() if isinstance(value, torch.Tensor)}
    if not tensors or len(tensors) != len(content):
        others = sorted(str(name) for name in content.keys() - tensors.keys())
        raise CheckpointError(
            f"{source} holds no state dict at the top level or under {', '.join(CONTAINERS)}; "
            f"its keys are {', '.join(others[:8]) or 'none'}. Name one that does: --weights FILE:KEY"
        )
    for name, value in tensors.items():
        _require_plain(str(name), value, source)
    return {str(name): value for name, value in tensors.items()}, extra, key


def _require_plain(key: str, tensor: torch.Tensor, source: str) -> None:
    """Raise CheckpointError for a tensor without values, or with values that cannot be copied into a parameter."""
    kinds = {
        "on the meta device, without values": tensor.is_meta,
        "quantized": tensor.is_quantized,
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
