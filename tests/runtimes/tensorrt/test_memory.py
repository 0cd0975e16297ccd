"""Workspace size from free memory."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgevit.errors import BuildError
from edgevit.runtimes.tensorrt.memory import (
    COPIES_OF_MODEL,
    MB,
    FreeMemory,
    host_free_bytes,
    nvmap_bytes,
    workspace_bytes,
)

GB = 1024 * MB


def memory(device: int, host: int = 64 * GB, *, shared: bool = False) -> FreeMemory:
    return FreeMemory(device_free_bytes=device, host_free_bytes=host, shared=shared)


@pytest.mark.parametrize(
    ("requested_mb", "free", "model_mb", "workspace_mb"),
    [
        (None, memory(80 * GB), 100, 4096),  # bounded
        (None, memory(2 * GB), 100, (2048 - 600 - 200) // 2),  # half of the rest
        (None, memory(3 * GB, 3 * GB, shared=True), 100, (3072 - 600 - 100 * COPIES_OF_MODEL) // 2),
        # Files were just copied to this Jetson: they fill the free memory as cache, which Linux frees on demand.
        (None, memory(300 * MB, 3 * GB, shared=True), 100, (3072 - 600 - 100 * COPIES_OF_MODEL) // 2),
        (512, memory(80 * GB), 100, 512),  # as requested
        (None, memory(870 * MB), 100, 64),  # the minimum
    ],
)
def test_the_workspace_is_bounded_by_free_memory(
    requested_mb: int | None, free: FreeMemory, model_mb: int, workspace_mb: int
) -> None:
    assert workspace_bytes(requested_mb, free, model_mb * MB) == workspace_mb * MB


@pytest.mark.parametrize(
    ("requested_mb", "free", "words"),
    [
        (None, memory(700 * MB), "700 MB of GPU memory is free"),
        (8192, memory(4 * GB), "a workspace of 8192 MB"),
        (None, memory(8 * GB, 900 * MB, shared=True), "900 MB of GPU memory is free"),
        (None, memory(8 * GB, 300 * MB), "needs 400 MB of host memory"),
    ],
)
def test_a_build_that_does_not_fit_into_memory_is_an_error(
    requested_mb: int | None, free: FreeMemory, words: str
) -> None:
    with pytest.raises(BuildError, match=words):
        workspace_bytes(requested_mb, free, 100 * MB)


def test_free_host_memory_includes_caches_and_swap_but_no_compressed_memory() -> None:
    meminfo = "MemTotal:  16000000 kB\nMemFree:  100 kB\nMemAvailable:  4000 kB\nSwapFree:  1000 kB\n"
    swaps = "Filename\tType\tSize\tUsed\tPriority\n/dev/zram0 partition\t500\t0\t5\n/swapfile file\t700\t200\t-2\n"
    assert host_free_bytes(meminfo, swaps) == 4500 * 1024
    if Path("/proc/meminfo").exists():
        assert host_free_bytes(Path("/proc/meminfo").read_text("ascii"), "") > 100 * MB


def test_a_jetson_reports_the_memory_of_its_gpu() -> None:
    assert nvmap_bytes("MemFree:  100 kB\nNvMapMemUsed:   2048 kB\n") == 2 * MB
    assert nvmap_bytes("MemFree:  100 kB\n") is None
