"""Run a command on this processor as on one with fewer vector instructions: times and int8 results of its kernels.

    python -m tests.tools.smaller_cpu avx_vnni edgevit export deit_t --fmt ort,openvino --precision int8
    python -m tests.tools.smaller_cpu avx2 python -m tests.tools.bench --threads 1

Libraries ask the processor for its instructions (CPUID) and choose their kernels by the answer. The command, and all
that it starts, gets the answer of the smaller processor, and finds it in /proc/cpuinfo, under the name of this one
with ", avx2 only" behind it. The kernels are those of the smaller processor; clocks, caches and memory are those of
this one. It needs Linux, a C compiler and a processor with the flag cpuid_fault: Intel, in many virtual machines too.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from edgevit.cpu import cpu_flags
from tests.tools.smaller_cpu.instructions import PROCESSORS, limit_cpuinfo, masks, missing

_SOURCE = Path(__file__).with_name("cpuid.c")
_CPUINFO = Path("/proc/cpuinfo")


def why_not(processor: str) -> str:
    """Return the reason why this machine cannot stand in for `processor`; empty if it can."""
    flags = cpu_flags()
    if "cpuid_fault" not in flags:
        return "/proc/cpuinfo has no cpuid_fault: this processor, or its hypervisor, cannot trap CPUID"
    if lacking := missing(processor, flags):
        return f"this processor has no {', '.join(sorted(lacking))}"
    if _compiler() is None:
        return "no C compiler: install gcc or set CC"
    return ""


def environment(processor: str, folder: Path) -> dict[str, str]:
    """Return variables for a program that is to run as on `processor`. Their files are written into `folder`."""
    library, cpuinfo = folder / "cpuid.so", folder / "cpuinfo"
    subprocess.run([str(_compiler()), "-O2", "-shared", "-fPIC", "-o", library, _SOURCE, "-ldl"], check=True)
    cpuinfo.write_text(limit_cpuinfo(_CPUINFO.read_text(), processor))
    return {
        "LD_PRELOAD": ":".join(filter(None, (str(library), os.environ.get("LD_PRELOAD")))),
        "SMALLER_CPU_MASKS": ",".join(f"{mask:x}" for mask in masks(processor)),
        "SMALLER_CPU_CPUINFO": str(cpuinfo),
    }


def run(processor: str, command: list[str]) -> int:
    """Run a command as on `processor`. Returns its exit status."""
    with tempfile.TemporaryDirectory(prefix="edgevit-") as folder:
        smaller = environment(processor, Path(folder))
        return subprocess.run(command, env={**os.environ, **smaller}, check=False).returncode


def _compiler() -> str | None:
    return shutil.which(os.environ.get("CC", "cc"))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("processor", choices=PROCESSORS)
    parser.add_argument("command", nargs=argparse.REMAINDER)
    arguments = parser.parse_args()
    if not arguments.command:
        parser.error("give the command to run")
    if reason := why_not(arguments.processor):
        raise SystemExit(f"smaller_cpu: {reason}")
    return run(arguments.processor, arguments.command)


if __name__ == "__main__":
    sys.exit(main())
