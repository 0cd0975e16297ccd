"""Read /proc, /sys and nvpmodel.

A function returns None, or an empty collection, if the system does not have the file or the program.
"""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

_PROGRAM_TIMEOUT_S = 10

# CPU instruction sets by which runtimes choose their kernels.
_ISA = frozenset(
    (
        *("sse4_2", "avx", "avx2", "fma", "f16c", "avx_vnni", "avx512f", "avx512_vnni", "avx512_bf16", "avx512_fp16"),
        *("amx_tile", "amx_int8", "amx_bf16", "amx_fp16"),
        *("neon", "asimd", "asimdhp", "fphp", "asimddp", "asimdfhm", "bf16", "i8mm", "sve", "sve2", "sme"),
    )
)

# Cooling devices that lower a clock; fans are cooling devices too.
_CLOCK_LIMITER = re.compile("cpufreq|devfreq|gpu|processor|throttle", re.IGNORECASE)

# OC3 of a Jetson counts over-current of microseconds, which a healthy board has too (27,390 in an hour). OC1
# (under-voltage) and OC2 (average over-current) lower the clocks.
SPIKES = frozenset({"oc3_event_cnt"})

# A sensor of a Jetson whose part of the chip has no power, such as the GPU's while it idles, gives -256 degrees.
_SENSOR_OFF = -256_000

THERMAL_THROTTLE_COUNTERS = ("core_throttle_count", "package_throttle_count")  # of Intel, for each core


@dataclass(frozen=True, slots=True)
class CpuTimes:
    """Seconds since boot, summed over the cores that this process may use."""

    busy_s: float  # with the time stolen by a hypervisor
    idle_s: float
    stolen_s: float


@dataclass(frozen=True, slots=True)
class SystemFiles:
    """The system's files below `root`, which tests replace by a folder."""

    root: Path

    def text(self, path: str | Path) -> str | None:
        try:
            return (self.root / path).read_text(errors="replace").strip("\0 \n") or None
        except OSError:
            return None

    def number(self, path: str | Path) -> float | None:
        try:
            return float(self.text(path) or "")
        except ValueError:
            return None

    def find(self, pattern: str) -> list[Path]:
        """Return the paths that match, sorted by the numbers in them: cpu2 before cpu10."""
        return sorted(self.root.glob(pattern), key=lambda path: [int(run) for run in re.findall(r"\d+", str(path))])

    def cpus(self, path: str) -> dict[str, Path]:
        """Return `path` in each core's folder, by core ("cpu0"), if it exists there."""
        found = self.find(f"sys/devices/system/cpu/cpu[0-9]*/{path}")
        return {next(part for part in reversed(file.parts) if re.fullmatch(r"cpu\d+", part)): file for file in found}


# System


def os_name(files: SystemFiles) -> str:
    found = re.search(r'^PRETTY_NAME="?([^"\n]*)', files.text("etc/os-release") or "", re.MULTILINE)
    return found[1] if found else platform.platform()


def board(files: SystemFiles) -> str | None:
    return files.text("proc/device-tree/model") or files.text("sys/class/dmi/id/product_name")


def jetson_release(files: SystemFiles) -> str | None:
    """Return the L4T release of a Jetson, the first line of /etc/nv_tegra_release."""
    text = files.text("etc/nv_tegra_release")
    return text.splitlines()[0] if text else None


def jetpack_version(files: SystemFiles) -> str | None:
    """Return the version of JetPack's package on a Jetson; None if only parts of JetPack are installed."""
    if jetson_release(files) is None:  # the list of all packages has megabytes
        return None
    found = re.search(
        r"^Package: nvidia-jetpack\n(?:.+\n)*?Version: (\S+)", files.text("var/lib/dpkg/status") or "", re.MULTILINE
    )
    return found[1] if found else None


def container(files: SystemFiles) -> str | None:
    if (files.root / ".dockerenv").exists():
        return "docker"
    if (files.root / "run/.containerenv").exists():
        return "podman"
    found = re.search("kubepods|docker|lxc|containerd", files.text("proc/1/cgroup") or "")
    return found[0] if found else None


def load_average(files: SystemFiles) -> tuple[float, ...] | None:
    words = (files.text("proc/loadavg") or "").split()
    return tuple(float(word) for word in words[:3]) or None


def memory_mb(files: SystemFiles, name: str) -> float | None:
    """Return an entry of /proc/meminfo, for example "MemTotal", in MB of 2**20 bytes."""
    found = re.search(rf"^{name}:\s*(\d+) kB", files.text("proc/meminfo") or "", re.MULTILINE)
    return int(found[1]) / 1024 if found else None


# Processor


