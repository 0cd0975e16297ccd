"""Reports of machines as they are: an Orin, a Thor, an Intel box, a server with eight GPUs, one without any sensor."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

import pytest

from edgevit.latency import system_files
from edgevit.latency.candidate import Candidate
from edgevit.latency.document.content import session_of
from edgevit.latency.document.html_page import html_page
from edgevit.latency.document.identity import machine_rows, setting_rows
from edgevit.latency.document.markdown import markdown_page
from edgevit.latency.measure import measure
from edgevit.latency.sampling import nvml
from edgevit.runtimes.base import GPU, GPU_MULTIPROCESSORS, GPU_UUID
from tests.fakes.machines import INTEL, ORIN, THOR, write_root
from tests.fakes.nvml import eight_gpus, loader
from tests.helpers.documents import document
from tests.helpers.samples import QUICK, work

ON_ORIN = {GPU: "Orin", GPU_MULTIPROCESSORS: "16"}
UUID = "27037c3f-65c8-ec4d-24a9-420204ad8026"
JETPACK = "Package: bash\nVersion: 5.1\n\nPackage: nvidia-jetpack\nStatus: install ok\nVersion: 6.2+b77\n"


@pytest.fixture(autouse=True)
def _bare_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hide what the machine of the tests has itself."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1}, raising=False)
    monkeypatch.setattr(nvml, "LIBRARY", "libno-such-library.so")
    monkeypatch.setattr(system_files, "_run_program", lambda *_: "")


def described(root: Path, details: dict[str, str]) -> tuple[dict[str, str], dict[str, str], dict[str, str]]:
    """Measure on a machine, write its report in both forms, and return machine, settings and answers."""
    plan = dataclasses.replace(
        QUICK, min_runs=3, min_duration_s=0.02, min_rounds=8, sample_interval_s=0.005, idle_s=0.02
    )
    session = session_of(measure([Candidate(name="a", infer=work(1), details=details)], plan, root=root), {})
    both = document(session)
    for text in (html_page(both), markdown_page(both)):
        assert session.device.partition(",")[0] in text.replace("\\_", "_")
    answers = {check.name: str(check.answer) for check in session.entries[0].checks}
    return dict(machine_rows(session)), dict(setting_rows(session)), answers


def test_an_orin(tmp_path: Path) -> None:
    files = {
        **ORIN,
        "var/lib/dpkg/status": JETPACK,
        "sys/class/devfreq/17000000.gpu/governor": "nvhost_podgov\n",
        "sys/class/devfreq/17000000.gpu/min_freq": "306000000\n",
        "sys/class/devfreq/17000000.gpu/max_freq": "1300500000\n",
    }
    machine, settings, answers = described(write_root(tmp_path, files), ON_ORIN)
    assert machine["board"] == "NVIDIA Jetson AGX Orin Developer Kit"
    assert (machine["L4T"], machine["JetPack"]) == ("36.4.3", "6.2+b77")
    assert (machine["GPU"], machine["GPU multiprocessors (SM)"]) == ("Orin", "16")
    assert settings["clock of 17000000.gpu"] == "floating: nvhost_podgov, 306 to 1300.5 MHz"
    assert (answers["clocks held"], answers["no thermal or current limit"]) == ("yes", "yes")
    assert answers["no load of others"] == "unknown"  # the recording has no processor times


def test_a_thor_has_no_counter_that_shows_throttling(tmp_path: Path) -> None:
    machine, settings, answers = described(write_root(tmp_path, THOR), {GPU: "NVIDIA Thor"})
    assert machine["board"] == "NVIDIA Jetson AGX Thor Developer Kit"
    assert not {"L4T", "JetPack", "GPU multiprocessors (SM)", "RAM"} & set(machine)  # absent, not guessed
    assert settings == {
        "processor clock": "unknown: no governor and no clock range reported",
        "GPU clock": "unknown: the driver does not report whether it is locked",
    }
    assert (answers["clocks held"], answers["no thermal or current limit"]) == ("yes", "unknown")


def test_an_intel_machine(tmp_path: Path) -> None:
    cpuinfo = "model name\t: Intel(R) Core(TM)\nflags\t\t: sse4_2 avx2 avx_vnni\n"
    governors = {f"sys/devices/system/cpu/cpu{core}/cpufreq/scaling_governor": "performance" for core in range(2)}
    files = {**INTEL, "proc/cpuinfo": cpuinfo, "sys/devices/system/cpu/cpufreq/boost": "0", **governors}
    machine, settings, answers = described(write_root(tmp_path, files), {})
    assert machine["processor"] == "Intel(R) Core(TM)" and "board" not in machine
    if machine["architecture"] == "x86_64":
        assert machine["int8 products"] == "avx_vnni (VNNI)"
    assert settings == {"processor clock": "locked: governor performance, boost off"}
    assert (answers["clocks held"], answers["no thermal or current limit"]) == ("yes", "yes")


def test_a_server_with_eight_gpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ctypes.CDLL", loader(eight_gpus()))
    details = {GPU: "NVIDIA H100", GPU_UUID: UUID, GPU_MULTIPROCESSORS: "132"}
    machine, settings, answers = described(tmp_path, details)
    assert machine["GPU UUID"] == UUID and "driver 595.84" in machine["NVIDIA GPUs and driver"]
    assert settings["GPU clock"].startswith("unknown")
    assert answers["clocks held"] == "yes"
    assert answers["no load of others"] == "no"  # another process computes on our GPU


def test_a_machine_without_sensors(tmp_path: Path) -> None:
    machine, _, answers = described(tmp_path, {})
    assert not {"board", "RAM", "instructions", "int8 products", "GPU"} & set(machine)
    unknown = {"clocks held", "no thermal or current limit", "no load of others"}
    assert {name for name, answer in answers.items() if answer == "unknown"} >= unknown
