"""Where a measurement was taken: what must agree before two of them may be compared, and the state of the machine.

Read from /proc, /sys and two programs (nvpmodel, nvidia-smi) where they exist; None or empty where they do not.
Packages are not imported for their version.
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import shutil
import subprocess
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from edgevit.formats import list_formats

# Packages that are no runtime of a format; `Format.packages` adds the runtimes. PyTorch is measured like a runtime.
_LIBRARIES = ("numpy", "torch", "onnx")
_REFERENCE = "torch"

# With the runtimes' versions, what decides a latency; memory, kernel and the state of the moment do not.
_KEY_FIELDS = (
    *("architecture", "board", "cpu", "isa", "physical_cores", "logical_cores", "affinity", "cpu_limit"),
    *("governor", "min_mhz", "max_mhz", "boost", "power_mode", "gpus", "device_clocks", "jetson"),
)

# The instructions that decide which kernels a runtime takes.
_ISA = frozenset(
    (
        *("sse4_2", "avx", "avx2", "fma", "f16c", "avx_vnni", "avx512f", "avx512_vnni", "avx512_bf16", "avx512_fp16"),
        *("amx_tile", "amx_int8", "amx_bf16", "amx_fp16"),
        *("neon", "asimd", "asimdhp", "fphp", "asimddp", "asimdfhm", "bf16", "i8mm", "sve", "sve2", "sme"),
    )
)

# Cooling devices that slow something down; a fan is a cooling device too.
_LIMITER = re.compile("cpufreq|devfreq|gpu|processor|throttle", re.IGNORECASE)

# NVML's reasons for a lowered clock that are not the user's wish: power cap, slowdowns by heat or by hardware.
_GPU_LIMITED = 0x4 | 0x8 | 0x20 | 0x40 | 0x80


@dataclass(frozen=True, slots=True, kw_only=True)
class MachineState:
    """What changes while a machine works; taken before and after a measurement."""

    load_average: tuple[float, ...] | None  # over 1, 5 and 15 minutes
    memory_available_mb: float | None
    clocks_mhz: Mapping[str, float]  # by core ("cpu0") or device
    temperatures_c: Mapping[str, float]
    throttle_events: Mapping[str, int]  # counters that only rise
    limits: Mapping[str, int]  # what holds a clock down now, 0 where nothing does
    own_cpu_s: float  # processor time of this process
    busy_cpu_s: float | None  # processor time of everybody on the cores that this process may use, stolen time included
    idle_cpu_s: float | None

    @classmethod
    def capture(cls, root: Path = Path("/")) -> MachineState:
        """The state now. `root` is where the system's files are looked for."""
        files = _Files(root)
        gpus = {
            f"nvidia gpu {index}": row
            for index, row in enumerate(_nvidia_smi("temperature.gpu,clocks.sm,clocks_throttle_reasons.active"))
        }
        busy, idle = _cpu_time(files)
        return cls(
            load_average=_load_average(files),
            memory_available_mb=_memory_mb(files, "MemAvailable"),
            clocks_mhz={**_current_mhz(files), **_column(gpus, 1)},
            temperatures_c={**_temperatures(files), **_column(gpus, 0)},
            throttle_events=_throttle_events(files),
            limits={**_cooling(files), **_gpu_limits(gpus)},
            own_cpu_s=time.process_time(),
            busy_cpu_s=busy,
            idle_cpu_s=idle,
        )

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> MachineState:
        load = data["load_average"]
        return cls(**{**data, "load_average": tuple(load) if load is not None else None})


