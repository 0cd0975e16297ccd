"""Whether a lower precision is worth it: what it costs in accuracy and gains in time and size, against fp32."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from edgevit.errors import ParityError
from edgevit.latency.statistics import Ratio, bounds
from edgevit.metrics import Drop, Evaluation, agreement, drop_points
from edgevit.runtimes.parity import OutputParity
from edgevit.types import Precision

ENGINE = "the engine"  # was asked, and nothing in its place


@dataclass(frozen=True, slots=True, kw_only=True)
class PrecisionComparison:
    """A bundle in a lower precision against fp32 in the same runtime and the same run."""

    fmt: str
    precision: Precision
    judged: str  # what was asked: the engine, or the typed graph where no engine runs here
    parity: tuple[OutputParity, ...]  # of what was asked, against PyTorch
    wanted: Evaluation | None  # fp32's answers to the labelled images
    found: Evaluation | None
    time: Ratio | None  # of the time of the lower precision to that of fp32, interleaved; None: not measured
    size_bytes: int | None
    fp32_size_bytes: int | None
    allowed_drop: float | None = None  # of top-1, as a share of the labelled images; None: no bound was given

    @property
    def drop(self) -> Drop | None:
        """Top-1 lost on the labelled images, in points."""
        return drop_points(self.wanted, self.found) if self.wanted is not None and self.found is not None else None

    @property
    def agreement(self) -> float | None:
        """The share of images with fp32's top-1: of the labelled images, else of the parity's rows with PyTorch's."""
        if self.wanted is not None and self.found is not None:
            return agreement(self.wanted, self.found)
        rows = [same for result in self.parity for same in result.same_top1]
        return sum(rows) / len(rows) if rows else None

    @property
    def snr_db(self) -> float | None:
        return min((result.snr_db for result in self.parity), default=None)

    @property
    def cosine(self) -> float | None:
        return min((min(result.cosine) for result in self.parity), default=None)

    @property
    def smaller(self) -> float | None:
        """How many times smaller than fp32's files."""
        return self.fp32_size_bytes / self.size_bytes if self.size_bytes and self.fp32_size_bytes else None

    @property
    def recommended(self) -> bool | None:
        """No where it is slower than fp32 or loses more than is allowed (`--no-verify` lets that pass), yes where it is
        faster and its accuracy has been measured on labelled images; None where that cannot be told."""
        if self._loses_too_much or (self.time is not None and self.time.verdict == "slower"):
            return False
        if self.time is None or self.time.verdict == "cannot tell":
            return None
        return True if self.drop is not None and not self._by_chance else None

    @property
    def sentence(self) -> str:
        """The verdict in one line."""
        parts = [self._speed, *filter(None, (self._accuracy, self._size))]
        if self._loses_too_much:
            return f"{self.precision} loses more than is allowed: not recommended ({', '.join(parts)})"
        if self.recommended is False:
            return f"{self.precision} is {parts[0]} than fp32 here: not recommended ({', '.join(parts[1:])})"
        return f"{self.precision}: {', '.join(parts)}"

    @property
    def _loses_too_much(self) -> bool:
        return self.drop is not None and self.allowed_drop is not None and _exceeds(self.drop, self.allowed_drop)

    @property
    def _by_chance(self) -> bool:
        """Whether fp32 itself may be right no more often than a guess: then nothing can be lost, and nothing shown."""
        return self.wanted is not None and self.wanted.top1_interval.low <= 1 / self.wanted.class_count

    @property
    def _speed(self) -> str:
        if self.time is None:
            return "speed not measured here"
        if self.time.verdict == "cannot tell":
            doubt = f", {self.time.reason}" if self.time.reason else ""
            return f"faster or slower, this run cannot tell (time / fp32 {self.time.value:.2f}{doubt})"
        if self.time.verdict == "faster":
            times = 1 / self.time.value
            return f"{times:.{1 if times >= 1.1 else 2}f}x faster"
        return f"{self.time.value:.2f}x slower"

    @property
    def _accuracy(self) -> str:
        drop = self.drop
        if drop is None:
            return "accuracy not measured (--eval DIR)"
        images = f"on {self.wanted.images} images" if self.wanted is not None else ""
        if self.judged != ENGINE:
            images += f" ({self.judged}; no engine has run)"
        if self._by_chance and self.wanted is not None:
            share = f"{self.wanted.top1:.1%} of {self.wanted.images} images"
            return f"accuracy not told (fp32 itself is right on {share}, as guesses may be)"
        if drop.points == 0:
            return f"no accuracy lost {images}"
        points = f"{abs(drop.points):.{1 if abs(drop.points) >= 0.05 else 3}f}"
        return f"{points} points {'worse' if drop.points > 0 else 'better'} {images}"

    @property
    def _size(self) -> str:
        return "" if self.smaller is None else f"{self.smaller:.1f}x smaller"

    def require(self, allowed_drop: float | None) -> None:
        """Raises ParityError where more of top-1 is lost than allowed, as a share of the labelled images."""
        drop = self.drop
        if drop is not None and allowed_drop is not None and _exceeds(drop, allowed_drop):
            raise ParityError(
                f"{self.fmt} in {self.precision} ({self.judged}) loses {drop} points of top-1, and "
                f"{100 * allowed_drop:g} are allowed: calibrate with more photos, allow more with --max-drop, "
                "or ask for another precision"
            )

    def to_json(self) -> dict[str, Any]:
        drop = self.drop
        return {
            "sentence": self.sentence,
            "recommended": self.recommended,
            "judged": self.judged,
            "images": self.wanted.images if self.wanted is not None else 0,
            "top1": self.found.top1 if self.found is not None else None,
            "top1_fp32": self.wanted.top1 if self.wanted is not None else None,
            "drop_points": None if drop is None else drop.points,
            "drop_points_interval": None if drop is None else bounds(drop.interval),
            "agreement": self.agreement,
            "snr_db": _finite(self.snr_db),
            "cosine": _finite(self.cosine),
            "time_ratio": None if self.time is None else self.time.value,
            "time_ratio_interval": None if self.time is None else bounds(self.time.interval),
            "time_verdict": None if self.time is None else self.time.verdict,
            "size_bytes": self.size_bytes,
            "size_bytes_fp32": self.fp32_size_bytes,
        }


def _exceeds(drop: Drop, allowed: float) -> bool:
    """Whether more is lost than the share that is allowed; one that was a percentage is off by its rounding."""
    return drop.points > 100 * allowed * (1 + 1e-9)


def _finite(value: float | None) -> float | None:
    """JSON has no infinity: an SNR is infinite where the answers are exactly PyTorch's."""
    return value if value is not None and math.isfinite(value) else None
