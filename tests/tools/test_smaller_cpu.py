"""A processor stands in for one with fewer instructions: libraries and /proc/cpuinfo agree, and int8 overflows."""

import json
import signal
import subprocess
import sys
from pathlib import Path
from subprocess import CompletedProcess

import numpy as np
import onnx
import pytest

from edgevit.cpu import cpu_flags
from tests.tools.smaller_cpu.__main__ import environment, main, why_not
from tests.tools.smaller_cpu.instructions import PROCESSORS, limit_cpuinfo, masks, missing

CPUINFO = "model name\t: A Xeon\nflags\t\t: fma avx2 avx512f avx512_vnni avx_vnni amx_int8\ncpu MHz\t\t: 2100\n"
NUMPY_SAYS = """
import json
from numpy._core._multiarray_umath import __cpu_features__
from edgevit.cpu import int8_instructions, cpu_flags
print(json.dumps([int8_instructions(cpu_flags()), __cpu_features__["AVX2"], __cpu_features__["AVX512F"]]))
"""
MULTIPLY = """
import sys
import numpy as np, onnxruntime
rows = np.full((1, 64), 255, np.uint8)
print(int(onnxruntime.InferenceSession(sys.argv[1]).run(None, {"rows": rows})[0][0, 0]))
"""

LOAD_TWICE = """
import openvino
from edgevit.runtimes.openvino_product import matmul
for _ in range(4):  # the plugin is unloaded with the last product
    print(matmul(openvino, {}, (4, 64, 32), "int8") is not None)
"""

stands_in = pytest.mark.parametrize(
    "processor",
    [pytest.param(name, marks=pytest.mark.skipif(bool(why_not(name)), reason=why_not(name))) for name in PROCESSORS],
)


def as_processor(processor: str, folder: Path, *arguments: str) -> CompletedProcess[str]:
    command = [sys.executable, "-c", *arguments]
    variables = {"PATH": "/usr/bin:/bin", "PYTHONPATH": ":".join(sys.path), **environment(processor, folder)}
    return subprocess.run(command, env=variables, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    ("processor", "hidden"),
    [
        ("avx2", {(0, 16), (1, 11), (2, 25), (3, 4)}),  # avx512f, avx512_vnni, amx_int8, avx_vnni
        ("avx_vnni", {(0, 16), (1, 11), (2, 25)}),
        ("avx512", {(1, 11), (2, 25), (3, 4)}),
        ("avx512_vnni", {(2, 25), (3, 4)}),
    ],
)
def test_the_bits_of_larger_processors_are_hidden(processor: str, hidden: set[tuple[int, int]]) -> None:
    asked = [(0, 16), (1, 11), (2, 25), (3, 4)]
    assert {(register, bit) for register, bit in asked if not masks(processor)[register] >> bit & 1} == hidden
    assert masks(processor)[0] >> 5 & 1  # avx2


def test_cpuinfo_has_the_flags_of_the_smaller_processor_and_says_so() -> None:
    assert limit_cpuinfo(CPUINFO, "avx_vnni") == (
        "model name\t: A Xeon, avx_vnni only\nflags\t\t: fma avx2 avx_vnni\ncpu MHz\t\t: 2100\n"
    )


def test_a_processor_cannot_stand_in_for_one_that_has_more() -> None:
    assert missing("avx_vnni", {"avx2", "avx512f"}) == {"avx_vnni"}
    assert missing("avx2", {"avx2"}) == frozenset()


@stands_in
def test_libraries_and_cpuinfo_see_the_smaller_processor(processor: str, tmp_path: Path) -> None:
    done = as_processor(processor, tmp_path, NUMPY_SAYS)
    int8 = {"avx2": "avx2", "avx_vnni": "avx_vnni", "avx512": "avx512f", "avx512_vnni": "avx512_vnni"}[processor]
    assert json.loads(done.stdout) == [int8, True, processor.startswith("avx512")], done.stderr


@stands_in
def test_int8_products_overflow_without_vnni(processor: str, tmp_path: Path) -> None:
    """32 pairs of 255 * 127, each 64770, which 16 bits cut to 32767."""
    weights = onnx.numpy_helper.from_array(np.full((64, 16), 127, np.int8), "weights")
    model = onnx.parser.parse_model(
        """<ir_version: 8, opset_import: ["" : 17]>
        product (uint8[1, 64] rows) => (int32[1, 16] sums) { sums = MatMulInteger(rows, weights) }"""
    )
    model.graph.initializer.append(weights)
    onnx.save(model, tmp_path / "model.onnx")
    done = as_processor(processor, tmp_path, MULTIPLY, str(tmp_path / "model.onnx"))
    assert int(done.stdout) == 32 * (64770 if "vnni" in processor else 32767), done.stderr


@stands_in
def test_openvino_is_loaded_again(processor: str, tmp_path: Path) -> None:
    done = as_processor(processor, tmp_path, LOAD_TWICE)
    assert done.stdout.split() == ["True"] * 4, done.stderr


@stands_in
@pytest.mark.parametrize("fault", ["import ctypes; ctypes.string_at(0)", "import os; os.kill(os.getpid(), 11)"])
def test_faults_of_the_program_are_its_own(fault: str, processor: str, tmp_path: Path) -> None:
    assert as_processor(processor, tmp_path, fault).returncode == -signal.SIGSEGV
    caught = as_processor(processor, tmp_path, f"import faulthandler; faulthandler.enable(); {fault}")
    assert caught.returncode == -signal.SIGSEGV
    assert "Fatal Python error: Segmentation fault" in caught.stderr


def test_a_machine_that_cannot_trap_cpuid_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.tools.smaller_cpu.__main__.cpu_flags", lambda: cpu_flags() - {"cpuid_fault"})
    monkeypatch.setattr(sys, "argv", ["smaller_cpu", "avx2", "true"])
    with pytest.raises(SystemExit, match="no cpuid_fault"):
        main()
