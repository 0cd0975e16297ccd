"""Machine descriptions: of this machine, and of boards given by the contents of their system files."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from edgevit.latency.environment import Environment, MachineState, event_rises, others_fraction, throttle_causes
from edgevit.latency.sampling import nvml
from tests.fakes.nvml import eight_gpus, loader
from tests.helpers import samples

JETSON = {
    "proc/device-tree/model": "NVIDIA Jetson Orin Nano Developer Kit\0",
    "etc/nv_tegra_release": "# R36 (release), REVISION: 4.3, GCID: 1, BOARD: generic\n# more",
    "etc/os-release": 'NAME="Ubuntu"\nPRETTY_NAME="Ubuntu 22.04.5 LTS"\n',
    "proc/cpuinfo": "processor\t: 0\nFeatures\t: fp asimd asimddp\nCPU implementer\t: 0x41\nCPU part\t: 0xd42\n",
    "proc/meminfo": "MemTotal:        7802880 kB\nMemAvailable:    4194304 kB\n",
    "proc/loadavg": "0.50 0.25 0.12 1/300 999\n",
    **{
        f"sys/devices/system/cpu/cpu{core}/{name}": text
        for core in (0, 2, 10)
        for name, text in {
            "cpufreq/scaling_governor": "schedutil\n",
            "cpufreq/scaling_min_freq": "729600\n",
            "cpufreq/scaling_max_freq": "1510400\n",
            "cpufreq/scaling_cur_freq": f"{729600 + core}\n",
            "topology/physical_package_id": "0\n",
            "topology/core_id": f"{core}\n",
        }.items()
    },
    "sys/class/devfreq/17000000.gpu/min_freq": "306000000",
    "sys/class/devfreq/17000000.gpu/max_freq": "624750000",
    "sys/class/devfreq/17000000.gpu/cur_freq": "306000000",
    "sys/class/devfreq/17000000.gpu/governor": "nvhost_podgov",
    "sys/class/thermal/thermal_zone0/type": "cpu-thermal",
    "sys/class/thermal/thermal_zone0/temp": "48625",
    "sys/class/thermal/thermal_zone1/type": "cv0-thermal",  # switched off: reading its temp fails on the board
    "sys/class/thermal/cooling_device0/type": "pwm-fan",
    "sys/class/thermal/cooling_device0/cur_state": "3",
    "sys/class/thermal/cooling_device1/type": "cpufreq-cpu0",
    "sys/class/thermal/cooling_device1/cur_state": "0",
    "sys/class/hwmon/hwmon1/oc1_event_cnt": "2",
    "sys/class/hwmon/hwmon1/oc3_event_cnt": "0",
}
LAPTOP = {
    "sys/class/dmi/id/product_name": "A laptop",
    "proc/cpuinfo": "model name\t: A processor\nflags\t\t: fpu avx2 avx512f avx512_vnni\ncpu MHz\t\t: 2100.5\n",
    "sys/devices/system/cpu/intel_pstate/no_turbo": "1",
    "sys/firmware/acpi/platform_profile": "balanced",
    "sys/devices/system/cpu/cpu0/thermal_throttle/core_throttle_count": "4",
    "sys/devices/system/cpu/cpu1/thermal_throttle/core_throttle_count": "5",
    "sys/class/hwmon/hwmon0/name": "coretemp",
    "sys/class/hwmon/hwmon0/temp1_input": "61000",
    "run/.containerenv": "",
}


def machine(folder: Path, files: dict[str, str]) -> Path:
    for path, text in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(text)
    return folder


def program(folder: Path, name: str, answer: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Put a program of that name first on PATH."""
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(f"#!/bin/sh\ncat <<'END'\n{answer}\nEND\n")
    (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")


def test_this_machine_is_captured_and_survives_json() -> None:
    here = Environment.capture()
    assert Environment.from_json(json.loads(json.dumps(here.to_json(), allow_nan=False))) == here
    assert here.differences(Environment.capture()) == ()
    assert here.logical_cores == os.cpu_count() and "numpy" in here.packages


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_linux_reports_processor_memory_and_load() -> None:
    here = Environment.capture()
    assert here.cpu and here.memory_total_mb and here.state.load_average and here.state.busy_cpu_s
    assert here.affinity == tuple(sorted(os.sched_getaffinity(0)))


def test_a_jetson_reports_board_release_power_mode_clocks_and_temperatures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program(tmp_path / "bin", "nvpmodel", "NV Power Mode: 15W\n0", monkeypatch)
    board = Environment.capture(machine(tmp_path, JETSON))
    assert board.board == "NVIDIA Jetson Orin Nano Developer Kit"
    assert board.jetson == "# R36 (release), REVISION: 4.3, GCID: 1, BOARD: generic"
    assert (board.os, board.cpu) == ("Ubuntu 22.04.5 LTS", "implementer 0x41, part 0xd42")
    assert (board.isa, board.physical_cores, board.power_mode) == (("asimd", "asimddp"), 3, "15W (0)")
    assert (board.governor, board.min_mhz, board.max_mhz) == ("schedutil", 729.6, 1510.4)
    assert board.device_clocks == {"17000000.gpu": "nvhost_podgov, 306 to 624.75 MHz"}
    assert board.memory_total_mb == 7620 and board.state.memory_available_mb == 4096
    assert board.state.load_average == (0.5, 0.25, 0.12)
    assert list(board.state.clocks_mhz) == ["cpu0", "cpu2", "cpu10", "17000000.gpu"]
    assert board.state.temperatures_c == {"cpu-thermal thermal_zone0": 48.625}
    assert board.state.throttle_events == {"oc1_event_cnt": 2, "oc3_event_cnt": 0}
    assert board.state.limits == {"cpufreq-cpu0 cooling_device1": 0}  # the fan is not a limit


def test_a_laptop_reports_turbo_profile_throttling_and_container(tmp_path: Path) -> None:
    laptop = Environment.capture(machine(tmp_path, LAPTOP))
    assert (laptop.board, laptop.cpu, laptop.boost) == ("A laptop", "A processor", False)
    assert (laptop.isa, laptop.power_mode) == (("avx2", "avx512_vnni", "avx512f"), "balanced")
    assert laptop.state.clocks_mhz == {"cpu0": 2100.5} and laptop.container == "podman"
    assert laptop.state.throttle_events == {"core_throttle_count": 9}
    assert laptop.state.temperatures_c == {"coretemp temp1": 61}


def test_nvidia_gpus_are_named_with_their_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ctypes.CDLL", loader(eight_gpus()))
    assert Environment.capture().gpus == ("NVIDIA RTX 4000 SFF Ada Generation, driver 595.84",) * 8


def test_a_machine_without_system_files_is_described_without_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nvml, "LIBRARY", "libmissing.so")
    bare = Environment.capture(tmp_path)
    assert (bare.board, bare.governor, bare.boost, bare.cpu_limit, bare.power_mode) == (None,) * 5
    assert bare.gpus == () and bare.state.limits == {} and bare.state.load_average is None
    assert throttle_causes(bare.state, bare.state) is None and others_fraction(bare.state, bare.state) is None
    assert Environment.from_json(json.loads(json.dumps(bare.to_json()))) == bare


