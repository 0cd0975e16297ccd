"""Encode and read protobuf fields without the messages, which hold copies of all weights.

A message is a row of fields: a tag with the field's number and type, then the value
(https://protobuf.dev/programming-guides/encoding).
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypeAlias

Buffer: TypeAlias = bytes | mmap.mmap

_VARINT, _FIXED_64, _WITH_LENGTH, _FIXED_32 = 0, 1, 2, 5  # types of values


@dataclass(frozen=True, slots=True)
class Field:
    """Position of a field in a buffer: from its tag at `start`, and from its value at `value`, to `end`."""

    number: int
    start: int
    value: int
    end: int


def fields(buffer: Buffer, start: int, end: int) -> Iterator[Field]:
    """Yield the fields of the message between two positions. Raises ValueError if it is damaged."""
    while start < end:
        tag, value = _read_varint(buffer, start)
        kind = tag & 7
        if kind == _VARINT:
            _, stop = _read_varint(buffer, value)
        elif kind == _WITH_LENGTH:
            length, value = _read_varint(buffer, value)
            stop = value + length
        elif kind in (_FIXED_64, _FIXED_32):
            stop = value + (8 if kind == _FIXED_64 else 4)
        else:
            raise ValueError(f"a field at byte {start} has the unknown type {kind}")
        if stop > end:
            raise ValueError(f"a field at byte {start} ends at {stop}, behind its message, which ends at {end}")
        yield Field(tag >> 3, start, value, stop)
        start = stop


def encode_prefix(number: int, length: int) -> bytes:
    """Return the tag of a field with a length in front, and the length."""
    return _varint(number << 3 | _WITH_LENGTH) + _varint(length)


def encode_bytes(number: int, value: bytes) -> bytes:
    """Return a field with a length in front: text, bytes or a message."""
    return encode_prefix(number, len(value)) + value


def encode_number(number: int, value: int) -> bytes:
    """Return a field with an integer of at least 0, or an enumerator."""
    return _varint(number << 3 | _VARINT) + _varint(value)


def read_number(buffer: Buffer, field: Field) -> int:
    """Return the value of a field that `encode_number` could have written."""
    return _read_varint(buffer, field.value)[0]


def _varint(value: int) -> bytes:
    encoded = bytearray()
    while value > 0x7F:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)


def _read_varint(buffer: Buffer, position: int) -> tuple[int, int]:
    """Return the number at `position`, and the position behind it."""
    value, shift = 0, 0
    while position < len(buffer) and shift < 70:  # at most ten bytes
        byte = buffer[position]
        value |= (byte & 0x7F) << shift
        position, shift = position + 1, shift + 7
        if byte < 0x80:
            return value, position
    raise ValueError(f"no number ends at byte {position}")
