"""Whether the clocks that decide a latency are locked."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from edgevit.errors import MeasureError
from edgevit.latency.environment import Environment

_FIXING_GOVERNORS = frozenset({"performance", "userspace"})  # they choose no clock by the load
_GPU_DEVICE = re.compile(r"gpu|gpc|ga10b|gv11b|gp10b", re.IGNORECASE)  # names of devfreq devices
_RANGE = re.compile(r"(?P<governor>.*), (?P<low>[\d.e+]+) to (?P<high>[\d.e+]+) MHz")
_LOCK = "sudo jetson_clocks on a Jetson, else sudo cpupower frequency-set -g performance with boost off"


@dataclass(frozen=True, slots=True)
class Setting:
    """A clock, and whether it is locked; None if the system does not report it."""

    name: str
    locked: bool | None
    evidence: str

    @property
    def state(self) -> str:
        return {True: "locked", False: "floating", None: "unknown"}[self.locked]


def clock_settings(environment: Environment, *, on_gpu: bool) -> tuple[Setting, ...]:
    """Return the setting of the processor's clock and, for engines on a GPU, of each clock of the GPU."""
    return (_processor(environment), *(_gpus(environment) if on_gpu else ()))


def require_locked(environment: Environment, *, on_gpu: bool) -> None:
    """Raise MeasureError, naming the clocks, unless the system reports that all of them are locked."""
    settings = clock_settings(environment, on_gpu=on_gpu)
    floating = [f"{each.name} ({each.evidence})" for each in settings if each.locked is False]
    if floating:
        raise MeasureError(f"not locked: {'; '.join(floating)}; lock it ({_LOCK}), or leave --require-locked out")
    unknown = [f"{each.name} ({each.evidence})" for each in settings if each.locked is None]
    if unknown:
        raise MeasureError(f"cannot tell whether it is locked: {'; '.join(unknown)}; leave --require-locked out")


def _processor(environment: Environment) -> Setting:
    low, high, governor, boost = environment.min_mhz, environment.max_mhz, environment.governor, environment.boost
    known = [
        *([f"governor {governor}"] if governor else []),
        *([f"{low:g} to {high:g} MHz"] if low is not None and high is not None else []),
        *([f"boost {'on' if boost else 'off'}"] if boost is not None else []),
    ]
    if not known:
        return Setting("processor clock", None, "no governor and no clock range reported")
    fixed = low is not None and low == high
    if governor is not None:  # the governors of all cores
        fixed = fixed or set(governor.split(", ")) <= _FIXING_GOVERNORS
    elif low is None:
        return Setting("processor clock", None, ", ".join(known))
    return Setting("processor clock", fixed and boost is not True, ", ".join(known))


def _gpus(environment: Environment) -> Iterator[Setting]:
    found = {name: text for name, text in environment.device_clocks.items() if _GPU_DEVICE.search(name)}
    for name, text in found.items():
        matched = _RANGE.fullmatch(text)
        locked = None
        if matched is not None:
            locked = float(matched["low"]) == float(matched["high"]) or matched["governor"] in _FIXING_GOVERNORS
        yield Setting(f"clock of {name}", locked, text)
    if not found:
        yield Setting("GPU clock", None, "the driver does not report whether it is locked")
