"""Fake roots: the system files of an Orin, a Thor, an Intel machine and a server, as recorded or documented.

Paths, names and numbers of the Jetsons follow recordings of real boards (over-current counters of a healthy AGX Orin,
devfreq names of both).
"""

from __future__ import annotations

from pathlib import Path

ORIN = {
    "proc/device-tree/model": "NVIDIA Jetson AGX Orin Developer Kit\0",
    "etc/nv_tegra_release": "# R36 (release), REVISION: 4.3, GCID: 1, BOARD: generic",
    "proc/loadavg": "0.50 0.25 0.12 1/300 999\n",
    "var/lib/nvpmodel/status": "pmode:0002 fmode:quiet\n",
    "sys/class/devfreq/17000000.gpu/cur_freq": "1300500000\n",
    "sys/class/devfreq/17000000.gpu/device/load": "873\n",
    "sys/kernel/debug/bpmp/debug/clk/emc/rate": "3199000000\n",
    "sys/class/thermal/thermal_zone0/type": "cpu-thermal\n",
    "sys/class/thermal/thermal_zone0/temp": "52968\n",
    "sys/class/thermal/thermal_zone1/type": "gpu-thermal\n",
    "sys/class/thermal/thermal_zone1/temp": "47625\n",
    "sys/class/thermal/thermal_zone2/type": "cv0-thermal\n",  # switched off: its temp cannot be read
    "sys/class/thermal/cooling_device0/type": "pwm-fan\n",
    "sys/class/thermal/cooling_device0/cur_state": "2\n",
    "sys/class/thermal/cooling_device1/type": "devfreq-17000000.gpu\n",
    "sys/class/thermal/cooling_device1/cur_state": "0\n",
    "sys/class/hwmon/hwmon1/name": "soctherm_oc\n",
    "sys/class/hwmon/hwmon1/oc1_event_cnt": "0\n",
    "sys/class/hwmon/hwmon1/oc2_event_cnt": "15\n",
    "sys/class/hwmon/hwmon1/oc3_event_cnt": "37\n",
    "sys/class/hwmon/hwmon2/name": "ina3221\n",
    "sys/class/hwmon/hwmon2/in1_label": "VDD_GPU_SOC\n",
    "sys/class/hwmon/hwmon2/in1_input": "19056\n",
    "sys/class/hwmon/hwmon2/curr1_input": "250\n",
    "sys/class/hwmon/hwmon2/in4_label": "Sum of shunt voltages\n",  # no rail: it has no current
    "sys/class/hwmon/hwmon2/in4_input": "12\n",
    "sys/class/hwmon/hwmon3/name": "pwmfan\n",
    "sys/class/hwmon/hwmon3/pwm1": "77\n",
    **{f"sys/devices/system/cpu/cpu{core}/cpufreq/scaling_cur_freq": "2201600\n" for core in range(2)},
}
THOR = {
    "proc/device-tree/model": "NVIDIA Jetson AGX Thor Developer Kit\0",
    "proc/loadavg": "1.00 1.00 1.00 1/300 999\n",
    "sys/class/devfreq/gpu-gpc-0/cur_freq": "1575000000\n",
    "sys/class/hwmon/hwmon0/name": "soctherm_oc\n",
    "sys/class/hwmon/hwmon0/oc3_event_cnt": "179\n",
}
INTEL = {
    "proc/loadavg": "0.10 0.10 0.10 1/300 999\n",
    "proc/stat": "cpu  9 9 9 9 9 9 9 9 9 9\ncpu0 100 0 50 800 50 0 0 10 0 0\n",
    "sys/class/powercap/intel-rapl:0/name": "package-0\n",
    "sys/class/powercap/intel-rapl:0/energy_uj": "5000000\n",
    "sys/class/powercap/intel-rapl:0/max_energy_range_uj": "262143328850\n",
    "sys/class/powercap/intel-rapl:0:0/name": "core\n",  # a part of the package
    "sys/class/powercap/intel-rapl:0:0/energy_uj": "3000000\n",
    "sys/class/powercap/intel-rapl:0:0/max_energy_range_uj": "262143328850\n",
    "sys/class/hwmon/hwmon0/name": "coretemp\n",
    "sys/class/hwmon/hwmon0/temp1_input": "61000\n",
    **{
        f"sys/devices/system/cpu/cpu{core}/{name}": text
        for core in range(2)
        for name, text in {
            "cpufreq/scaling_cur_freq": f"{3600000 - 1200000 * core}\n",
            "thermal_throttle/core_throttle_count": f"{4 + core}\n",
            "thermal_throttle/package_throttle_count": "0\n",
        }.items()
    },
}


def write_root(folder: Path, files: dict[str, str]) -> Path:
    for path, text in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(text)
    return folder
