"""Attack edgevit with random input and kills: `python -m tests.tools.fuzz [--tries N] [--kind KIND] [--seed S]`.

Prints the attempts and escapes of each kind, and ends with status 1 if there is an escape. An escape is a traceback, a
status that edgevit does not have, a death, a hang, a long message, much memory, a file left behind, or a damaged file
that is accepted although its hash has changed. `--only N` makes the attempt of one number again.
"""

from __future__ import annotations

import argparse
import importlib
import os
import pickle
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from random import Random
from unittest import mock

from edgevit.bundles import store
from edgevit.cli.main import commands
from tests.fuzzing.kill_loop import WAYS, cannot_exchange, kill_once, publish_number
from tests.fuzzing.kinds import KINDS, Samples
from tests.fuzzing.sandbox import Attempt, Escape, Outcome, run_attempts

KILLS = "kills"
_KILL_WEIGHT = 300
# Imported before the first fork, so that no attempt has to.
_WARM = (
    "onnx", "onnxruntime", "rich.table", "rich.console", "rich.progress", "onnx_ir.passes.common",
    "tests.helpers.samples",
    *(f"edgevit.bundles.{name}" for name in ("build", "verify", "predict", "evaluate", "benchmark", "source_model")),
    *(f"edgevit.{name}" for name in ("export.graph", "export.lint.rules", "latency.baseline", "runtimes.registry")),
)  # fmt: skip
_WARM_TORCH = (
    "torch",
    "safetensors.torch",
    "edgevit.pipeline.run",
    "edgevit.models.loading",
    "edgevit.runtimes.pytorch",
)


@dataclass(frozen=True)
class Campaign:
    """Attempts that share a seed, a folder and the undamaged files."""

    seed: str
    folder: Path
    samples: Samples

    def run(self, name: str, numbers: Sequence[int]) -> Outcome:
        """Make the attempts `numbers` of a kind."""
        if name == KILLS:
            return self._kill(numbers)
        kind = next(kind for kind in KINDS if kind.name == name)
        for module in _WARM_TORCH if kind.needs_torch else ():
            importlib.import_module(module)

        def prepare(number: int, place: Path) -> Attempt:
            return kind.prepare(Random(f"{self.seed}/{name}/{number}"), place, self.samples)

        return run_attempts(prepare, numbers, self.folder)

    def _kill(self, numbers: Sequence[int]) -> Outcome:
        """Kill publications; half of them on a file system that cannot exchange two folders."""
        outcome = Outcome()
        for number in numbers:
            way = WAYS[number % len(WAYS)]
            out = self.folder / way
            with cannot_exchange() if way != WAYS[0] else nullcontext():
                if not out.exists():
                    out.mkdir()
                    publish_number(out, 0)
                outcome.tries += 1
                if reason := kill_once(out, Random(f"{self.seed}/{KILLS}/{number}")):
                    outcome.escapes.append(Escape(number=number, reason=f"{way}: {reason}"))
        return outcome


def main(words: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.tools.fuzz", description=__doc__)
    names = [kind.name for kind in KINDS] + [KILLS]
    parser.add_argument("--tries", type=int, default=2000, metavar="N", help="attempts in all (default: 2000)")
    parser.add_argument("--kind", action="append", choices=names, help="only this kind; repeat it for several")
    parser.add_argument("--seed", default="0", metavar="S", help="another seed, other attempts")
    parser.add_argument("--only", type=int, metavar="N", help="make the attempt of one number only")
    arguments = parser.parse_args(words)
    print(f"{'kind':<12}{'tries':>7}{'escapes':>9}{'s':>8}  statuses")
    for module in _WARM:
        importlib.import_module(module)
    list(commands())
    with (
        tempfile.TemporaryDirectory(prefix="edgevit-fuzz-", dir=_fast_folder()) as folder,
        mock.patch.object(store, "_flush"),  # slow, and needed against power cuts only
    ):
        campaign = Campaign(arguments.seed, Path(folder), _samples(Path(folder)))
        shares = _shares(arguments.tries, arguments.kind or names)
        only = [arguments.only] if arguments.only is not None else None
        return 1 if sum(_report(campaign, name, only or range(tries)) for name, tries in shares.items()) else 0


def _report(campaign: Campaign, name: str, numbers: Sequence[int]) -> int:
    """Make the attempts of a kind, print a line of the table, and return the number of escapes."""
    start = time.monotonic()
    outcome = campaign.run(name, numbers)
    statuses = ", ".join(f"{status}: {count}" for status, count in sorted(outcome.statuses.items()))
    elapsed_s = time.monotonic() - start
    print(f"{name:<12}{outcome.tries:>7}{len(outcome.escapes):>9}{elapsed_s:>8.1f}  {statuses}", flush=True)
    for escape in outcome.escapes:
        print(f"    --kind {name} --seed {campaign.seed} --only {escape.number}: {escape.reason}", flush=True)
    return len(outcome.escapes)


def _shares(tries: int, chosen: Sequence[str]) -> dict[str, int]:
    """Return the attempts of each chosen kind, by weight."""
    weights = {**{kind.name: kind.weight for kind in KINDS}, KILLS: _KILL_WEIGHT}
    weights = {name: weight for name, weight in weights.items() if name in chosen}
    # The kills come before the kinds that need PyTorch: a large process is slow to fork.
    ordered = sorted(weights, key=lambda name: any(kind.needs_torch for kind in KINDS if kind.name == name))
    return {name: max(1, round(tries * weights[name] / sum(weights.values()))) for name in ordered}


def _fast_folder() -> str | None:
    """A folder in memory, if there is one."""
    return "/dev/shm" if os.access("/dev/shm", os.W_OK) else None


def _samples(folder: Path) -> Samples:
    """Make the samples in a forked process: a session of ONNX Runtime here would start threads, which no fork has."""
    path = folder / "samples"
    process = os.fork()
    if process == 0:
        try:
            path.write_bytes(pickle.dumps(Samples.make(folder)))
        finally:
            os._exit(0)
    os.waitpid(process, 0)
    samples: Samples = pickle.loads(path.read_bytes())
    shutil.rmtree(folder / "bundle")
    return samples


if __name__ == "__main__":
    sys.exit(main())
