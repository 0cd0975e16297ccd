"""Workspace size from free memory."""

from __future__ import annotations

import re
from dataclasses import dataclass

from edgevit.errors import BuildError

MB = 1 << 20
# CUDA's context and TensorRT's kernels take 500 to 600 MB on an idle GPU.
CONTEXT_BYTES = 600 * MB
# The ONNX file, the parsed weights, the builder's copy and the engine.
COPIES_OF_MODEL = 4
MIN_WORKSPACE_BYTES = 64 * MB
MAX_WORKSPACE_BYTES = 4096 * MB  # a larger workspace never changed the tactics of networks of this size


@dataclass(frozen=True, slots=True, kw_only=True)
class FreeMemory:
    """Free bytes on the GPU and on the host. `shared` if both are the same memory, as on a Jetson."""

    device_free_bytes: int
    host_free_bytes: int
    shared: bool

    @property
    def for_device_bytes(self) -> int:
        """Bytes that the GPU can get.

        Of shared memory, the CUDA driver reports only unused bytes and leaves out the file cache, which Linux frees on
        demand.
        """
        return self.host_free_bytes if self.shared else self.device_free_bytes


def workspace_bytes(requested_mb: int | None, memory: FreeMemory, model_bytes: int) -> int:
    """Return the builder's workspace limit: the requested size, or half of the memory that the build leaves free.

    Raises BuildError if the build does not fit into memory: the system would kill it after minutes, without a message.
    """
    copies = COPIES_OF_MODEL * model_bytes
    if not memory.shared and memory.host_free_bytes < copies:
        raise BuildError(
            f"out of memory: building this model needs {_mb(copies)} of host memory, "
            f"{_mb(memory.host_free_bytes)} is free; stop other processes or add swap"
        )
    needed = CONTEXT_BYTES + (copies if memory.shared else 2 * model_bytes)
    left = memory.for_device_bytes - needed
    workspace = MIN_WORKSPACE_BYTES if requested_mb is None else requested_mb * MB
    if left < workspace:
        raise BuildError(
            f"out of memory: {_mb(memory.for_device_bytes)} of GPU memory is free, and the build needs {_mb(needed)} "
            f"plus a workspace of {_mb(workspace)}; stop other processes (on a Jetson: sudo systemctl isolate "
            "multi-user.target), add swap, or reduce --workspace"
        )
    return workspace if requested_mb is not None else min(max(left // 2, MIN_WORKSPACE_BYTES), MAX_WORKSPACE_BYTES)


def host_free_bytes(meminfo: str, swaps: str) -> int:
    """Return the bytes that Linux can allocate without killing a process.

    `meminfo` and `swaps` are the texts of /proc/meminfo and /proc/swaps. Swap in compressed memory (zram) is left out:
    it takes the memory that it seems to add.
    """
    rows = re.findall(r"^(\S+)\s+\S+\s+(\d+)\s+(\d+)", swaps, re.MULTILINE)
    free_kb = sum(int(size) - int(used) for name, size, used in rows if not name.startswith("/dev/zram"))
    return 1024 * (_meminfo(meminfo).get("MemAvailable", 0) + free_kb)


def nvmap_bytes(meminfo: str) -> int | None:
    """Return the memory that a Jetson's GPU has in use, from the text of /proc/meminfo; None on other machines."""
    used_kb = _meminfo(meminfo).get("NvMapMemUsed")
    return None if used_kb is None else 1024 * used_kb


def _meminfo(text: str) -> dict[str, int]:
    return {name: int(size) for name, size in re.findall(r"^(\w+):\s+(\d+) kB$", text, re.MULTILINE)}


def _mb(size: int) -> str:
    return f"{size / MB:.0f} MB"
