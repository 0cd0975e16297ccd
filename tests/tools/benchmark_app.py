"""Compare p50 of an OpenVINO bundle with OpenVINO's benchmark_app, in turns, by the command that a report prints.

    python -m tests.tools.benchmark_app BUNDLE [--pairs 5] [--seconds 3]

The tolerance is that of the report, for an idle machine. It ends with 1 if a pair is outside.
"""

from __future__ import annotations

import argparse
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np

from edgevit.bundles.bundle import Bundle
from edgevit.bundles.engine import open_engine
from edgevit.runtimes.base import Engine
from edgevit.runtimes.openvino import APP_ABSOLUTE_MS, APP_RELATIVE
from edgevit.runtimes.registry import get_runtime
from edgevit.types import Array

# benchmark_app would report its use over the network if it found this package.
_CODE = (
    "import sys; sys.modules['openvino_telemetry'] = None; "
    "from openvino.tools.benchmark.main import main; sys.exit(main())"
)
_MEDIAN = re.compile(r"Median: +([\d.]+) ([mu]s)")


def app_ms(words: list[str]) -> float:
    """Return the median of one run of benchmark_app."""
    printed = subprocess.run([sys.executable, "-c", _CODE, *words], capture_output=True, text=True, check=False).stdout
    found = _MEDIAN.search(printed)
    if found is None:
        raise SystemExit(f"benchmark_app printed no median: {printed[-500:]}")
    return float(found[1]) * (1e-3 if found[2] == "us" else 1)


def engine_ms(engine: Engine, feeds: Mapping[str, Array], seconds: float) -> float:
    """Return the median time of back-to-back calls for some seconds."""
    times: list[float] = []
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        start = time.perf_counter()
        engine.run(feeds)
        times.append(1e3 * (time.perf_counter() - start))
    return float(np.median(times))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=3.0)
    arguments = parser.parse_args()
    bundle = Bundle.open(arguments.bundle)
    options = replace(bundle.options, threads=1)
    command = get_runtime(bundle.fmt).time_command(
        bundle.path / bundle.manifest.runtime.engine_files[0], options, inputs=bundle.manifest.inputs
    )
    if command is None:
        raise SystemExit(f"{bundle.fmt} has no tool of its own; give an OpenVINO bundle")
    words = shlex.split(command.line.replace("-t 10", f"-t {arguments.seconds:g}"))[1:]
    feeds, outside = bundle.references()[0].batch(bundle.options.batch_to_measure), 0
    with open_engine(bundle, threads=1) as engine:
        for _ in range(arguments.pairs):
            ours, theirs = engine_ms(engine, feeds, arguments.seconds), app_ms(words)
            agrees = abs(ours - theirs) <= APP_RELATIVE * theirs + APP_ABSOLUTE_MS
            outside += not agrees
            print(f"edgevit {ours:.3f} ms, benchmark_app {theirs:.3f} ms: {'agrees' if agrees else 'OUTSIDE'}")
    return 1 if outside else 0


if __name__ == "__main__":
    sys.exit(main())