@dataclass(frozen=True, slots=True, kw_only=True)
class Environment:
    """The machine and what runs on it. `state` is how it stood when this was captured."""

    architecture: str
    board: str | None
    os: str
    kernel: str
    cpu: str | None
    isa: tuple[str, ...]
    physical_cores: int | None
    logical_cores: int | None
    affinity: tuple[int, ...] | None  # the cores that this process may use
    cpu_limit: float | None  # cores' worth of time that a control group grants; None where there is no limit
    governor: str | None
    min_mhz: float | None
    max_mhz: float | None
    boost: bool | None
    power_mode: str | None  # nvpmodel's on a Jetson, else the firmware's platform profile
    gpus: tuple[str, ...]  # NVIDIA's, with the driver
    device_clocks: Mapping[str, str]  # of devfreq devices, a Jetson's GPU among them: governor and range
    jetson: str | None  # the L4T release
    container: str | None
    memory_total_mb: float | None
    python: str
    packages: Mapping[str, str]
    state: MachineState

    @classmethod
    def capture(cls, root: Path = Path("/")) -> Environment:
        """The environment of this process. `root` is where the system's files are looked for."""
        files = _Files(root)
        return cls(
            architecture=platform.machine(),
            board=files.text("proc/device-tree/model") or files.text("sys/class/dmi/id/product_name"),
            os=_os_name(files),
            kernel=platform.release(),
            cpu=_cpu_model(files),
            isa=_isa(files),
            physical_cores=_physical_cores(files),
            logical_cores=os.cpu_count(),
            affinity=_affinity(),
            cpu_limit=_cpu_limit(files),
            governor=_governor(files),
            min_mhz=_limit_mhz(files, "scaling_min_freq", min),
            max_mhz=_limit_mhz(files, "scaling_max_freq", max),
            boost=_boost(files),
            power_mode=_nvpmodel() or files.text("sys/firmware/acpi/platform_profile"),
            gpus=tuple(", driver ".join(row) for row in _nvidia_smi("name,driver_version")),
            device_clocks=_device_clocks(files),
            jetson=_first_line(files.text("etc/nv_tegra_release")),
            container=_container(files),
            memory_total_mb=_memory_mb(files, "MemTotal"),
            python=platform.python_version(),
            packages=_package_versions(),
            state=MachineState.capture(root),
        )

    def key(self) -> dict[str, object]:
        """The fields on which two measurements must agree before their times may be compared."""
        return {
            **{name: getattr(self, name) for name in _KEY_FIELDS},
            **{name: self.packages.get(name) for name in (_REFERENCE, *_runtime_packages())},
        }

    def differences(self, other: Environment) -> tuple[str, ...]:
        """What forbids a comparison, one line a field; empty where nothing does."""
        theirs = other.key()
        return tuple(
            f"{name}: {mine} here, {theirs[name]} there" for name, mine in self.key().items() if mine != theirs[name]
        )

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Environment:
        affinity = data["affinity"]
        return cls(
            **{
                **data,
                "isa": tuple(data["isa"]),
                "affinity": tuple(affinity) if affinity is not None else None,
                "gpus": tuple(data["gpus"]),
                "state": MachineState.from_json(data["state"]),
            }
        )


def throttled(before: MachineState, after: MachineState) -> bool | None:
    """Whether the machine slowed itself down in between; None where it shows nothing to tell it by."""
    if not after.throttle_events and not after.limits:
        return None
    risen = any(count > before.throttle_events.get(name, 0) for name, count in after.throttle_events.items())
    return risen or any(after.limits.values()) or any(before.limits.values())


def others_share(before: MachineState, after: MachineState) -> float | None:
    """The share of this process's cores that other processes took in between, 0 to 1; None where nobody counts."""
    if None in (before.busy_cpu_s, before.idle_cpu_s, after.busy_cpu_s, after.idle_cpu_s):
        return None
    busy = (after.busy_cpu_s or 0.0) - (before.busy_cpu_s or 0.0)
    total = busy + (after.idle_cpu_s or 0.0) - (before.idle_cpu_s or 0.0)
    others = busy - (after.own_cpu_s - before.own_cpu_s)
    return min(1.0, max(0.0, others / total)) if total > 0 else None


@dataclass(frozen=True, slots=True)
class _Files:
    """The system's files below `root`; one that is missing or cannot be read is None."""

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
        """The paths that match, in the order of their numbers: cpu2 before cpu10."""
        return sorted(self.root.glob(pattern), key=lambda path: [int(run) for run in re.findall(r"\d+", str(path))])

    def cpus(self, path: str) -> dict[str, Path]:
        """`path` below each core's folder, by core, where it exists."""
        found = self.find(f"sys/devices/system/cpu/cpu[0-9]*/{path}")
        return {next(part for part in reversed(file.parts) if re.fullmatch(r"cpu\d+", part)): file for file in found}


