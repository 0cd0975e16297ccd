"""The search space: variants of the graph, and the settings that each is opened with."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from edgevit.export.forms import FORMS, STANDARD
from edgevit.export.quantization.groups import MAX_GROUPS, GroupChoice
from edgevit.formats import get_format, list_formats
from edgevit.precisions import get_policy, list_policies
from edgevit.runtimes.base import MAX_BATCH, MAX_THREADS, available_cores
from edgevit.runtimes.build import usable_version
from edgevit.runtimes.registry import get_runtime
from edgevit.runtimes.session_settings import SessionSettings
from edgevit.types import PRECISIONS, Precision
from edgevit.untrusted import JsonObject, integer, list_of, nullable, object_of, one_of, text
from edgevit.words import counted

MAX_STREAMS = 1 << 12
MAX_MS = 1e9  # largest time that is read from a file
EQUAL_TIME = 0.03  # fraction of the faster of two times within which they are equal, if nothing tells them apart


@dataclass(frozen=True, slots=True, kw_only=True)
class Variant:
    """An engine file: a runtime, a precision, an exact form of the graph, and groups of layers that were measured.

    A trial is an engine that only serves to measure one of them.
    """

    fmt: str
    precision: Precision
    batch: int = 1
    form: str = STANDARD
    groups: tuple[GroupChoice, ...] = ()
    keep_float: tuple[str, ...] = ()  # modules, of a trial: those that are in float for their accuracy

    @property
    def is_trial(self) -> bool:
        return any(choice.ratio is None for choice in self.groups)

    @property
    def exactness(self) -> int:
        """The place of the precision among all: 0 for the highest."""
        return PRECISIONS.index(self.precision)

    @property
    def name(self) -> str:
        """Such as "fp32-ort", "fp32-ort-native-norm" in another form, "int8-ort-by-gain" with measured groups."""
        name = f"{self.precision}-{self.fmt}{'' if self.form == STANDARD else f'-{self.form}'}"
        if self.batch > 1:
            name += f"-batch-{self.batch}"
        if self.is_trial:
            changed = (f"{choice.group}-in-{'int8' if choice.in_int8 else 'float'}" for choice in self.groups)
            return "-".join((name, *changed))
        return f"{name}-by-gain" if self.groups else name


@dataclass(frozen=True, slots=True, kw_only=True)
class Configuration:
    """A variant, the threads and session settings that it is opened with, and the inferences in flight."""

    variant: Variant
    threads: int
    streams: int | None = None  # inferences in flight under full load; None: one at a time, to measure the latency
    session: SessionSettings = field(default_factory=SessionSettings)

    @property
    def settings(self) -> str:
        """The threads, streams and settings in words, such as "2 threads, 4 streams, spinning off"."""
        count = counted(self.threads, "thread")
        if self.streams is not None:
            count += f", {counted(self.streams, 'stream')}"
        return f"{count}, {self.session}" if self.session.chosen else count

    @property
    def name(self) -> str:
        return f"{self.variant.name}: {self.settings}"

    @property
    def is_default(self) -> bool:
        """Whether form, layers and settings are those of an export without tuning, apart from the threads."""
        return self.variant.form == STANDARD and not self.variant.groups and not self.session.chosen

    def with_setting(self, name: str, value: str) -> Configuration:
        chosen = {**self.session.to_json(), name: value}
        return replace(self, session=get_runtime(self.variant.fmt).session_settings(chosen))

    def to_json(self) -> dict[str, Any]:
        variant = self.variant
        return {
            "fmt": variant.fmt,
            "precision": variant.precision,
            "batch": variant.batch,
            "form": variant.form,
            "groups": [choice.to_json() for choice in variant.groups],
            "threads": self.threads,
            "streams": self.streams,
            "session": self.session.to_json(),
        }

    @classmethod
    def parse(cls, fields: JsonObject) -> Configuration:
        """Raises InvalidError for a wrong field, UsageError for a setting that the runtime does not have."""
        fmt = fields.read("fmt", one_of(*(entry.name for entry in list_formats())))
        precision: Any = fields.read("precision", one_of(*PRECISIONS))
        session = get_runtime(fmt).session_settings(fields.read("session", object_of(text(most=64), most=64)))
        return cls(
            variant=Variant(
                fmt=fmt,
                precision=precision,
                batch=fields.read_or("batch", integer(1, MAX_BATCH), 1),
                form=fields.read("form", one_of(*FORMS)),
                groups=fields.read_or("groups", list_of(GroupChoice.parse, most=MAX_GROUPS), ()),
            ),
            threads=fields.read("threads", integer(1, MAX_THREADS)),
            streams=fields.read_or("streams", nullable(integer(1, MAX_STREAMS)), None),
            session=session,
        )


def usable_formats(names: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """Return the formats whose engines run here, and why others do not, by name.

    `names` are those to try; empty: all that engines are deployed in.
    """
    tried = [get_format(name).name for name in names] or [entry.name for entry in list_formats() if entry.deployable]
    missing = {name: usable_version(get_runtime(name))[1] for name in tried}
    return [name for name in tried if not missing[name]], {name: why for name, why in missing.items() if why}


def variants(formats: Sequence[str], *, calibrated: bool, batch: int = 1) -> list[Variant]:
    """Return the standard forms in each precision that the formats run here; int8 needs calibration images."""
    return [
        Variant(fmt=fmt, precision=policy.name, batch=batch)
        for policy in list_policies()
        if calibrated or not policy.needs_calibration
        for fmt in formats
        if get_runtime(fmt).runs_precision(policy.name)
    ]


def default_threads() -> tuple[int, ...]:
    """Return all cores and, since hyper-threads may slow one another down, half of them."""
    cores = available_cores()
    return tuple(dict.fromkeys((cores, max(1, cores // 2))))


def usable_threads(requested: Sequence[int]) -> tuple[int, ...]:
    """Return the numbers of threads to try: those requested that this process has cores for, or all cores.

    None requested: the default. With more threads than cores, a runtime starts fewer, so that the same engine would
    race twice, or they wait for one another.
    """
    cores = available_cores()
    if not requested:
        return default_threads()
    return tuple(dict.fromkeys(count for count in requested if count <= cores)) or (cores,)


def single_changes(start: Configuration, *, of_precision: bool = False) -> Iterator[Configuration]:
    """Yield the configurations that differ from `start` in one session setting that can matter.

    With `of_precision`, only in one that lowers the precision of the float operators.
    """
    runtime, converted = get_runtime(start.variant.fmt), get_policy(start.variant.precision).converts_graph
    for setting in runtime.settings:
        if (setting.of_threads and start.threads == 1) or (setting.of_precision and not converted):
            continue
        if (setting.of_streams and start.streams is not None) or (of_precision and not setting.of_precision):
            continue
        for value in runtime.usable_values(setting):
            if value != start.session.get(setting):
                yield start.with_setting(setting.name, value)


def opened_like(configuration: Configuration, found: Configuration) -> Configuration:
    """Return a configuration with the threads, streams and session settings of another one of its runtime.

    A setting that lowers the precision stays with the engine that it was measured on.
    """
    runtime = get_runtime(configuration.variant.fmt)
    own = {setting.name for setting in runtime.settings if setting.of_precision}
    chosen = {name: value for name, value in found.session.chosen if name not in own}
    chosen |= {name: value for name, value in configuration.session.chosen if name in own}
    session = runtime.session_settings(chosen)
    return replace(configuration, threads=found.threads, streams=found.streams, session=session)


def combined(start: Configuration, changes: Sequence[Configuration]) -> Configuration:
    """Return `start` with the session settings of all of `changes`; of two values of a setting, the first."""
    chosen = dict(start.session.chosen)
    for change in reversed(changes):
        chosen |= {name: value for name, value in change.session.chosen if (name, value) not in start.session.chosen}
    return replace(start, session=get_runtime(start.variant.fmt).session_settings(chosen))
