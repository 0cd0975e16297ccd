"""Measure the best engine that `edgevit tune` finds against the best that a user reaches with the peers' defaults.

    python -m tests.tools.bench.tuned --time 5m --threads 1                           # shiftvit_cifar10
    python -m tests.tools.bench.tuned --model deit_t --weights deit_t.pth --calib photos/calib --eval photos/val

An engine counts if it loses at most one point of top-1 against PyTorch. All quantizers calibrate on the same images,
and accuracy is measured on others; those of shiftvit_cifar10 come with the tests. The row is appended to a file, the
page is written from it, and a row that is in the file is not measured again. Run it on an idle machine; with
`--keep DIR` the peers' engines are built once.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from pathlib import Path

from edgevit.cli.argument_types import seconds
from edgevit.cli.signals import Stop
from edgevit.errors import EdgevitError
from tests.tools.bench import page, rows, tuned_rows
from tests.tools.bench.rows import RowKey

CIFAR10_MODEL = "shiftvit_cifar10"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=CIFAR10_MODEL, help=f"a classifier with weights (default: {CIFAR10_MODEL})")
    parser.add_argument("--weights", type=Path, metavar="FILE", help="its checkpoint (default: the included one)")
    parser.add_argument("--calib", type=Path, metavar="DIR", help="images to calibrate on (default: 32 of CIFAR-10)")
    parser.add_argument("--eval", type=Path, metavar="DIR", help="labeled images (default: 2,000 of CIFAR-10)")
    parser.add_argument("--time", type=seconds, default=300.0, help="of the search (default: 5m)")
    parser.add_argument("--threads", type=int, default=1, metavar="N", help="of all engines (default: 1)")
    parser.add_argument("--seconds", type=float, default=60.0, help="of the interleaved run (default: 60)")
    parser.add_argument("--again", action="store_true", help="also measure what is in the results")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="folder in which peers are kept for the next run")
    parser.add_argument("--results", type=Path, default=tuned_rows.RESULTS, help="the file that the row is appended to")
    parser.add_argument("--page", type=Path, default=page.PAGE, help="the file to write")
    arguments = parser.parse_args()
    if (arguments.calib is None) != (arguments.eval is None):
        parser.error("give --calib DIR and --eval DIR together")
    if arguments.calib is None and arguments.model != CIFAR10_MODEL:
        parser.error(f"{arguments.model} needs --calib DIR and --eval DIR")
    Stop().install()
    key = RowKey(arguments.model, arguments.threads, rows.this_processor())
    if arguments.again or key not in tuned_rows.read(arguments.results):
        try:
            _measure(arguments)
        except EdgevitError as error:
            print(f"{arguments.model}: {error}", file=sys.stderr)
            return error.exit_status
    page.write(arguments.page, tuned=arguments.results)
    return 0


def _measure(arguments: argparse.Namespace) -> None:
    if arguments.keep is not None:  # before PyTorch is imported
        os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str((arguments.keep / "inductor").absolute()))
    from tests.tools.bench.labeled import ImageFolders, write_cifar10
    from tests.tools.bench.tuned_run import TunedRequest, builder_for, measure_tuned, tune

    with tempfile.TemporaryDirectory(prefix="edgevit-") as name:
        scratch = Path(name)
        given = arguments.calib is not None
        request = TunedRequest(
            model=arguments.model,
            weights=arguments.weights,
            images=ImageFolders(calib=arguments.calib, eval=arguments.eval) if given else write_cifar10(scratch),
            threads=arguments.threads,
            limit_s=arguments.time,
            seconds=arguments.seconds,
        )
        report = tune(request, scratch)
        print(report.sentence, file=sys.stderr, flush=True)
        builder = builder_for(request, arguments.keep or scratch)
        rows.append(arguments.results, measure_tuned(request, report, builder))


if __name__ == "__main__":
    sys.exit(main())