@pytest.mark.parametrize(
    ("files", "limit"),
    [
        ({"sys/fs/cgroup/cpu.max": "max 100000"}, None),
        ({"sys/fs/cgroup/cpu.max": "150000 100000"}, 1.5),
        ({"proc/self/cgroup": "0::/a/b\n", "sys/fs/cgroup/a/cpu.max": "200000 100000"}, 2),
        (
            {
                "proc/self/cgroup": "0::/a\n",
                "sys/fs/cgroup/a/cpu.max": "50000 100000",
                "sys/fs/cgroup/cpu.max": "100000 100000",
            },
            0.5,
        ),
        ({"sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1", "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000"}, None),
        ({"sys/fs/cgroup/cpu/cpu.cfs_quota_us": "250000", "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000"}, 2.5),
    ],
)
def test_the_cpu_limit_of_a_control_group_is_found(tmp_path: Path, files: dict[str, str], limit: float | None) -> None:
    assert Environment.capture(machine(tmp_path, files)).cpu_limit == limit


def test_threads_of_one_core_count_once_and_equal_numbers_in_two_clusters_twice(tmp_path: Path) -> None:
    for cpu, (core, threads) in enumerate([(0, "0,2"), (0, "1,3"), (0, "0,2"), (0, "1,3")]):
        topology = tmp_path / f"sys/devices/system/cpu/cpu{cpu}/topology"
        machine(topology, {"physical_package_id": "0\n", "core_id": f"{core}\n", "core_cpus_list": f"{threads}\n"})
    assert Environment.capture(tmp_path).physical_cores == 2