def cpu_model(files: SystemFiles) -> str | None:
    """Return the processor's name; Arm cores give an implementer and a part number instead."""
    if name := _cpuinfo(files, "model name", "Hardware"):
        return name
    maker, part = _cpuinfo(files, "CPU implementer"), _cpuinfo(files, "CPU part")
    return f"implementer {maker}, part {part}" if maker and part else platform.processor() or None


def instruction_sets(files: SystemFiles) -> tuple[str, ...]:
    return tuple(sorted(_ISA.intersection((_cpuinfo(files, "flags", "Features") or "").split())))


def physical_cores(files: SystemFiles) -> int | None:
    """Return the number of cores: of the different groups of hardware threads that share one.

    Linux before 5.5 has no such lists; identifiers of cores repeat in the clusters of many Arm processors.
    """
    threads = {files.text(path) for path in files.cpus("topology/core_cpus_list").values()}
    if threads:
        return len(threads)
    cores = {
        (files.text(folder / "physical_package_id"), files.text(folder / "core_id"))
        for folder in files.cpus("topology").values()
    }
    return len(cores) or None


def affinity() -> tuple[int, ...] | None:
    """Return the cores that this process may use."""
    return tuple(sorted(os.sched_getaffinity(0))) if hasattr(os, "sched_getaffinity") else None


def cpu_limit(files: SystemFiles) -> float | None:
    """Return the CPU limit in cores: the smallest of the process's control groups and their parents, v2 or v1."""
    group = re.search(r"^0::/(.*)$", files.text("proc/self/cgroup") or "", re.MULTILINE)
    parts = Path(group[1]).parts if group else ()
    limits = []
    for depth in range(len(parts) + 1):
        words = (files.text(Path("sys/fs/cgroup", *parts[:depth], "cpu.max")) or "").split()
        if len(words) == 2 and words[0] != "max":
            limits.append(int(words[0]) / int(words[1]))
    for folder in ("cpu", "cpu,cpuacct"):
        quota = files.number(f"sys/fs/cgroup/{folder}/cpu.cfs_quota_us")
        period = files.number(f"sys/fs/cgroup/{folder}/cpu.cfs_period_us")
        if quota and period and quota > 0:
            limits.append(quota / period)
    return min(limits) if limits else None


def usable_cores() -> frozenset[str] | None:
    """Return the names of the cores that this process may use ("cpu0"); None if the system does not say."""
    cores = affinity()
    return None if cores is None else frozenset(f"cpu{core}" for core in cores)


def cpu_times(files: SystemFiles) -> CpuTimes | None:
    """Return the time of the cores that this process may use."""
    cores, ticks = usable_cores(), []
    for name, counts in re.findall(r"^(cpu\d+) ([\d ]+)$", files.text("proc/stat") or "", re.MULTILINE):
        if cores is None or name in cores:
            # user, nice, system, idle, iowait, irq, softirq, steal; the guest times after them are part of user
            ticks.append([int(count) for count in counts.split()[:8]])
    if not ticks or not hasattr(os, "sysconf"):
        return None
    tick_s = 1 / os.sysconf("SC_CLK_TCK")
    idle = sum(sum(counts[3:5]) for counts in ticks)
    stolen = sum(sum(counts[7:]) for counts in ticks)
    return CpuTimes((sum(map(sum, ticks)) - idle) * tick_s, idle * tick_s, stolen * tick_s)


def _cpuinfo(files: SystemFiles, *names: str) -> str | None:
    """Return the first entry of /proc/cpuinfo with one of these names."""
    text = files.text("proc/cpuinfo") or ""
    for name in names:
        if found := re.search(rf"^{name}\s*:\s*(\S.*)$", text, re.MULTILINE):
            return found[1].strip()
    return None


# Clocks


def governor(files: SystemFiles) -> str | None:
    names = {files.text(path) or "unknown" for path in files.cpus("cpufreq/scaling_governor").values()}
    return ", ".join(sorted(names)) or None


def clock_range_mhz(files: SystemFiles) -> tuple[float | None, float | None]:
    """Return the lowest and the highest clock that the governor may choose, over all cores."""
    return _over_cores(files, "scaling_min_freq", min), _over_cores(files, "scaling_max_freq", max)


def current_clocks_mhz(files: SystemFiles) -> dict[str, float]:
    """Return the current clocks by core ("cpu0") and by devfreq device."""
    clocks = _cpu_mhz(files, "scaling_cur_freq")
    if not clocks:  # virtual machines have no cpufreq; on x86 /proc/cpuinfo has the clock
        found = re.findall(r"^cpu MHz\s*:\s*([\d.]+)", files.text("proc/cpuinfo") or "", re.MULTILINE)
        clocks = {f"cpu{core}": float(clock) for core, clock in enumerate(found)}
    for path in files.find("sys/class/devfreq/*/cur_freq"):
        if (clock := files.number(path)) is not None:
            clocks[path.parent.name] = clock / 1e6
    return clocks


