"""Measure the included model and take the README's picture of its report: `python -m tests.tools.report_picture`.

It takes six minutes and needs Chromium (apt-get install chromium). Leave the machine alone meanwhile: the report tells
if other processes disturbed it.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image

ROOT = Path(__file__).parents[2]
PICTURE = ROOT / "docs" / "report.png"
_SIZE = (1120, 1090)
_COLORS = 128
_BROWSER_FLAGS = ("--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--hide-scrollbars")
_MODEL = "shiftvit_cifar10"


def main() -> None:
    """Export, measure, report and take the picture."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--duration", type=float, default=60.0, metavar="S", help="seconds for each engine")
    parser.add_argument("--out", type=Path, default=PICTURE, metavar="FILE.png")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        export = ("export", _MODEL, "--fmt", "ort,openvino", "--out", str(folder), "--no-latency", "-q")
        edgevit(*export)
        edgevit(*export, "--int8", "--calib", str(ROOT / "edgevit" / "data" / "photos"))
        bundles = [
            folder / f"{_MODEL}-{precision}-{fmt}" for precision in ("fp32", "int8") for fmt in ("ort", "openvino")
        ]
        page = folder / "report.html"
        duration = ("--threads", "1", "--duration", str(arguments.duration))
        edgevit("latency", *map(str, bundles), "--against", "torch", *duration, "--report", str(page))
        take_picture(page, arguments.out)


def edgevit(*words: str) -> None:
    subprocess.run([sys.executable, "-m", "edgevit", *words], check=True)


def take_picture(page: Path, out: Path) -> None:
    """Write a picture of the top of a page, with few colors: a picture in a repository should be small."""
    browser = shutil.which("chromium") or sys.exit("no Chromium on PATH: apt-get install chromium")
    with tempfile.TemporaryDirectory() as profile:
        shot = Path(profile) / "page.png"
        size = f"--window-size={_SIZE[0]},{_SIZE[1]}"
        flags = (*_BROWSER_FLAGS, f"--user-data-dir={profile}", size, f"--screenshot={shot}")
        subprocess.run([browser, *flags, page.resolve().as_uri()], check=True, capture_output=True)
        Image.open(shot).convert("RGB").quantize(_COLORS, dither=Image.Dither.NONE).save(out, optimize=True)
    print(f"{out}: {out.stat().st_size / 1e3:.0f} kB")


if __name__ == "__main__":
    main()
