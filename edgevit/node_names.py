"""Names of graph nodes: `<path of the PyTorch module>/<operator>`."""

from __future__ import annotations

from collections.abc import Iterable


def module_of_name(name: str) -> str:
    """Return the dotted path of the PyTorch module in a node's name; "" if it has none."""
    return name.rpartition("/")[0]


def is_in_module(path: str, module: str) -> bool:
    """Whether `path` is the module itself or one of its submodules; the whole model is ""."""
    return not module or path == module or path.startswith(f"{module}.")


def is_in_modules(name: str, modules: Iterable[str]) -> bool:
    """Whether a node is part of one of the PyTorch modules, or of their submodules, by its name."""
    path = module_of_name(name)
    return any(is_in_module(path, module) for module in modules)