def _program(*command: str) -> str:
    """What a program prints; empty where it does not exist, fails, or hangs."""
    path = shutil.which(command[0])
    if path is None:
        return ""
    try:
        done = subprocess.run([path, *command[1:]], check=False, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout if done.returncode == 0 else ""


def _nvidia_smi(fields: str) -> list[list[str]]:
    """A row for each GPU. On a Jetson nvidia-smi answers "[N/A]" to most; devfreq and thermal zones speak there."""
    table = _program("nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader,nounits")
    return [[cell.strip() for cell in line.split(",")] for line in table.splitlines() if line.strip()]


def _nvpmodel() -> str | None:
    """The power mode's name and number: "NV Power Mode: MAXN" and below it "0" become "MAXN (0)"."""
    found = re.search(r"Power Mode:\s*(\S+)(?:\s+(\d+))?", _program("nvpmodel", "-q"))
    if found is None:
        return None
    return f"{found[1]} ({found[2]})" if found[2] else found[1]


def _column(rows: Mapping[str, list[str]], column: int) -> dict[str, float]:
    """The numbers of one column; cells that are none are left out."""
    numbers = {}
    for name, row in rows.items():
        if column < len(row) and re.fullmatch(r"\d+(\.\d+)?", row[column]):
            numbers[name] = float(row[column])
    return numbers


def _gpu_limits(rows: Mapping[str, list[str]]) -> dict[str, int]:
    return {
        name: int(row[2], 16) & _GPU_LIMITED
        for name, row in rows.items()
        if len(row) > 2 and re.fullmatch(r"0x[0-9a-fA-F]+", row[2])
    }


def _first_line(text: str | None) -> str | None:
    return text.splitlines()[0] if text else None


def _os_name(files: _Files) -> str:
    found = re.search(r'^PRETTY_NAME="?([^"\n]*)', files.text("etc/os-release") or "", re.MULTILINE)
    return found[1] if found else platform.platform()


def _cpuinfo(files: _Files, *names: str) -> str | None:
    """The first entry of /proc/cpuinfo with one of these names."""
    text = files.text("proc/cpuinfo") or ""
    for name in names:
        if found := re.search(rf"^{name}\s*:\s*(\S.*)$", text, re.MULTILINE):
            return found[1].strip()
    return None


def _cpu_model(files: _Files) -> str | None:
    """The processor's name; an Arm core says who made it and its part number instead."""
    if name := _cpuinfo(files, "model name", "Hardware"):
        return name
    maker, part = _cpuinfo(files, "CPU implementer"), _cpuinfo(files, "CPU part")
    return f"implementer {maker}, part {part}" if maker and part else platform.processor() or None


def _isa(files: _Files) -> tuple[str, ...]:
    return tuple(sorted(_ISA.intersection((_cpuinfo(files, "flags", "Features") or "").split())))


def _physical_cores(files: _Files) -> int | None:
    cores = {
        (files.text(folder / "physical_package_id"), files.text(folder / "core_id"))
        for folder in files.cpus("topology").values()
    }
    return len(cores) or None


def _governor(files: _Files) -> str | None:
    names = {files.text(path) or "unknown" for path in files.cpus("cpufreq/scaling_governor").values()}
    return ", ".join(sorted(names)) or None


def _cpu_mhz(files: _Files, name: str) -> dict[str, float]:
    clocks = {core: files.number(path) for core, path in files.cpus(f"cpufreq/{name}").items()}
    return {core: clock / 1e3 for core, clock in clocks.items() if clock is not None}


def _limit_mhz(files: _Files, name: str, choose: Callable[[Iterable[float]], float]) -> float | None:
    clocks = _cpu_mhz(files, name)
    return choose(clocks.values()) if clocks else None


def _current_mhz(files: _Files) -> dict[str, float]:
    clocks = _cpu_mhz(files, "scaling_cur_freq")
    if not clocks:  # virtual machines have no cpufreq; x86 tells the clock in /proc/cpuinfo
        told = re.findall(r"^cpu MHz\s*:\s*([\d.]+)", files.text("proc/cpuinfo") or "", re.MULTILINE)
        clocks = {f"cpu{core}": float(clock) for core, clock in enumerate(told)}
    for path in files.find("sys/class/devfreq/*/cur_freq"):
        if (clock := files.number(path)) is not None:
            clocks[path.parent.name] = clock / 1e6
    return clocks


def _device_clocks(files: _Files) -> dict[str, str]:
    clocks = {}
    for folder in files.find("sys/class/devfreq/*"):
        low, high = files.number(folder / "min_freq"), files.number(folder / "max_freq")
        if low is not None and high is not None:
            governor = files.text(folder / "governor") or "unknown"
            clocks[folder.name] = f"{governor}, {low / 1e6:g} to {high / 1e6:g} MHz"
    return clocks


def _boost(files: _Files) -> bool | None:
    allowed = files.number("sys/devices/system/cpu/cpufreq/boost")
    if allowed is not None:
        return allowed != 0
    forbidden = files.number("sys/devices/system/cpu/intel_pstate/no_turbo")
    return None if forbidden is None else forbidden == 0


def _cpu_limit(files: _Files) -> float | None:
    """The tightest limit among the process's control groups and those above them, version 2 or 1."""
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


def _affinity() -> tuple[int, ...] | None:
    return tuple(sorted(os.sched_getaffinity(0))) if hasattr(os, "sched_getaffinity") else None


def _cpu_time(files: _Files) -> tuple[float, float] | tuple[None, None]:
    """Busy and idle seconds since the start of the machine, of the cores that this process may use."""
    cores, ticks = _affinity(), {}
    for name, counts in re.findall(r"^cpu(\d+) ([\d ]+)$", files.text("proc/stat") or "", re.MULTILINE):
        if cores is None or int(name) in cores:
            # user, nice, system, idle, iowait, irq, softirq, steal; guest time beyond is in user already
            ticks[name] = [int(count) for count in counts.split()[:8]]
    if not ticks or not hasattr(os, "sysconf"):
        return None, None
    each_s = 1 / os.sysconf("SC_CLK_TCK")
    idle = sum(sum(counts[3:5]) for counts in ticks.values())
    return (sum(map(sum, ticks.values())) - idle) * each_s, idle * each_s


def _memory_mb(files: _Files, name: str) -> float | None:
    found = re.search(rf"^{name}:\s*(\d+) kB", files.text("proc/meminfo") or "", re.MULTILINE)
    return int(found[1]) / 1024 if found else None


def _load_average(files: _Files) -> tuple[float, ...] | None:
    words = (files.text("proc/loadavg") or "").split()
    return tuple(float(word) for word in words[:3]) or None


def _container(files: _Files) -> str | None:
    if (files.root / ".dockerenv").exists():
        return "docker"
    if (files.root / "run/.containerenv").exists():
        return "podman"
    found = re.search("kubepods|docker|lxc|containerd", files.text("proc/1/cgroup") or "")
    return found[0] if found else None


def _temperatures(files: _Files) -> dict[str, float]:
    """Thermal zones, and the sensors of processors that have no zone. A sensor that is switched off gives an error."""
    readings = {}
    for zone in files.find("sys/class/thermal/thermal_zone*"):
        readings[f"{files.text(zone / 'type')} {zone.name}"] = files.number(zone / "temp")
    for sensor in files.find("sys/class/hwmon/hwmon*/temp*_input"):
        name = f"{files.text(sensor.parent / 'name')} {sensor.name.removesuffix('_input')}"
        readings[name] = files.number(sensor)
    return {name: reading / 1e3 for name, reading in readings.items() if reading is not None}


def _throttle_events(files: _Files) -> dict[str, int]:
    """Intel's thermal counters, summed over cores, and a Jetson's over-current counters."""
    events: dict[str, int] = {}
    for kind in ("core_throttle_count", "package_throttle_count"):
        counts = [files.number(path) for path in files.cpus(f"thermal_throttle/{kind}").values()]
        if counts:
            events[kind] = sum(int(count) for count in counts if count is not None)
    for path in files.find("sys/class/hwmon/hwmon*/oc*_event_cnt"):
        if (count := files.number(path)) is not None:
            events[path.name] = int(count)
    return events


def _cooling(files: _Files) -> dict[str, int]:
    limits = {}
    for device in files.find("sys/class/thermal/cooling_device*"):
        kind, state = files.text(device / "type") or "", files.number(device / "cur_state")
        if state is not None and _LIMITER.search(kind):
            limits[f"{kind} {device.name}"] = int(state)
    return limits


def _runtime_packages() -> dict[str, tuple[str, ...]]:
    """The distributions that provide each runtime, by the name of its first."""
    return {entry.package: entry.packages for entry in list_formats()}


def _package_versions() -> dict[str, str]:
    versions = {}
    for package, names in {**{name: (name,) for name in _LIBRARIES}, **_runtime_packages()}.items():
        for name in names:
            try:
                versions[package] = importlib.metadata.version(name)
                break
            except importlib.metadata.PackageNotFoundError:
                continue
    return versions
