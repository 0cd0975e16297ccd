"""Denormal numbers (below 1.2e-38 in float32) on the calling thread: computed exactly, or as zero.

x86 has two bits for that in each thread's register MXCSR: FTZ writes zero for a denormal result, DAZ reads zero for a
denormal operand (Intel 64 and IA-32 Architectures Software Developer's Manual, volume 1, sections 10.2.3.3 and
10.2.3.4). ONNX Runtime sets them in the threads of a session's pool, but on the thread that runs a session only once a
process, when it opens its first session: all later ones inherit that. OpenVINO, PyTorch and NumPy compute on the same
thread. Therefore an engine sets the bits of its own mode for the time of a run, and restores those that it found.

glibc reads and writes the register as part of the floating-point environment, `fenv_t`. On other systems and processors
nothing is set.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
import platform
import sys
from collections.abc import Iterator

KEEP, ZERO = 0, 0x8040  # neither FTZ nor DAZ, and both
_SMALLEST, _DENORMAL = sys.float_info.min, sys.float_info.min / 4  # the smallest normal number, and one below it
_HALF, _FOUR = 0.5, 4.0
_MXCSR = 7  # index in `fenv_t`, whose first 28 bytes are of the x87 unit
_Environment = ctypes.c_uint32 * 8


def set_denormals(mode: int) -> int:
    """Set the mode of the calling thread and return the one before; nothing is set where that is not possible.

    It takes 0.1 microseconds if denormal numbers are kept and are to be kept, else one or two.
    """
    if mode == KEEP and _SMALLEST * _HALF and _DENORMAL * _FOUR:  # the thread keeps them: neither bit is set
        return KEEP
    if not can_set_denormals():
        return mode
    return _exchange(mode)


@contextlib.contextmanager
def denormals(mode: int) -> Iterator[None]:
    """Set the mode of the calling thread for the block, whatever is set within it."""
    before = set_denormals(mode)
    try:
        yield
    finally:
        set_denormals(before)


@functools.cache
def can_set_denormals() -> bool:
    """Return whether the mode can be set here: Linux with glibc on x86-64, after a try."""
    if sys.platform != "linux" or platform.machine() != "x86_64" or sys.maxsize < 1 << 32 or not _has_glibc():
        return False
    try:
        before = _exchange(ZERO)
    except (OSError, AttributeError):  # no libm where it is expected
        return False
    try:
        is_zero = _SMALLEST * _HALF == 0
    finally:
        _exchange(before)
    return is_zero


def _has_glibc() -> bool:
    try:
        return (os.confstr("CS_GNU_LIBC_VERSION") or "").startswith("glibc")
    except (ValueError, OSError):
        return False


def _exchange(mode: int) -> int:
    read, write = _functions()
    environment = _Environment()
    read(environment)
    before = environment[_MXCSR] & ZERO
    if before != mode:
        environment[_MXCSR] ^= before ^ mode
        write(environment)
    return before


@functools.cache
def _functions() -> tuple[ctypes._NamedFuncPointer, ctypes._NamedFuncPointer]:
    """Return glibc's fegetenv and fesetenv. They are called without releasing the GIL, which would take longer."""
    library = ctypes.PyDLL("libm.so.6")
    read, write = library.fegetenv, library.fesetenv
    read.argtypes = write.argtypes = (_Environment,)
    return read, write
