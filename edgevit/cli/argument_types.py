"""Argument types of the command line: each makes a value of a word, or raises argparse.ArgumentTypeError."""

from __future__ import annotations

import argparse
import ast
import math
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

Number = TypeVar("Number", int, float)

_UNITS_S = {"min": 60.0, "m": 60.0, "h": 3600.0, "s": 1.0, "": 1.0}


def path(text: str) -> Path:
    """Argument type for a path. An empty string, as from an unset shell variable, would be the current folder."""
    if not text:
        raise argparse.ArgumentTypeError("the path is empty")
    return Path(text)


def paths(text: str) -> list[Path]:
    """Argument type for comma-separated paths."""
    return [path(part.strip()) for part in text.split(",")]


def image_size(text: str) -> int | tuple[int, int]:
    """Argument type for an image size: one number for a square, or HEIGHTxWIDTH."""
    parts = text.lower().split("x")
    if len(parts) > 2 or not all(_is_number(part.removeprefix("-")) for part in parts):
        raise argparse.ArgumentTypeError(f"{text!r} is not an image size, such as 224 or 224x320 (height x width)")
    sizes = [int(part) for part in parts]
    return (sizes[0], sizes[1]) if len(sizes) == 2 else sizes[0]


def input_shape(text: str) -> tuple[str, tuple[int, ...]]:
    """Argument type for the shape of one input: NAME=N,C,H,W."""
    name, equals, sizes = text.partition("=")
    parts = sizes.split(",")
    if not name or not equals or not all(_is_number(part) for part in parts):
        raise argparse.ArgumentTypeError(f"{text!r} is not an input shape, such as images=1,3,224,224")
    return name, tuple(int(part) for part in parts)


def argument(text: str) -> tuple[str, object]:
    """Argument type for NAME=VALUE, with VALUE as Python writes it, or else as text."""
    name, equals, value = text.partition("=")
    if not equals or not name.isidentifier():
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=VALUE, such as depth=12")
    try:
        return name, ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return name, value
    except (TypeError, MemoryError, RecursionError):  # a list as a key; nested too deeply
        raise argparse.ArgumentTypeError(f"{name} has no value that Python can read: {value!r}") from None


def channel_values(text: str) -> tuple[float, ...]:
    """Argument type for one number per channel, such as 0.485,0.456,0.406."""
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number per channel, such as 0.485,0.456,0.406") from None


def value_range(text: str) -> tuple[float, float]:
    """Argument type for LOW:HIGH."""
    return _pair(text, float, "LOW:HIGH, such as 0:255")


def edges(text: str) -> tuple[int, int]:
    """Argument type for SHORTEST:LONGEST."""
    return _pair(text, int, "SHORTEST:LONGEST, such as 800:1333")


def _pair(text: str, number: Callable[[str], Number], form: str) -> tuple[Number, Number]:
    first, _, second = text.partition(":")
    try:
        return number(first), number(second)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not {form}") from None


def names(text: str) -> tuple[str, ...]:
    """Argument type for a comma-separated list of names."""
    return tuple(name.strip() for name in text.split(",") if name.strip())


def batch_range(text: str) -> tuple[int, int, int]:
    """Argument type for MIN:OPT:MAX."""
    parts = text.split(":")
    if len(parts) != 3 or not all(_is_number(part) for part in parts):
        raise argparse.ArgumentTypeError(f"{text!r} is not MIN:OPT:MAX, such as 1:4:8")
    return int(parts[0]), int(parts[1]), int(parts[2])


def percentage(text: str) -> float:
    """Argument type for a percentage; returns a fraction: 0.005 for `0.5%`."""
    try:
        return float(text.removesuffix("%")) / 100
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a percentage, such as 0.5%") from None


def seconds(text: str) -> float:
    """Argument type for a time: `60s`, `10m` or `10min`, `1h`, or a number of seconds."""
    unit = next(each for each in _UNITS_S if text.endswith(each))
    try:
        value = _UNITS_S[unit] * float(text.removesuffix(unit))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a time, such as 60s or 10min") from None
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is not a time above 0, such as 60s or 10min")
    return value


def counts(text: str) -> tuple[int, ...]:
    """Argument type for a comma-separated list of counts; each is named once."""
    parts = text.split(",")
    if not all(_is_number(part) for part in parts):
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of counts, such as 1,2,4")
    return tuple(dict.fromkeys(int(part) for part in parts))


def compute_capabilities(text: str) -> tuple[int, ...]:
    """Argument type for a comma-separated list of compute capabilities."""
    parts = text.split(",")
    if not all(_is_number(part) for part in parts):
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of compute capabilities, such as 86,89")
    return tuple(int(part) for part in parts)


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdecimal()
