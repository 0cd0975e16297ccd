"""Measure the included model and take the README's picture of its report: `python -m tests.tools.report_picture`.

It takes about six minutes on an idle machine, of which an engine is measured for one, the least for a certificate;
`--duration 20` takes less than three. It needs Chromium (apt-get install chromium). Leave the machine alone meanwhile:
the report tells if other processes disturbed it. With `--folder` the bundles are kept, and used by the next run.
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
PHOTOS = ROOT / "edgevit" / "data" / "photos"
_SIZE = (1120, 1090)
_COLORS = 128
_BROWSER_FLAGS = ("--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--hide-scrollbars")
_BROWSER = "chromium"
_MODEL = "shiftvit_cifar10"
_FORMATS = ("ort", "openvino")
_LIMIT_S, _BROWSER_S = 1200.0, 120.0  # of a command that hangs


def main() -> None:
    """Export, measure, report and take the picture."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--duration", type=float, default=60.0, metavar="S", help="seconds for each engine")
    parser.add_argument("--out", type=Path, default=PICTURE, metavar="FILE.png")
    parser.add_argument("--folder", type=Path, help="keep bundles and report here")
    arguments = parser.parse_args()
    if shutil.which(_BROWSER) is None:  # before the long work
        sys.exit("no Chromium on PATH: apt-get install chromium")
    with tempfile.TemporaryDirectory() as place:
        folder = arguments.folder or Path(place)
        bundles = [*export(folder, "fp32"), *export(folder, "int8", "--calib", str(PHOTOS))]
        page = folder / "report.html"
        duration = ("--threads", "1", "--duration", str(arguments.duration))
        edgevit("latency", *map(str, bundles), "--against", "torch", *duration, "--report", str(page))
        take_picture(page, arguments.out)


def export(folder: Path, precision: str, *options: str) -> list[Path]:
    """Export the model in one precision, unless the bundles are there, and return their folders."""
    bundles = [folder / f"{_MODEL}-{precision}-{fmt}" for fmt in _FORMATS]
    if not all(bundle.exists() for bundle in bundles):
        words = ("--fmt", ",".join(_FORMATS), "--precision", precision, "--out", str(folder), "--no-latency", "-q")
        edgevit("export", _MODEL, *words, *options)
    return bundles


def edgevit(*words: str) -> None:
    subprocess.run([sys.executable, "-m", "edgevit", *words], check=True, timeout=_LIMIT_S)


def take_picture(page: Path, out: Path) -> None:
    """Write a picture of the top of a page, with few colors: a picture in a repository should be small."""
    with tempfile.TemporaryDirectory() as profile:
        shot = Path(profile) / "page.png"
        size = f"--window-size={_SIZE[0]},{_SIZE[1]}"
        flags = (*_BROWSER_FLAGS, f"--user-data-dir={profile}", size, f"--screenshot={shot}")
        subprocess.run([_BROWSER, *flags, page.resolve().as_uri()], check=True, capture_output=True, timeout=_BROWSER_S)
        Image.open(shot).convert("RGB").quantize(_COLORS, dither=Image.Dither.NONE).save(out, optimize=True)
    print(f"{out}: {out.stat().st_size / 1e3:.0f} kB")


if __name__ == "__main__":
    main()