def state(events: dict[str, int], limit: int = 0, *, time_s: float = 0.0) -> MachineState:
    return dataclasses.replace(samples.QUIET, throttle_events=events, limits={"cpufreq": limit}, time_s=time_s)


@pytest.mark.parametrize(
    ("before", "after", "causes"),
    [
        (state({"oc1_event_cnt": 3}), state({"oc1_event_cnt": 3}), ()),
        (state({"oc1_event_cnt": 3}), state({"oc1_event_cnt": 4}), ("oc1_event_cnt +1",)),
        (state({"oc2_event_cnt": 0}), state({"oc2_event_cnt": 15}), ("oc2_event_cnt +15",)),
        (state({}), state({}, 1), ("cpufreq at 1",)),
        (state({}, 2), state({}), ("cpufreq at 2",)),
    ],
)
def test_rising_counters_and_active_limits_mean_throttling(
    before: MachineState, after: MachineState, causes: tuple[str, ...]
) -> None:
    assert throttle_causes(before, after) == causes


def test_over_current_spikes_are_a_rate_and_no_throttling() -> None:
    """An hour of a healthy Orin under load."""
    counts = {"oc1_event_cnt": 0, "oc2_event_cnt": 0, "oc3_event_cnt": 0}
    before, after = state(counts), state(counts | {"oc3_event_cnt": 27390}, time_s=3605.0)
    assert throttle_causes(before, after) == ()
    spikes = event_rises(before, after)["oc3_event_cnt"]
    assert spikes.count == 27390 and spikes.per_s == pytest.approx(7.6, abs=0.01)
    only_spikes = dataclasses.replace(after, throttle_events={"oc3_event_cnt": 1}, limits={})
    assert throttle_causes(only_spikes, only_spikes) is None


@pytest.mark.parametrize(
    ("own", "busy", "idle", "share"),
    [(4.0, 4.0, 4.0, 0), (4.0, 6.0, 2.0, 0.25), (0.0, 8.0, 0.0, 1), (5.0, 4.0, 4.0, 0), (0.0, 0.0, 0.0, None)],
)
def test_the_share_of_others_is_busy_time_without_our_own(
    own: float, busy: float, idle: float, share: float | None
) -> None:
    before = dataclasses.replace(samples.QUIET, own_cpu_s=0.0, busy_cpu_s=0.0, idle_cpu_s=0.0)
    after = dataclasses.replace(samples.QUIET, own_cpu_s=own, busy_cpu_s=busy, idle_cpu_s=idle)
    assert others_fraction(before, after) == share


def test_only_the_cores_of_this_process_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0}, raising=False)
    stat = "cpu  9 9 9 9 9 9 9 9 9 9\ncpu0 100 0 50 800 50 0 0 10 70 0\ncpu1 999 0 0 0 0 0 0 0 0 0\nintr 5\n"
    now = MachineState.capture(machine(tmp_path, {"proc/stat": stat}))
    tick_s = 1 / os.sysconf("SC_CLK_TCK")
    assert now.busy_cpu_s == pytest.approx(160 * tick_s) and now.idle_cpu_s == pytest.approx(850 * tick_s)


def test_measuring_imports_neither_torch_nor_onnx() -> None:
    probe = (
        "import sys; import edgevit.latency.measure, edgevit.latency.compare, edgevit.latency.environment as e; "
        "e.Environment.capture(); "
        "print(*sorted({'torch', 'onnx', 'onnxruntime', 'openvino', 'tensorrt', 'psutil'} & set(sys.modules)))"
    )
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", probe], cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""
