"""Instruction sets of this processor: int8, bf16 and vector width; and the refusal of int8 graphs that need VNNI.

An x86 processor without VNNI multiplies uint8 by int8 with `vpmaddubsw`, which sums the products in pairs in 16-bit
integers that saturate: 255 * 127 * 2 does not fit. VNNI and AMX sum in 32 bits. So do Arm's dot product instructions.
Without them ONNX Runtime sums two signed products in 16 bits, and 128 * 127 * 2 fits: no weight is -128.
"""

from __future__ import annotations

import platform
from collections.abc import Collection
from pathlib import Path

from edgevit.errors import PrecisionError

VNNI = ("amx_int8", "avx512_vnni", "avx_vnni")
# The first one that a processor has decides how a runtime multiplies 8-bit integers.
_INT8_INSTRUCTIONS = (*VNNI, "avx512f", "avx2", "avx", "sse4_2", "i8mm", "asimddp", "asimd", "neon")
_FP32_LANES = {"avx512f": 16, "avx2": 8}  # the widest first
_X86 = frozenset({"x86_64", "amd64", "i386", "i486", "i586", "i686", "x86"})


def cpu_flags(root: Path = Path("/")) -> frozenset[str]:
    """Return the instruction set flags of the first core in /proc/cpuinfo; empty if there is no such file."""
    try:
        text = (root / "proc/cpuinfo").read_text(errors="replace")
    except OSError:
        return frozenset()
    for line in text.splitlines():
        name, _, value = line.partition(":")
        if name.strip() in ("flags", "Features"):
            return frozenset(value.split())
    return frozenset()


def int8_instructions(flags: Collection[str]) -> str:
    """Return the instructions that int8 products run on, such as "avx2" or "avx512_vnni"; "unknown" without flags."""
    return next((name for name in _INT8_INSTRUCTIONS if name in flags), "unknown")


def has_amx_bf16() -> bool:
    """Whether bf16 products run on AMX here."""
    return "amx_bf16" in cpu_flags()


def has_bf16() -> bool:
    """Whether an x86 processor multiplies bf16 numbers, with AMX or with AVX-512."""
    return not cpu_flags().isdisjoint({"amx_bf16", "avx512_bf16"})


def fp32_lanes() -> int:
    """Return how many fp32 numbers a vector of this processor holds: 16 with AVX-512, 8 with AVX2; 0 if unknown."""
    flags = cpu_flags()
    return next((lanes for name, lanes in _FP32_LANES.items() if name in flags), 0)


def has_avx512() -> bool:
    """Whether this processor has AVX-512."""
    return "avx512f" in cpu_flags()


def has_avx2_alone() -> bool:
    """Whether int8 products run on AVX2 here, without VNNI."""
    return int8_instructions(cpu_flags()) == "avx2"


def has_avx_vnni_alone() -> bool:
    """Whether int8 products run on AVX-VNNI here, without AVX-512 and AMX: Intel's N100 and Core processors."""
    return int8_instructions(cpu_flags()) == "avx_vnni"


def saturates_int8(flags: Collection[str] | None = None, *, architecture: str | None = None) -> bool:
    """Whether sums of two uint8 x int8 products can saturate here: on x86 without VNNI, or if its flags are unknown."""
    found = cpu_flags() if flags is None else flags
    return (architecture or platform.machine()).lower() in _X86 and not any(name in found for name in VNNI)


def require_vnni(name: str) -> None:
    """Raise PrecisionError if this processor would wrongly compute `name`, an int8 graph that needs VNNI."""
    flags = cpu_flags()
    if saturates_int8(flags):
        raise PrecisionError(
            f"{name} has full-range int8 weights, whose products overflow on an x86 processor without VNNI (this "
            f"one has {int8_instructions(flags)}); export it again without --int8-range full"
        )
