"""Names of a module's outputs, from the structure that its forward() returns."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from typing import Any, TypeAlias

import torch
from torch.export.graph_signature import OutputKind
from torch.utils._pytree import TreeSpec, tree_flatten, tree_unflatten

_Path: TypeAlias = tuple[object, ...]  # keys and positions that lead to a tensor


def names_of_outputs(program: torch.export.ExportedProgram) -> list[str]:
    """Return one name per output tensor of a captured module, each once.

    A tensor in a dict, a dataclass or a named tuple has its key as name, and inside several of them the keys joined by
    "_". The name of other outputs is "output_<position>", or "output" if there is only one.
    """
    outputs = [spec for spec in program.graph_signature.output_specs if spec.kind is OutputKind.USER_OUTPUT]
    paths = _paths(program.call_spec.out_spec)
    return _names([path for path, spec in zip(paths, outputs, strict=True) if not hasattr(spec.arg, "value")])


def named_outputs(result: Any) -> dict[str, torch.Tensor]:
    """Return the tensors that forward() returned by the names that they have in a captured graph, and nothing else.

    PyTorch has to know the dataclasses among them: `reference.register_dataclasses`.
    """
    leaves, structure = tree_flatten(result)
    paths = zip(_paths(structure), leaves, strict=True)
    tensors = {path: leaf for path, leaf in paths if isinstance(leaf, torch.Tensor)}
    return dict(zip(_names(list(tensors)), tensors.values(), strict=True))


def _names(paths: Sequence[_Path]) -> list[str]:
    """Return one name per path, each once."""
    if len(paths) == 1 and all(isinstance(key, int) for key in paths[0]):
        return ["output"]
    return _unique([_name(path) for path in paths])


def _paths(structure: TreeSpec) -> list[_Path]:
    """Return the path of each leaf; its position if the structure has no path."""
    count = structure.num_leaves
    try:
        indices = tree_unflatten(list(range(count)), structure)
    except Exception:  # the user's class, which may refuse anything but tensors
        return [(index,) for index in range(count)]
    found = dict(_walk(indices, ()))
    return [found.get(index, (index,)) for index in range(count)]


def _walk(value: Any, path: _Path) -> Iterator[tuple[int, _Path]]:
    """Yield the index and the path of each leaf. pytree's own paths lack the keys of Hugging Face's outputs."""
    if isinstance(value, int):
        yield value, path
    for key, child in _children(value):
        yield from _walk(child, (*path, key))


def _children(value: Any) -> Iterable[tuple[object, Any]]:
    if isinstance(value, Mapping):
        return value.items()
    if is_dataclass(value):
        return [(field.name, getattr(value, field.name)) for field in fields(value)]
    if isinstance(value, list | tuple):
        return zip(getattr(value, "_fields", range(len(value))), value, strict=True)
    return ()


def _name(path: _Path) -> str:
    words = ["output"] if not path or isinstance(path[0], int) else []
    return "_".join([*words, *(re.sub(r"[^A-Za-z0-9_.-]", "_", str(key)) or "_" for key in path)])


def _unique(names: Sequence[str]) -> list[str]:
    """Return the names with a number appended to each that is already taken."""
    found: list[str] = []
    for name in names:
        unique, number = name, 1
        while unique in found:
            unique, number = f"{name}_{number}", number + 1
        found.append(unique)
    return found
