"""Channels of a Jetson, an Intel machine and a server's GPUs, from fake system files and a fake NVML."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from edgevit.latency.sampling import nvml
from edgevit.latency.sampling.board import board_sources
from edgevit.latency.sampling.channel import Source
from edgevit.latency.sampling.nvml import Nvml, gpu_energy_sources, gpu_sources, gpus_with, nvml_session
from edgevit.latency.sampling.processor import energy_sources, processor_sources
from edgevit.latency.system_files import SystemFiles, temperatures_c
from tests.fakes.machines import INTEL, ORIN, THOR, write_root
from tests.fakes.nvml import FakeGpu, FakeLibrary, eight_gpus, loader

Reading = dict[tuple[str, str], float | None]  # by name and kind


def read(*sources: Source) -> Reading:
    """One reading of the channels that exist."""
    return values(kept(*sources))


def kept(*sources: Source) -> list[Source]:
    return [source for each in sources if (source := each.kept())]


def values(sources: list[Source]) -> Reading:
    return {
        (channel.name, channel.kind): value
        for source in sources
        for channel, value in zip(source.channels, source.read(), strict=True)
    }


@pytest.fixture(autouse=True)
def _two_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1}, raising=False)


def test_the_channels_of_an_orin(tmp_path: Path) -> None:
    files = SystemFiles(write_root(tmp_path, ORIN))
    assert read(*board_sources(files)) == {
        ("17000000.gpu", "clock"): 1300.5,
        ("17000000.gpu busy", "utilization"): 87.3,
        ("emc", "clock"): 3199,
        ("cpu-thermal thermal_zone0", "temperature"): 52.968,
        ("gpu-thermal thermal_zone1", "temperature"): 47.625,
        ("devfreq-17000000.gpu cooling_device1", "limit"): 0,  # the fan is not a limit
        ("oc1_event_cnt", "throttle"): 0,
        ("oc2_event_cnt", "throttle"): 15,
        ("oc3_event_cnt", "spikes"): 37,
        ("pwmfan pwm1", "fan"): 77,
        ("VDD_GPU_SOC", "power"): 4.764,
        ("nvpmodel", "mode"): 2,
    }
    assert read(*processor_sources(files)) == {
        ("cpu0", "clock"): 2201.6,
        ("cpu1", "clock"): 2201.6,
        ("load", "load"): 0.5,
    }
    assert read(*energy_sources(files)) == {}


def test_a_sensor_whose_part_of_the_chip_is_off_gives_no_temperature_until_it_is_on(tmp_path: Path) -> None:
    """JetPack 5 gives -256 C for it, as tegrastats shows: "GPU@-256C"."""
    zone = write_root(tmp_path, ORIN) / "sys/class/thermal/thermal_zone1/temp"
    zone.write_text("-256000\n")
    files = SystemFiles(tmp_path)
    assert temperatures_c(files) == {"cpu-thermal thermal_zone0": 52.968}
    sources = kept(*board_sources(files))
    assert values(sources)["gpu-thermal thermal_zone1", "temperature"] is None
    zone.write_text("47625\n")
    assert values(sources)["gpu-thermal thermal_zone1", "temperature"] == 47.625


def test_the_channels_of_a_thor(tmp_path: Path) -> None:
    assert read(*board_sources(SystemFiles(write_root(tmp_path, THOR)))) == {
        ("gpu-gpc-0", "clock"): 1575,
        ("oc3_event_cnt", "spikes"): 179,
    }


def test_the_channels_of_an_intel_machine(tmp_path: Path) -> None:
    files = SystemFiles(write_root(tmp_path, INTEL))
    found = read(*processor_sources(files))
    own = found.pop(("this process", "time"))
    assert own is not None and own > 0
    tick_s = 1 / os.sysconf("SC_CLK_TCK")
    assert found == {
        ("cpu0", "clock"): 3600,
        ("cpu1", "clock"): 2400,
        ("core_throttle_count", "throttle"): 9,
        ("package_throttle_count", "throttle"): 0,
        ("cores busy", "time"): pytest.approx(160 * tick_s),
        ("cores idle", "time"): pytest.approx(850 * tick_s),
        ("cores stolen", "time"): pytest.approx(10 * tick_s),
        ("load", "load"): 0.1,
    }
    assert read(*board_sources(files)) == {("coretemp temp1", "temperature"): 61}
    assert read(*energy_sources(files)) == {("rapl 0 package-0", "energy"): 5}  # its parts are not added to it


def test_the_energy_of_a_package_goes_on_when_its_counter_starts_again(tmp_path: Path) -> None:
    folder = write_root(tmp_path, INTEL) / "sys/class/powercap/intel-rapl:0"
    (source,) = energy_sources(SystemFiles(tmp_path))
    (folder / "energy_uj").write_text("262143000000")
    (before,) = source.read()
    (folder / "energy_uj").write_text("671150")
    (after,) = source.read()
    assert before is not None and after is not None and after - before == pytest.approx(1)


def test_a_counter_that_may_not_be_read_is_absent(tmp_path: Path) -> None:
    (write_root(tmp_path, INTEL) / "sys/class/powercap/intel-rapl:0/energy_uj").unlink()  # root's only, on most systems
    assert read(*energy_sources(SystemFiles(tmp_path))) == {}


def test_a_machine_without_sensors_has_no_channels(tmp_path: Path) -> None:
    files = SystemFiles(tmp_path)
    assert read(*board_sources(files), *processor_sources(files), *energy_sources(files)) == {}


def opened(library: FakeLibrary) -> Nvml:
    library.nvmlInit_v2()
    return Nvml(library)


def test_only_the_gpu_of_the_measurement_is_read_on_a_server_with_eight() -> None:
    server = opened(eight_gpus())
    (third,) = gpus_with(server, ["27037c3f-65c8-ec4d-24a9-420204ad8026"]).items()  # CUDA's form of the UUID
    found = read(*gpu_sources(dict([third])), *gpu_energy_sources(dict([third])))
    assert found == {
        ("gpu 27037c3f sm", "clock"): 210,
        ("gpu 27037c3f memory", "clock"): 405,
        ("gpu 27037c3f", "temperature"): 41,
        ("gpu 27037c3f", "power"): 8.44,
        ("gpu 27037c3f", "energy"): 4000,
        ("gpu 27037c3f reasons", "limit"): 0,  # idle is no limit, and the others' limits are not ours
        ("gpu 27037c3f power cap", "throttle_time"): 4251825.415,
        ("gpu 27037c3f software thermal", "throttle_time"): 0,
        ("gpu 27037c3f hardware thermal", "throttle_time"): 0,
        ("gpu 27037c3f others", "processes"): 1,
    }
    assert gpus_with(server, ["", "GPU-unknown"]) == {}


def test_one_quantity_that_a_gpu_refuses_leaves_out_no_other() -> None:
    orin = FakeGpu("GPU-0", "Orin (nvgpu)", None, None, None, None, None, {}, (7,))
    library = FakeLibrary([orin])
    assert read(*gpu_sources(gpus_with(opened(library), ["0"]))) == {}  # process 7 is not us: others are unknown
    orin.temperature_c, orin.reasons = 47, 0x60
    library.nvmlDeviceGetPowerUsage = None  # type: ignore[assignment, method-assign]  # a driver without the function
    assert read(*gpu_sources(gpus_with(opened(library), ["0"]))) == {
        ("gpu 0", "temperature"): 47,
        ("gpu 0 reasons", "limit"): 0x60,
    }


def test_the_library_is_closed_and_a_machine_without_it_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    library = eight_gpus()
    monkeypatch.setattr("ctypes.CDLL", loader(library))
    with nvml_session() as session:
        assert session is not None and session.driver == "595.84" and len(list(session.gpus())) == 8
    assert not library.is_open
    monkeypatch.undo()
    monkeypatch.setattr(nvml, "LIBRARY", "libno-such-library.so")
    with nvml_session() as session:
        assert session is None
