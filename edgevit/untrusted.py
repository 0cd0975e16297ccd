"""Read untrusted files: regular files of limited size, and JSON checked field by field."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

T = TypeVar("T")
Json: TypeAlias = Mapping[str, Any]
Parser: TypeAlias = Callable[[Any, str], T]  # a JSON value and its place in the file, such as "build.batch"

MAX_TEXT = 4096  # characters
MAX_ITEMS = 100_000
MAX_INTEGER = 2**63 - 1
_SHOWN = 40  # characters of a wrong value in an error message
_MISSING = object()


class InvalidError(ValueError):
    """Invalid content of a file; the message names the field."""


def open_regular(path: Path) -> int:
    """Open a file for reading and return its descriptor. Raises OSError if it cannot be opened or is not regular.

    Opening a FIFO would wait for a writer, and reading a device such as /dev/zero would never end.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(None, "not a regular file", str(path))
    return descriptor


def read_limited(path: Path, *, limit_bytes: int) -> bytes:
    """Read a regular file. Raises OSError if it cannot be read or is not regular, InvalidError if it is too large."""
    with open(open_regular(path), "rb") as file:  # a descriptor, not a path
        content = file.read(limit_bytes + 1)
    if content is None:  # files of /proc may have nothing to read yet
        raise OSError(None, "not a regular file", str(path))
    if len(content) > limit_bytes:
        raise InvalidError(f"larger than {limit_bytes >> 20} MB")
    return content


def read_json(path: Path, *, limit_bytes: int) -> Any:
    """Read a JSON file. Raises OSError as `read_limited`, InvalidError for content that is not JSON in UTF-8."""
    content = read_limited(path, limit_bytes=limit_bytes)
    try:
        return json.loads(content.decode("utf-8"), parse_constant=_reject_constant)
    except RecursionError as error:
        raise InvalidError("nested too deeply") from error
    except ValueError as error:
        raise InvalidError(f"not JSON: {error}") from error


def _reject_constant(name: str) -> None:
    raise ValueError(f"{name} is not a number in JSON")


@dataclass(frozen=True, slots=True)
class JsonObject:
    """A JSON object whose fields are read one by one. `place` is where it is in the file; empty for the file itself."""

    values: Json
    place: str = ""

    @classmethod
    def of(cls, value: Any, place: str = "") -> JsonObject:
        """Raise InvalidError unless `value` is an object."""
        if not isinstance(value, Mapping):
            raise InvalidError(f"{place or 'the content'} is {shorten(value)}, expected an object")
        return cls(value, place)

    def read(self, key: str, parse: Parser[T]) -> T:
        """Parse a field. Raises InvalidError if it is missing or has another type or value than expected."""
        value = self.values.get(key, _MISSING)
        if value is _MISSING:
            raise InvalidError(f"{self._place_of(key)} is missing")
        return parse(value, self._place_of(key))

    def read_or(self, key: str, parse: Parser[T], default: T) -> T:
        """Parse a field that may be missing."""
        return self.read(key, parse) if key in self.values else default

    def _place_of(self, key: str) -> str:
        return f"{self.place}.{key}" if self.place else key


def text(*, most: int = MAX_TEXT) -> Parser[str]:
    """A string of at most `most` characters, without NUL."""

    def parse(value: Any, place: str) -> str:
        if not isinstance(value, str):
            raise InvalidError(f"{place} is {shorten(value)}, expected a string")
        if len(value) > most or "\0" in value:
            raise InvalidError(f"{place} is {shorten(value)}, expected at most {most} characters and no NUL")
        return value

    return parse


SHA256 = text(most=64)  # in hexadecimal


def integer(least: int = 0, most: int = MAX_INTEGER) -> Parser[int]:
    """A whole number from `least` to `most`; not true or false."""

    def parse(value: Any, place: str) -> int:
        if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
            raise InvalidError(f"{place} is {shorten(value)}, expected a whole number from {least} to {most}")
        return value

    return parse


def number(least: float, most: float) -> Parser[float]:
    """A number from `least` to `most`; not true, false or NaN."""

    def parse(value: Any, place: str) -> float:
        if not isinstance(value, (int, float)) or isinstance(value, bool) or not least <= value <= most:
            raise InvalidError(f"{place} is {shorten(value)}, expected a number from {least:g} to {most:g}")
        return value

    return parse


def one_of(*choices: str) -> Parser[str]:
    """One of several strings."""

    def parse(value: Any, place: str) -> str:
        if value not in choices:
            raise InvalidError(f"{place} is {shorten(value)}, expected one of {', '.join(choices)}")
        return str(value)

    return parse


def boolean(value: Any, place: str) -> bool:
    """Parse true or false."""
    if not isinstance(value, bool):
        raise InvalidError(f"{place} is {shorten(value)}, not true or false")
    return value


def nullable(parse: Parser[T]) -> Parser[T | None]:
    """A value or null."""
    return lambda value, place: None if value is None else parse(value, place)


def list_of(parse: Parser[T], *, least: int = 0, most: int = MAX_ITEMS) -> Parser[tuple[T, ...]]:
    """A list of values of one kind."""

    def parse_list(value: Any, place: str) -> tuple[T, ...]:
        if not isinstance(value, list) or not least <= len(value) <= most:
            raise InvalidError(f"{place} is {shorten(value)}, expected a list of {least} to {most} values")
        return tuple(parse(each, f"{place}[{index}]") for index, each in enumerate(value))

    return parse_list


def object_of(parse: Parser[T], *, most: int = MAX_ITEMS) -> Parser[dict[str, T]]:
    """An object with any keys and values of one kind."""

    def parse_object(value: Any, place: str) -> dict[str, T]:
        fields = JsonObject.of(value, place)
        if len(fields.values) > most:
            raise InvalidError(f"{place} has {len(fields.values)} entries, expected at most {most}")
        key_of = text()
        return {key_of(key, f"a key of {place}"): fields.read(key, parse) for key in fields.values}

    return parse_object


def any_object(value: Any, place: str) -> Json:
    """An object whose content is not read, only kept."""
    return JsonObject.of(value, place).values


def shorten(value: Any) -> str:
    """A JSON value for an error message, cut after 40 characters."""
    try:
        shown = json.dumps(value)
    except (TypeError, ValueError, RecursionError):
        shown = type(value).__name__
    return shown if len(shown) <= _SHOWN else f"{shown[:_SHOWN]}..."
