"""Close engines between their parity check and the stages that compare them, so that a large model fits in memory.

A loaded engine holds a copy of its weights, and while the next one is built, there are the module's and those of the
conversion as well. Latency and accuracy are compared side by side, which needs all engines at once.
"""

from __future__ import annotations

from edgevit.runtimes.base import BuildOptions
from edgevit.runtimes.build import BuildResult, reopen_built

LARGE_BYTES = 128_000_000  # size of an engine's files; below it, loading again costs more than the memory is worth


def close_if_unneeded(built: BuildResult, *, runs_later: bool) -> BuildResult:
    """Close the engine if it is large, or if no later stage runs it."""
    if built.engine is not None and (is_large(built) or not runs_later):
        built.engine.close()
    return built


def resume(built: BuildResult, options: BuildOptions) -> BuildResult:
    """Load an engine again that `close_if_unneeded` closed for its size."""
    return reopen_built(built, options) if is_large(built) else built


def is_large(built: BuildResult) -> bool:
    """Return whether `close_if_unneeded` closes the engine even if a later stage runs it."""
    return built.artifact is not None and built.artifact.size_bytes > LARGE_BYTES
