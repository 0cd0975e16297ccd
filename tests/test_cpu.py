"""The integer instructions of processors, read from their /proc/cpuinfo."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgevit import cpu
from edgevit.errors import PrecisionError

ZEN3 = "fpu sse4_2 avx avx2 fma"
SKYLAKE_X = f"{ZEN3} avx512f avx512bw"
ALDER_LAKE = f"{ZEN3} avx_vnni"
ICE_LAKE = f"{SKYLAKE_X} avx512_vnni"
SAPPHIRE_RAPIDS = f"{ICE_LAKE} avx_vnni amx_tile amx_int8"
CORTEX_A72 = "fp asimd evtstrm aes"
CORTEX_A78 = f"{CORTEX_A72} asimddp"


@pytest.mark.parametrize(
    ("flags", "architecture", "instructions", "saturates"),
    [
        (ZEN3, "x86_64", "avx2", True),
        (SKYLAKE_X, "x86_64", "avx512f", True),
        (ALDER_LAKE, "x86_64", "avx_vnni", False),
        (ICE_LAKE, "AMD64", "avx512_vnni", False),
        (SAPPHIRE_RAPIDS, "x86_64", "amx_int8", False),
        ("fpu sse4_2", "i686", "sse4_2", True),
        (CORTEX_A72, "aarch64", "asimd", False),
        (CORTEX_A78, "aarch64", "asimddp", False),
        ("", "x86_64", "unknown", True),  # no /proc/cpuinfo: the answer that is never wrong
        ("", "arm64", "unknown", False),
    ],
)
def test_vnni_is_needed_on_x86_alone(flags: str, architecture: str, instructions: str, saturates: bool) -> None:
    assert cpu.int8_instructions(flags.split()) == instructions
    assert cpu.saturates_int8(flags.split(), architecture=architecture) == saturates


@pytest.mark.parametrize(
    ("flags", "lanes"), [(ZEN3, 8), (ALDER_LAKE, 8), (ICE_LAKE, 16), ("fpu sse4_2", 0), (CORTEX_A78, 0)]
)
def test_a_vector_holds_8_or_16_numbers(flags: str, lanes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu, "cpu_flags", lambda: frozenset(flags.split()))
    assert cpu.fp32_lanes() == lanes


@pytest.mark.parametrize("name", ["flags", "Features"])
def test_flags_are_those_of_the_first_core(name: str, tmp_path: Path) -> None:
    assert cpu.cpu_flags(tmp_path) == frozenset()
    (tmp_path / "proc").mkdir()
    text = f"processor\t: 0\nmodel name\t: a\n{name}\t\t: {ZEN3}\n\nprocessor\t: 1\n{name}\t\t: {ICE_LAKE}\n"
    (tmp_path / "proc/cpuinfo").write_text(text)
    assert cpu.cpu_flags(tmp_path) == frozenset(ZEN3.split())


def test_a_graph_that_needs_vnni_is_refused_without_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    monkeypatch.setattr(cpu, "cpu_flags", lambda: frozenset(ICE_LAKE.split()))
    cpu.require_vnni("a bundle")
    monkeypatch.setattr(cpu, "cpu_flags", lambda: frozenset(ZEN3.split()))
    with pytest.raises(PrecisionError, match=r"a bundle has full-range int8 weights.*\(this one has avx2\)"):
        cpu.require_vnni("a bundle")
