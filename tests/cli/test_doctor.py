"""`edgevit doctor`."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest

from edgevit.cli.doctor import doctor_table
from edgevit.latency.sampling import nvml
from edgevit.latency.sampling.sampler import device_channels
from edgevit.runtimes.registry import get_runtime
from tests.fakes.machines import ORIN, write_root
from tests.helpers import samples
from tests.helpers.cli import status
from tests.helpers.formats import ON_CPU


def test_doctor_lists_the_runtimes(capsys: pytest.CaptureFixture[str]) -> None:
    assert status("doctor", "--json", "-") == 0
    found = json.loads(capsys.readouterr().out)
    assert set(found["runtimes"]) >= set(ON_CPU)
    assert {"name": "load", "kind": "load", "unit": ""} in found["sensors"]
    if get_runtime("trt").version() is None:
        assert status("doctor") == 0
        assert "pip install 'edgevit[trt]'" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("module", "line", "words"),
    [
        ("tensorrt", "raise ImportError('libnvinfer.so.10: cannot open shared object file')", "libnvinfer.so.10"),
        ("tensorrt", "__version__ = '8.5.2.2'", "JetPack 5"),
        ("tensorrt_rtx", "raise ImportError('libtensorrt_rtx.so.1: cannot open')", "libtensorrt_rtx.so.1"),
    ],
)
def test_doctor_explains_why_an_installed_runtime_does_not_work(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    module: str,
    line: str,
    words: str,
) -> None:
    (tmp_path / f"{module}.py").write_text(line)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(sys.modules, module, None)
    del sys.modules[module]  # so that the test imports it; monkeypatch removes it afterwards
    assert status("doctor", "--json", "-") == 0
    found = json.loads(capsys.readouterr().out)
    fmt = "trt" if module == "tensorrt" else "trt-rtx"
    assert found["runtimes"][fmt] is None
    assert words in found["unusable"][fmt]


def test_doctor_counts_the_sensors_that_it_can_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1}, raising=False)
    monkeypatch.setattr(nvml, "LIBRARY", "libmissing.so")  # the GPUs of this machine have sensors too
    channels = device_channels(write_root(tmp_path, ORIN))
    for given, cell in ((channels, "4 clock, 1 utilization, 2 temperature"), ((), "none that this user can read")):
        names, values = (list(column.cells) for column in doctor_table(samples.BOARD, [], given).columns)
        assert str(values[names.index("sensors")]).startswith(cell)


def test_doctor_prints_the_memory_in_gib() -> None:
    names, values = (list(column.cells) for column in doctor_table(samples.BOARD, []).columns)
    assert values[names.index("memory")] == "7.4 GiB"  # of 7620 MiB
