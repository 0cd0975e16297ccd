"""`edgevit doctor`: describe this machine and the runtimes installed on it."""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Iterable
from typing import TYPE_CHECKING

from edgevit.cli.console import Console
from edgevit.cli.parser import Arguments, Command
from edgevit.cli.tables import make_table

if TYPE_CHECKING:
    from rich.table import Table

    from edgevit.latency.environment import Environment
    from edgevit.latency.sampling.channel import Channel
    from edgevit.runtimes.base import Runtime


def add_arguments(_parser: argparse.ArgumentParser) -> None:
    """Add no arguments."""


def run(_arguments: Arguments, console: Console) -> int:
    """Print the machine's properties, and each runtime with its version or the reason why it does not work."""
    from edgevit.formats import list_formats
    from edgevit.latency.environment import Environment
    from edgevit.latency.sampling.sampler import device_channels
    from edgevit.runtimes.build import usable_version
    from edgevit.runtimes.registry import get_runtime

    environment = Environment.capture()
    runtimes = [get_runtime(entry.name) for entry in list_formats()]
    versions = [(runtime, *usable_version(runtime)) for runtime in runtimes]
    channels = device_channels()
    console.result(doctor_table(environment, versions, channels))
    console.finish(
        {
            "environment": environment.to_json(),
            "sensors": [{"name": channel.name, "kind": channel.kind, "unit": channel.unit} for channel in channels],
            "runtimes": {runtime.fmt: version for runtime, version, _ in versions},
            "unusable": {runtime.fmt: reason for runtime, version, reason in versions if version is None},
        }
    )
    return 0


def doctor_table(
    environment: Environment, versions: Iterable[tuple[Runtime, str | None, str]], channels: Iterable[Channel] = ()
) -> Table:
    """Return the machine's properties, and each runtime with its version or the reason why it does not work.

    `channels` are the sensors that a latency measurement reads.
    """
    table = make_table("This machine", "item", "value", left=2)
    properties = {
        "processor": f"{environment.cpu or environment.architecture}, {environment.logical_cores} cores",
        "instructions": " ".join(environment.isa) or "unknown",
        "memory": f"{environment.memory_total_mb / 1024:.1f} GiB" if environment.memory_total_mb else "unknown",
        "system": f"{environment.os}, kernel {environment.kernel}",
        "board": environment.jetson or environment.board or "unknown",
        "GPU": ", ".join(environment.gpus) or "none found",
        "clocks": f"governor {environment.governor or 'unknown'}, power mode {environment.power_mode or 'unknown'}",
        "sensors": _counted(channels) or "none that this user can read",
        "Python": environment.python,
        **environment.packages,
    }
    for name, value in properties.items():
        table.add_row(name, value)
    for runtime, version, reason in versions:
        table.add_row(f"--fmt {runtime.fmt}", f"{runtime.title} {version}" if version else reason)
    return table


def _counted(channels: Iterable[Channel]) -> str:
    """Return the number of channels of each kind, such as "2 clock, 3 temperature"."""
    kinds = Counter(channel.kind.replace("_", " ") for channel in channels)
    return ", ".join(f"{count} {kind}" for kind, count in kinds.items())


COMMAND = Command(
    name="doctor",
    help="describe this machine and the runtimes installed on it",
    add_arguments=add_arguments,
    run=run,
)
