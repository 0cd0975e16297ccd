"""The vector instructions that CPUID reports, and the processors that a larger one can stand in for.

Bits of CPUID's leaf 7: Intel 64 and IA-32 Architectures Software Developer's Manual, volume 2A, CPUID. Flags are named
as in /proc/cpuinfo.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import Literal, NamedTuple

_ALL_BITS = 0xFFFFFFFF


class _Register(NamedTuple):
    """A register that leaf 7 answers in."""

    subleaf: int
    name: Literal["eax", "ebx", "ecx", "edx"]


# The registers in the order in which cpuid.c reads their masks, with the bits of the instructions above AVX2.
_BITS: dict[_Register, dict[str, int]] = {
    _Register(0, "ebx"): {
        "avx512f": 16,
        "avx512dq": 17,
        "avx512ifma": 21,
        "avx512pf": 26,
        "avx512er": 27,
        "avx512cd": 28,
        "avx512bw": 30,
        "avx512vl": 31,
    },
    _Register(0, "ecx"): {
        "avx512vbmi": 1,
        "avx512_vbmi2": 6,
        "avx512_vnni": 11,
        "avx512_bitalg": 12,
        "avx512_vpopcntdq": 14,
    },
    _Register(0, "edx"): {
        "avx512_4vnniw": 2,
        "avx512_4fmaps": 3,
        "avx512_vp2intersect": 8,
        "amx_bf16": 22,
        "avx512_fp16": 23,
        "amx_tile": 24,
        "amx_int8": 25,
    },
    _Register(1, "eax"): {"avx_vnni": 4, "avx512_bf16": 5, "amx_fp16": 21, "avx_ifma": 23},
    _Register(1, "edx"): {"avx_vnni_int8": 4, "avx_ne_convert": 5, "amx_complex": 8, "avx_vnni_int16": 10, "avx10": 19},
}
_FLAGS = frozenset(flag for bits in _BITS.values() for flag in bits)

_AVX512 = frozenset({"avx512f", "avx512cd", "avx512dq", "avx512bw", "avx512vl"})
# The vector instructions above AVX2 of processors in use.
PROCESSORS: dict[str, frozenset[str]] = {
    "avx2": frozenset(),  # Intel Core to the 10th generation, AMD Zen to Zen 3
    "avx_vnni": frozenset({"avx_vnni"}),  # Intel N100, Core from the 12th generation
    "avx512": _AVX512,  # Intel Xeon of the first generation
    "avx512_vnni": _AVX512 | {"avx512_vnni"},  # Intel Xeon of the second generation, AMD Zen 4
}


def masks(processor: str) -> tuple[int, ...]:
    """Return, for each register of `_BITS`, the bits that the processor may report."""
    kept = PROCESSORS[processor]
    return tuple(
        _ALL_BITS & ~sum(1 << bit for flag, bit in bits.items() if flag not in kept) for bits in _BITS.values()
    )


def missing(processor: str, flags: Collection[str]) -> frozenset[str]:
    """Return the instructions of the processor that one with `flags` does not have."""
    return (PROCESSORS[processor] | {"avx2"}).difference(flags)


def limit_cpuinfo(text: str, processor: str) -> str:
    """Return /proc/cpuinfo as `processor` would show it, under a name that says that it is another one."""
    hidden = _FLAGS - PROCESSORS[processor]

    def flags(line: re.Match[str]) -> str:
        return line[1] + " ".join(flag for flag in line[2].split() if flag not in hidden)

    text = re.sub(r"^(flags\s*: )(.*)$", flags, text, flags=re.MULTILINE)
    return re.sub(r"^(model name\s*: .*)$", rf"\1, {processor} only", text, flags=re.MULTILINE)
