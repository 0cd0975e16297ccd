"""Compute capabilities that TensorRT-RTX builds for; imports no runtime, because the build options check them."""

from __future__ import annotations

from edgevit.errors import UsageError
from edgevit.types import Precision

# GPUs for which TensorRT-RTX compiles without a GPU: Turing, Ampere, Ada, Blackwell. Jetson Orin (87) is not supported.
COMPUTE_CAPABILITIES = (75, 80, 86, 89, 120, 121)
TURING = 75  # TensorRT-RTX has no fp32 matmuls for it


def check_capabilities(capabilities: tuple[int, ...], precision: Precision) -> None:
    """Raise UsageError for compute capabilities that TensorRT-RTX does not build for, or not in `precision`."""
    known = ", ".join(str(capability) for capability in COMPUTE_CAPABILITIES)
    if not capabilities or len(set(capabilities)) != len(capabilities):
        raise UsageError(
            f"invalid --sm: name each compute capability once, from {known}; omit --sm for a portable engine"
        )
    unknown = [capability for capability in capabilities if capability not in COMPUTE_CAPABILITIES]
    if unknown:
        raise UsageError(
            f"no compute capability {unknown[0]} for ahead-of-time builds; choose from {known}. "
            "For other GPUs, such as Jetson Orin (87), build on the device: --fmt trt"
        )
    if TURING in capabilities and precision == "fp32":
        raise UsageError(
            f"TensorRT-RTX has no fp32 matmuls for compute capability {TURING}; "
            f"use --precision fp16, or omit {TURING} from --sm"
        )
