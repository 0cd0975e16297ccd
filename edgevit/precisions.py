"""The precisions: one entry each, with its parity tolerance, calibration needs and flags."""

from __future__ import annotations

from dataclasses import dataclass

from edgevit.errors import unknown_name
from edgevit.types import Precision


@dataclass(frozen=True, slots=True, kw_only=True)
class Tolerance:
    """The difference from the reference that is accepted. None: not judged."""

    max_abs_of_std: float | None  # largest absolute difference, in standard deviations of the reference
    max_float32_errors: float | None = None  # it as a multiple of the model's own float32 error, if that is more
    cosine: float  # smallest cosine similarity of any row
    snr_db: float | None  # smallest signal-to-noise ratio over all rows
    agreement: float | None  # smallest fraction of photos, or of pixels, with the same top-1 class
    map_agreement: float  # smallest fraction of pixels with the same class in a map of classes, whose ties may flip

    def __str__(self) -> str:
        parts = [f"cosine >= {self.cosine:g}"]
        if self.max_abs_of_std is not None:
            own = f" or {self.max_float32_errors:g}x the model's own float32 error" if self.max_float32_errors else ""
            parts.insert(0, f"max error <= {self.max_abs_of_std:g} std{own}")
        if self.snr_db is not None:
            parts.append(f"SNR >= {self.snr_db:g} dB")
        if self.agreement is not None:
            parts.append(f"top-1 agreement >= {self.agreement:.1%}")
        return ", ".join(parts)


@dataclass(frozen=True, slots=True, kw_only=True)
class PrecisionPolicy:
    """A precision that can be requested, and how its engines are judged."""

    name: Precision
    tolerance: Tolerance
    max_row_spread_std: float  # between rows of one batch that hold the same image, in std of PyTorch's output
    photos_only: bool = False  # judged on photos alone if there are any, since its ranges are calibrated on photos
    converts_graph: bool = False  # the graph is converted to it, from calibration images; else the fp32 graph stays
    needs_calibration: bool = False  # requires --calib
    flags: tuple[str, ...] = ()  # short forms of --precision on the command line


POLICIES: tuple[PrecisionPolicy, ...] = (
    PrecisionPolicy(
        name="fp32",
        tolerance=Tolerance(
            max_abs_of_std=1e-4, max_float32_errors=4.0, cosine=0.99999, snr_db=None, agreement=1.0, map_agreement=0.999
        ),
        max_row_spread_std=1e-4,
    ),
    PrecisionPolicy(
        name="fp16",
        tolerance=Tolerance(max_abs_of_std=None, cosine=0.999, snr_db=40.0, agreement=0.995, map_agreement=0.995),
        max_row_spread_std=1e-2,
        converts_graph=True,
        flags=("--fp16", "--half"),
    ),
    PrecisionPolicy(
        name="bf16",
        # A mantissa of 8 bits in place of fp16's 11 is 18 dB of rounding noise; real models have 40 dB left.
        tolerance=Tolerance(max_abs_of_std=None, cosine=0.999, snr_db=30.0, agreement=0.99, map_agreement=0.99),
        max_row_spread_std=3e-2,
        flags=("--bf16",),
    ),
    PrecisionPolicy(
        name="int8",
        # The top-1 of int8 is judged as accuracy on labeled images, not as agreement on a few photos.
        tolerance=Tolerance(max_abs_of_std=None, cosine=0.99, snr_db=None, agreement=None, map_agreement=0.9),
        max_row_spread_std=1e-1,
        photos_only=True,
        converts_graph=True,
        needs_calibration=True,
        flags=("--int8",),
    ),
)


def list_policies() -> tuple[PrecisionPolicy, ...]:
    """All precisions, from the highest to the lowest."""
    return POLICIES


def chosen_in_session(name: str) -> bool:
    """Whether the runtime is asked to compute the fp32 graph in this precision when it opens it."""
    return name != "fp32" and not get_policy(name).converts_graph


def get_policy(name: str) -> PrecisionPolicy:
    """The policy of a precision. Raises UsageError with similar names."""
    for policy in POLICIES:
        if policy.name == name:
            return policy
    raise unknown_name("precision", name, [policy.name for policy in POLICIES])
