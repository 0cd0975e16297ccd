"""Names of bundles: one given by the user, or that of the module's class, with a number for a second model of it."""

from __future__ import annotations

import hashlib
import itertools
import logging
import re
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from edgevit.bundles.bundle import bundle_name
from edgevit.bundles.manifest import read_manifest
from edgevit.errors import BundleError, UsageError
from edgevit.models.description import ModelDescription

if TYPE_CHECKING:
    from torch import nn

_Model = TypeVar("_Model", bound=ModelDescription)
_LOG = logging.getLogger(__name__)
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_ADDRESS = re.compile(r" at 0x[0-9a-fA-F]+")


def with_name(model: _Model, name: str) -> _Model:
    """Return the model with a name of the user's. Raises UsageError if it cannot begin the name of a folder."""
    if not _NAME.fullmatch(name):
        raise UsageError(
            f"name={name!r} cannot begin a folder name; use 1 to 100 letters, digits, hyphens, underscores and dots, "
            "beginning with a letter or digit"
        )
    return replace(model, name=name)


def with_distinct_name(model: _Model, out: Path) -> _Model:
    """Return a module in memory under a name that no bundle of another module in `out` has.

    The name of its class is numbered if need be, which a warning says: two models of one class are two models, and
    neither replaces the bundle of the other. The same module, with the same weights, keeps its name. Models that have a
    name of their own are returned as they are.
    """
    if model.origin.source is not None:
        return model
    from edgevit.models.loading import LoadedModel

    assert isinstance(model, LoadedModel)
    fingerprint = fingerprint_of(model.module)
    named = replace(model, origin=replace(model.origin, fingerprint=fingerprint))
    for number in itertools.count(1):
        name = model.name if number == 1 else f"{model.name}_{number}"
        if _is_free(name, fingerprint, out):
            break
    if name != model.name:
        _LOG.warning(
            "edgevit: %s has bundles of another %s; this one is called %s (choose a name with name=)",
            out,
            type(model.module).__name__,
            name,
        )
    return replace(named, name=name)


def fingerprint_of(module: nn.Module) -> str:
    """Return a hash of the module's class, its structure and its weights."""
    import torch

    structure = f"{type(module).__module__}.{type(module).__qualname__}\n{module}"
    found = hashlib.sha256(_ADDRESS.sub("", structure).encode())
    for name, tensor in (*module.named_parameters(), *module.named_buffers()):
        found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        found.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()


def _is_free(name: str, fingerprint: str, out: Path) -> bool:
    """Return whether all bundles in `out` with this name hold the model itself."""
    for folder in out.glob(f"{bundle_name(name, '*', '*')}"):
        try:
            record = read_manifest(folder).model
        except BundleError:  # not a bundle, or damaged: `store` replaces or refuses it
            continue
        if record.name == name and record.fingerprint != fingerprint:
            return False
    return True
