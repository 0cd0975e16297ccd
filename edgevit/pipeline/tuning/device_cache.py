"""The engines that were found on this machine, kept for `edgevit export --fmt auto`.

A file holds the engines of one graph in one environment: $EDGEVIT_CACHE/tuned/<key>.json.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import statistics
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast, get_args

import edgevit
from edgevit.errors import MissingError, UsageError
from edgevit.export.graph import OnnxGraph
from edgevit.files import cache_folder, os_reason, write_atomically
from edgevit.formats import Int8Range
from edgevit.latency.environment import Environment
from edgevit.pipeline.tuning.space import EQUAL_TIME, MAX_MS, Configuration
from edgevit.types import Precision
from edgevit.untrusted import InvalidError, JsonObject, integer, list_of, number, one_of, read_json, text

_LOG = logging.getLogger(__name__)
SCHEMA = 1
_MAX_BYTES = 1 << 20
_MAX_CHOICES = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """An engine that passed every check when it was tuned."""

    configuration: Configuration
    p50_ms: float
    accuracy: str  # in words, such as "SNR 121 dB"
    int8_range: Int8Range = "safe"  # of the weights of an int8 engine

    def to_json(self) -> dict[str, Any]:
        return {
            **self.configuration.to_json(),
            "p50_ms": self.p50_ms,
            "accuracy": self.accuracy,
            "int8_range": self.int8_range,
        }

    @classmethod
    def parse(cls, value: Any, place: str) -> Choice:
        fields = JsonObject.of(value, place)
        try:
            configuration = Configuration.parse(fields)
        except UsageError as error:
            raise InvalidError(f"{place}: {error}") from error
        return cls(
            configuration=configuration,
            p50_ms=fields.read("p50_ms", number(0, MAX_MS)),
            accuracy=fields.read("accuracy", text(most=255)),
            int8_range=cast(Int8Range, fields.read_or("int8_range", one_of(*get_args(Int8Range)), "safe")),
        )


def device_key(graph: OnnxGraph) -> str:
    """Return the key of a graph on this machine: a hash of the graph, the environment and edgevit's version."""
    content = [SCHEMA, edgevit.__version__, Environment.capture().key(), graph.sha256]
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()[:32]


def cache_file(key: str) -> Path:
    """Return the file of a key. Raises MissingError without a cache folder."""
    return cache_folder() / "tuned" / f"{key}.json"


def write_choices(key: str, model: str, choices: Sequence[Choice], *, refused: Collection[str] = ()) -> bool:
    """Add the engines that passed, the recommended one first, to those that earlier searches found.

    Of those, engines in `refused`, which has names of configurations and variants, are removed. Returns False if the
    file cannot be written.
    """
    merged = merge(choices, read_choices(key), refused=refused)
    content = {"schema": SCHEMA, "model": model, "choices": [choice.to_json() for choice in merged]}
    with contextlib.suppress(OSError, MissingError):
        file = cache_file(key)
        file.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(file, json.dumps(content, indent=2, allow_nan=False) + "\n")
        return True
    return False


def merge(new: Sequence[Choice], earlier: Sequence[Choice], *, refused: Collection[str] = ()) -> tuple[Choice, ...]:
    """Return the engines of a search and of earlier ones: the better of the two recommendations first, then by time.

    `new` and `earlier` have the recommended one first. An engine in both counts as a new one. Machines are not always
    equally busy: the earlier times are scaled by those of the engines in both before they are compared.
    """
    again = {choice.configuration.name: choice.p50_ms for choice in new}
    removed = {*again, *refused}
    kept = [
        choice
        for choice in earlier
        if removed.isdisjoint({choice.configuration.name, choice.configuration.variant.name})
    ]
    changes = [again[name] / each.p50_ms for each in earlier if (name := each.configuration.name) in again]
    scale = statistics.median(changes) if changes else 1.0
    first = new[0]
    # If the search has measured the earlier recommendation again, its own one is the better.
    if kept and earlier[0].configuration.name not in again and _is_better(kept[0], first, scale=scale):
        first = kept[0]
    timed = [*((choice.p50_ms, choice) for choice in new), *((scale * choice.p50_ms, choice) for choice in kept)]
    others = [choice for _, choice in sorted(timed, key=lambda each: each[0]) if choice is not first]
    return (first, *others)[:_MAX_CHOICES]


def _is_better(earlier: Choice, new: Choice, *, scale: float) -> bool:
    """Whether an earlier recommendation is faster than the new one, or as fast and more exact."""
    ratio = scale * earlier.p50_ms / new.p50_ms
    if 1 / (1 + EQUAL_TIME) <= ratio <= 1 + EQUAL_TIME:
        return earlier.configuration.variant.exactness < new.configuration.variant.exactness
    return ratio < 1


def read_choices(key: str) -> tuple[Choice, ...]:
    """Return the engines that were found, the recommended one first; none if nothing is stored.

    A damaged file is ignored, with a warning.
    """
    try:
        file = cache_file(key)
    except MissingError:
        return ()
    try:
        fields = JsonObject.of(read_json(file, limit_bytes=_MAX_BYTES))
        fields.read("schema", integer(SCHEMA, SCHEMA))
        return fields.read("choices", list_of(Choice.parse, most=_MAX_CHOICES))
    except FileNotFoundError:
        return ()
    except (OSError, InvalidError) as error:
        reason = os_reason(error) if isinstance(error, OSError) else error
        _LOG.warning("edgevit: %s is damaged and is ignored (%s)", file, reason)
        return ()


def choose(
    choices: Sequence[Choice], *, precision: Precision | None, threads: int | None, calibrated: bool
) -> tuple[Choice | None, str]:
    """Return the engine to export, and a note if a better one needs calibration images; None if none fits.

    `precision` and `threads` are those requested; None: any.
    """
    fitting = [
        choice
        for choice in choices
        if precision in (None, choice.configuration.variant.precision)
        and threads in (None, choice.configuration.threads)
    ]
    possible = [each for each in fitting if calibrated or each.configuration.variant.precision != "int8"]
    if not possible:
        return None, ""
    note = ""
    if fitting[0] is not possible[0]:
        faster = fitting[0]
        note = f"{faster.configuration.name} took {faster.p50_ms:.2f} ms; give --calib DIR for it"
    return possible[0], note