def device_clocks(files: SystemFiles) -> dict[str, str]:
    """Return governor and clock range of each devfreq device; the GPU of a Jetson is one."""
    clocks = {}
    for folder in files.find("sys/class/devfreq/*"):
        low, high = files.number(folder / "min_freq"), files.number(folder / "max_freq")
        if low is not None and high is not None:
            name = files.text(folder / "governor") or "unknown"
            clocks[folder.name] = f"{name}, {low / 1e6:g} to {high / 1e6:g} MHz"
    return clocks


def boost(files: SystemFiles) -> bool | None:
    """Return whether the processor may exceed its base clock."""
    allowed = files.number("sys/devices/system/cpu/cpufreq/boost")
    if allowed is not None:
        return allowed != 0
    forbidden = files.number("sys/devices/system/cpu/intel_pstate/no_turbo")
    return None if forbidden is None else forbidden == 0


def power_mode(files: SystemFiles) -> str | None:
    """Return nvpmodel's power mode, for example "MAXN (0)", else the platform profile of the firmware."""
    found = re.search(r"Power Mode:\s*(\S+)(?:\s+(\d+))?", _run_program("nvpmodel", "-q"))
    if found is None:
        return files.text("sys/firmware/acpi/platform_profile")
    return f"{found[1]} ({found[2]})" if found[2] else found[1]


def _cpu_mhz(files: SystemFiles, name: str) -> dict[str, float]:
    clocks = {core: files.number(path) for core, path in files.cpus(f"cpufreq/{name}").items()}
    return {core: clock / 1e3 for core, clock in clocks.items() if clock is not None}


def _over_cores(files: SystemFiles, name: str, choose: Callable[[Iterable[float]], float]) -> float | None:
    clocks = _cpu_mhz(files, name)
    return choose(clocks.values()) if clocks else None


# Heat


def temperature_files(files: SystemFiles) -> dict[str, Path]:
    """Return the files of thermal zones and other sensors by name; they hold thousandths of a degree Celsius."""
    zones = {
        f"{files.text(zone / 'type')} {zone.name}": zone / "temp"
        for zone in files.find("sys/class/thermal/thermal_zone*")
    }
    sensors = {
        f"{files.text(sensor.parent / 'name')} {sensor.name.removesuffix('_input')}": sensor
        for sensor in files.find("sys/class/hwmon/hwmon*/temp*_input")
    }
    return {**zones, **sensors}


def temperature_c(files: SystemFiles, path: Path) -> float | None:
    """Return the temperature in a file of `temperature_files`; None if there is none or the sensor is off."""
    reading = files.number(path)
    return None if reading is None or reading <= _SENSOR_OFF else reading / 1e3


def temperatures_c(files: SystemFiles) -> dict[str, float]:
    """Return the temperatures by sensor. Sensors that are off are left out."""
    readings = {name: temperature_c(files, path) for name, path in temperature_files(files).items()}
    return {name: reading for name, reading in readings.items() if reading is not None}


def throttle_events(files: SystemFiles) -> dict[str, int]:
    """Return Intel's thermal counters, summed over cores, and the over-current counters of a Jetson."""
    events: dict[str, int] = {}
    for kind in THERMAL_THROTTLE_COUNTERS:
        counts = [files.number(path) for path in files.cpus(f"thermal_throttle/{kind}").values()]
        if counts:
            events[kind] = sum(int(count) for count in counts if count is not None)
    for path in files.find("sys/class/hwmon/hwmon*/oc*_event_cnt"):
        if (count := files.number(path)) is not None:
            events[path.name] = int(count)
    return events


def cooling_devices(files: SystemFiles) -> dict[str, Path]:
    """Return the files with the state of each cooling device that lowers a clock, by name."""
    devices = {device: files.text(device / "type") or "" for device in files.find("sys/class/thermal/cooling_device*")}
    return {
        f"{kind} {device.name}": device / "cur_state" for device, kind in devices.items() if _CLOCK_LIMITER.search(kind)
    }


def clock_limits(files: SystemFiles) -> dict[str, int]:
    """Return the state of each cooling device that lowers a clock; 0 means that it is not active."""
    states = {name: files.number(path) for name, path in cooling_devices(files).items()}
    return {name: int(state) for name, state in states.items() if state is not None}


def _run_program(*command: str) -> str:
    """Return the output of a program, or "" if it does not exist, fails or hangs."""
    path = shutil.which(command[0])
    if path is None:
        return ""
    try:
        done = subprocess.run(
            [path, *command[1:]], check=False, capture_output=True, text=True, timeout=_PROGRAM_TIMEOUT_S
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout if done.returncode == 0 else ""
