"""Look up runtimes by format."""

from __future__ import annotations

import importlib

from edgevit.formats import get_format
from edgevit.runtimes.base import OnPhase, Runtime


def get_runtime(name: str, on_phase: OnPhase | None = None) -> Runtime:
    """Return the runtime of a format, by name or alias; its package is not imported yet.

    `on_phase` is called during its builds. Raises UsageError with similar names.
    """
    module, _, cls = get_format(name).runtime.partition(":")
    runtime: Runtime = getattr(importlib.import_module(module), cls)(on_phase)
    return runtime
