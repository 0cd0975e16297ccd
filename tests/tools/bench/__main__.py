"""Measure registered models against what users build without edgevit, and write docs/bench.md: `make bench`.

    python -m tests.tools.bench                                    # all variants up to 30 M parameters
    python -m tests.tools.bench --models deit_t,shiftvit_t --seconds 30 --threads 1

Each model is measured in a process of its own: all candidates in one interleaved run, for each number of threads.
Rows are appended to a file as they come, and a row that is in the file is not measured again: an interrupted run goes
on where it was. Run it on an idle machine; `--keep DIR --build-only` builds all engines before, and the same command
without `--build-only` measures them. NNCF is left out if it is not installed (pip install 'edgevit[bench]').

`make bench-tuned` (tests/tools/bench/tuned.py) measures what `edgevit tune` finds against the best of the peers, for
the first section of the page.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

from edgevit.cli.signals import Stop
from edgevit.models import registry
from edgevit.types import PRECISIONS
from tests.tools.bench import page, rows
from tests.tools.bench.child import Task, measure_in_child
from tests.tools.bench.rows import RowKey

MILLION_PARAMETERS = 30


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default="", metavar="NAMES", help="comma-separated (default: all up to 30 M)")
    parser.add_argument("--threads", default="1,2", metavar="N,N", help="comma-separated (default: 1,2)")
    parser.add_argument("--seconds", type=float, default=60.0, help="of one interleaved run (default: 60)")
    parser.add_argument("--fp32-only", action="store_true", help="leave bf16 and int8 out")
    parser.add_argument("--weights", type=Path, metavar="DIR", help="checkpoints, named MODEL.pth or MODEL.safetensors")
    parser.add_argument("--again", action="store_true", help="also measure what is in the results")
    parser.add_argument("--results", type=Path, default=rows.RESULTS, help="the file that rows are appended to")
    parser.add_argument("--page", type=Path, default=page.PAGE, help="the file to write")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="folder in which engines are kept for the next run")
    parser.add_argument(
        "--build-only", action="store_true", help="build the engines into --keep, on a busy machine too"
    )
    parser.add_argument("--page-only", action="store_true", help="write the page of the results so far")
    arguments = parser.parse_args()
    Stop().install()  # the child ends with this process
    if arguments.build_only and arguments.keep is None:
        parser.error("--build-only needs --keep DIR")
    failed = False if arguments.page_only else _measure(arguments)
    if arguments.build_only:
        return int(failed)
    page.write(arguments.page, results=arguments.results)
    return int(failed)


def _measure(arguments: argparse.Namespace) -> bool:
    """Measure the models in turn. Returns whether one failed."""
    processor, failed = rows.this_processor(), False
    threads = [int(count) for count in arguments.threads.split(",")]
    done = {} if arguments.again else rows.read(arguments.results)
    for model in arguments.models.split(",") if arguments.models else registry.list_models():
        task = Task(
            model=model,
            threads=tuple(count for count in threads if RowKey(model, count, processor) not in done),
            seconds=arguments.seconds,
            precisions=("fp32",) if arguments.fp32_only else PRECISIONS,
            weights=_weights(arguments.weights, model),
            million_parameters=None if arguments.models else MILLION_PARAMETERS,
            results=arguments.results,
            kept=arguments.keep,
            build_only=arguments.build_only,
        )
        if not task.threads:
            continue
        start = time.monotonic()
        reason = measure_in_child(task)
        failed = failed or bool(reason)
        print(
            f"{model}: {reason or ('built' if task.build_only else 'measured')} in {time.monotonic() - start:.0f} s",
            file=sys.stderr,
            flush=True,
        )
    return failed


def _weights(folder: Path | None, model: str) -> Path | None:
    files = [folder / f"{model}{suffix}" for suffix in (".safetensors", ".pth")] if folder is not None else []
    return next((file for file in files if file.is_file()), None)


if __name__ == "__main__":
    sys.exit(main())
