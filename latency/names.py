"""Short names of engines that are shown together."""

from __future__ import annotations

from collections.abc import Sequence


def short_names(names: Sequence[str]) -> list[str]:
    """Return names of which bundles lack the leading parts that they share: "openvino" for "vit-fp32-openvino".

    A name keeps its last part. Names without a hyphen are no bundles. All names stay if the short ones are not unique.
    """
    bundles = [name.split("-") for name in names if "-" in name]
    shared = 0
    while bundles and all(len(parts) > shared + 1 and parts[shared] == bundles[0][shared] for parts in bundles):
        shared += 1
    short = ["-".join(name.split("-")[shared:]) if "-" in name else name for name in names]
    return short if len(set(short)) == len(short) else list(names)
