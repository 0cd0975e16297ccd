"""Write the costs of backbones at several sizes into docs/dense.md: `python -m tests.tools.dense_costs [NAME ...]`.

Without names, those without a row are counted. Only shapes are computed: no weights are allocated and nothing is
exported.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from edgevit.files import write_atomically
from edgevit.models.dense.resnet import DEPTHS, ResNet
from edgevit.models.dense.systems import BACKBONES, backbone_of
from edgevit.models.features import Backbone
from tests.helpers.macs import Work, count

PAGE = Path(__file__).parents[2] / "docs" / "dense.md"
SIDES = (224, 320, 512, 640, 800, 1024)


def names() -> list[str]:
    """Return the backbones of detectors and segmenters."""
    registered = [spec.name for spec in BACKBONES if spec.backbone is not None and spec.name != "shiftvit_cifar10"]
    return [*registered, *(f"r{depth}" for depth in DEPTHS)]


def backbone(name: str, side: int) -> Backbone:
    """Return a backbone for square images as detectors use it, without weights."""
    with torch.device("meta"):
        for spec in BACKBONES:
            if spec.name == name:
                return backbone_of(spec, (side, side), None).eval().requires_grad_(False)
        return ResNet(int(name.removeprefix("r"))).eval().requires_grad_(False)


def cost(name: str, side: int) -> Work:
    """Return the work of a backbone for one square image."""
    module, image = backbone(name, side), torch.empty(1, 3, side, side, device="meta")
    return count(lambda: module.feature_maps(image))


def cell(found: Work) -> str:
    """Return G multiply-adds and MB of activations."""
    return f"{found.macs / 1e9:.2f} / {found.activation_bytes / 1e6:.0f}"


def row(name: str) -> str:
    """Return the line of a backbone."""
    return f"| `{name}` | {' | '.join(cell(cost(name, side)) for side in SIDES)} |"


def read(text: str) -> dict[str, str]:
    """Return the lines of the page's table by backbone."""
    return {line.split("`")[1]: line for line in _table(text)[2].splitlines() if line.startswith("| `")}


def updated(text: str, rows: Mapping[str, str]) -> str:
    """Return the page's text with these rows, in the order of the registry; others are dropped."""
    head = [f"| backbone | {' | '.join(map(str, SIDES))} |", f"|---|{'--:|' * len(SIDES)}"]
    lines = [*head, *(rows[name] for name in names() if name in rows)]
    found = _table(text)
    return "".join([text[: found.start()], found[1], *(f"{line}\n" for line in lines), found[3], text[found.end() :]])


def _table(text: str) -> re.Match[str]:
    found = re.search(r"(<!-- costs -->\n)(.*?)(<!-- /costs -->)", text, re.DOTALL)
    assert found is not None, f"{PAGE.name} must contain the markers of the costs"
    return found


def main(words: Sequence[str]) -> None:
    """Count the named backbones, or those without a row, and save each."""
    have = read(PAGE.read_text("utf-8"))
    for name in words or [name for name in names() if name not in have]:
        sys.stderr.write(f"{name}\n")
        line = row(name)
        text = PAGE.read_text("utf-8")
        write_atomically(PAGE, updated(text, {**read(text), name: line}))


if __name__ == "__main__":
    main(sys.argv[1:])
