"""Draw SVG by hand: a canvas with escaped text, and scales with round tick values.

Colors and fonts are classes of the page's style sheet, so that a picture follows its light and dark scheme.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Literal

from edgevit.latency.document.escape import escaped

Point = tuple[float, float]
Anchor = Literal["start", "middle", "end"]

WIDTH = 360  # of every picture, in its own units: text of 11 units is readable on a phone of 320 pixels
SERIES = 8  # different colors, dashes and markers
_RADIUS = 5  # of a marker


def series_class(index: int) -> str:
    """Return the class that gives a series its color."""
    return f"s{index % SERIES}"


@dataclass(slots=True)
class Canvas:
    """A picture of WIDTH by `height` units. Y grows downwards."""

    height: float
    parts: list[str] = field(default_factory=list)

    def text(self, x: float, y: float, text: str, *, anchor: Anchor = "start", style: str = "") -> None:
        self._add(f'<text x="{_n(x)}" y="{_n(y)}" text-anchor="{anchor}" class="{style}">{escaped(text)}</text>')

    def vertical_text(self, x: float, y: float, text: str) -> None:
        """Write upwards, centered at (x, y)."""
        turned = f'transform="translate({_n(x)} {_n(y)}) rotate(-90)"'
        self._add(f'<text {turned} text-anchor="middle" class="">{escaped(text)}</text>')

    def line(self, start: Point, end: Point, style: str) -> None:
        ends = f'x1="{_n(start[0])}" y1="{_n(start[1])}" x2="{_n(end[0])}" y2="{_n(end[1])}"'
        self._add(f'<line {ends} class="{style}"/>')

    def polyline(self, points: Iterable[Point], style: str) -> None:
        self._add(f'<polyline points="{_points(points)}" class="{style}"/>')

    def polygon(self, points: Iterable[Point], style: str) -> None:
        self._add(f'<polygon points="{_points(points)}" class="{style}"/>')

    def rectangle(self, corner: Point, width: float, height: float, style: str) -> None:
        place = f'x="{_n(corner[0])}" y="{_n(corner[1])}" width="{_n(width)}" height="{_n(height)}"'
        self._add(f'<rect {place} class="{style}"/>')

    def marker(self, center: Point, index: int) -> None:
        """Draw the marker of a series: shapes differ as well as colors."""
        x, y = center
        sides = (0, 4, 3, 5, 0, 4, 3, 6)[index % SERIES]
        if sides == 0:
            self._add(f'<circle cx="{_n(x)}" cy="{_n(y)}" r="{_n(_RADIUS)}" class="mark {series_class(index)}"/>')
            return
        turns = [math.pi * (2 * corner / sides - 0.5) for corner in range(sides)]
        corners = [(x + 1.2 * _RADIUS * math.cos(turn), y + 1.2 * _RADIUS * math.sin(turn)) for turn in turns]
        self.polygon(corners, f"mark {series_class(index)}")

    def render(self, key: str, title: str, description: str) -> str:
        """Return the picture; `key` is unique in the page and names the elements that describe it."""
        names = f'<title id="{key}-t">{escaped(title)}</title><desc id="{key}-d">{escaped(description)}</desc>'
        opening = (
            f'<svg viewBox="0 0 {WIDTH} {_n(self.height)}" role="img" aria-labelledby="{key}-t {key}-d" '
            'xmlns="http://www.w3.org/2000/svg">'
        )
        return f"{opening}{names}{''.join(self.parts)}</svg>"

    def _add(self, part: str) -> None:
        self.parts.append(part.replace(' class=""', ""))


@dataclass(frozen=True, slots=True)
class Scale:
    """A map from values to places on the canvas, linear or logarithmic."""

    low: float
    high: float
    start: float
    end: float
    is_log: bool = False

    @classmethod
    def around(cls, values: Sequence[float], place: Point, *, is_log: bool = False, margin: float = 0.04) -> Scale:
        """Return a scale that shows all values with a margin; a single value stands in the middle."""
        low, high = min(values), max(values)
        if is_log:
            factor = max((high / low) ** margin, 1.02)
            return cls(low / factor, high * factor, *place, is_log=True)
        extra = margin * (high - low) or 0.05 * abs(high) or 1.0
        return cls(low - extra, high + extra, *place)

    def __call__(self, value: float) -> float:
        low, high, value = (math.log(each) if self.is_log else each for each in (self.low, self.high, value))
        return self.start + (self.end - self.start) * (value - low) / (high - low)

    def ticks(self, count: int = 5) -> list[float]:
        """Return about `count` round values within the scale, at least two where possible."""
        if self.is_log and self.high / self.low > 4:
            powers = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
            found = [step * 10.0**power for power in powers for step in (1, 2, 5)]
            found = [value for value in found if self.low <= value <= self.high]
            return found if len(found) <= count + 2 else [value for value in found if _is_power_of_ten(value)]
        rough = (self.high - self.low) / count
        power = 10.0 ** math.floor(math.log10(rough))
        step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough)
        first = math.ceil(self.low / step)
        return [number * step for number in range(first, math.floor(self.high / step) + 1)]


def _is_power_of_ten(value: float) -> bool:
    return abs(math.log10(value) - round(math.log10(value))) < 1e-9


def _n(value: float) -> str:
    """Return a coordinate: a tenth of a unit is finer than any screen shows."""
    return f"{value:.1f}".removesuffix(".0")


def _points(points: Iterable[Point]) -> str:
    return " ".join(f"{_n(x)},{_n(y)}" for x, y in points)
