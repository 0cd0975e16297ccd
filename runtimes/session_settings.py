"""Settings of an inference session, which decide its speed and memory, not the network that it computes.

One kind also decides the precision of the float operators of an int8 bundle (`Setting.of_precision`).

Each runtime declares its settings as `Runtime.settings`. `edgevit tune` finds the values, a bundle's manifest records
them, and the engine is opened with them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from edgevit.errors import UsageError, unknown_name


@dataclass(frozen=True, slots=True)
class Setting:
    """A setting of a runtime. The first of its values is what an engine runs with unless another one is chosen."""

    name: str
    values: tuple[str, ...]
    of_threads: bool = False  # whether it only matters to an engine with several threads
    of_streams: bool = False  # whether the number of inferences in flight decides it
    of_precision: bool = False  # whether it lowers the precision of the float operators; only int8 bundles take it

    @property
    def default(self) -> str:
        return self.values[0]


@dataclass(frozen=True, slots=True)
class SessionSettings:
    """The settings that differ from the runtime's defaults, as (name, value), sorted by name."""

    chosen: tuple[tuple[str, str], ...] = ()

    @classmethod
    def of(cls, chosen: Mapping[str, str], known: Sequence[Setting], *, runtime: str) -> SessionSettings:
        """Return `chosen` without defaults. Raises UsageError for a name or value that `known` does not have."""
        by_name = {setting.name: setting for setting in known}
        for name, value in chosen.items():
            if name not in by_name:
                if not by_name:
                    raise UsageError(f"{runtime} has no session settings; {name} is not one")
                raise unknown_name(f"session setting of {runtime}", name, by_name)
            if value not in by_name[name].values:
                raise unknown_name(f"value of {runtime}'s session setting {name}", value, by_name[name].values)
        return cls(tuple(sorted((name, value) for name, value in chosen.items() if value != by_name[name].default)))

    def to_json(self) -> dict[str, str]:
        return dict(self.chosen)

    def get(self, setting: Setting) -> str:
        """Return the value of a setting: the chosen one, or the default."""
        return dict(self.chosen).get(setting.name, setting.default)

    def __str__(self) -> str:
        """The settings in words, such as "spinning off, arena off"; empty if all are the defaults."""
        return ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in self.chosen)
