"""Count right and wrong verdicts of side-by-side measurements with planted slowdowns, on this machine.

    python -m tests.tools.verdicts --slowdown 0 --tries 40              # A/A: every verdict is wrong
    python -m tests.tools.verdicts --slowdown 100 --tries 20 --load 4   # next to four busy processes
    python -m tests.tools.verdicts --slowdown 10 --tries 100            # on an idle machine

The second candidate computes `--slowdown` percent more than the first. `--load` processes run at the same time as the
measurement: all the time, or in random bursts with `--bursts`. `--work ort` measures a chain of matmuls in ONNX Runtime
on all cores instead of single-threaded NumPy. `--sampling off` reads the device's sensors once instead of five times a
second. A try takes 4 to 8 s; `--minutes` ends a count early, and `--out FILE` keeps every try, so that the same command
goes on where it was stopped.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import multiprocessing
import random
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np

from edgevit.bundles.benchmark import measure_plan
from edgevit.latency.candidate import Candidate
from edgevit.latency.compare import side_by_side
from edgevit.latency.measure import measure
from edgevit.types import Interval

_STEPS = 40  # of the first candidate; a step is 2.5 % of it
_LONGEST_BURST_S = 0.5
_NEVER_S = 1e6
_VALUES = np.full(100_000, 0.5, np.float32)

Infer = Callable[[], object]


def numpy_work(steps: int) -> Infer:
    """Return single-threaded work of about 50 us a step.

    All candidates share one array: the alignment of an array alone changes the times by 20 %.
    """

    def infer() -> object:
        for _ in range(steps):
            np.multiply(_VALUES, np.float32(1.0), out=_VALUES)
            np.add(_VALUES, np.float32(0.0), out=_VALUES)
        return _VALUES[:1].copy()

    return infer


def ort_work(steps: int) -> Infer:
    """Return a chain of matmuls in ONNX Runtime on all cores."""
    import onnx
    import onnxruntime as ort
    from onnx import TensorProto, helper

    size = 192
    weight = helper.make_tensor("w", TensorProto.FLOAT, [size, size], np.eye(size, dtype=np.float32).ravel())
    nodes = [helper.make_node("MatMul", [f"x{step}", "w"], [f"x{step + 1}"]) for step in range(steps)]
    ends = [helper.make_tensor_value_info(f"x{step}", TensorProto.FLOAT, [size, size]) for step in (0, steps)]
    graph = helper.make_graph(nodes, "chain", ends[:1], ends[1:], [weight])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    session = ort.InferenceSession(onnx.ModelProto.SerializeToString(model), providers=["CPUExecutionProvider"])
    feeds = {"x0": np.ones((size, size), np.float32)}
    return lambda: session.run(None, feeds)


WORK = {"numpy": numpy_work, "ort": ort_work}


@contextmanager
def load(processes: int, *, bursts: bool) -> Iterator[None]:
    """Keep `processes` processes busy meanwhile."""
    children = [
        multiprocessing.get_context("spawn").Process(target=_busy, args=(seed, bursts), daemon=True)
        for seed in range(processes)
    ]
    for child in children:
        child.start()
    try:
        yield
    finally:
        for child in children:
            child.terminate()
            child.join()


def _busy(seed: int, bursts: bool) -> None:  # called by multiprocessing
    draw = random.Random(seed)  # no secret
    while True:
        end = time.perf_counter() + draw.uniform(0, _LONGEST_BURST_S)
        while time.perf_counter() < end:
            sum(range(1000))
        if bursts:
            time.sleep(draw.uniform(0, _LONGEST_BURST_S))


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """The circumstances of a count; tries in the same ones belong together."""

    slowdown: float  # percent
    work: str = "numpy"
    load: int = 0
    bursts: bool = False
    sampling: bool = True
    duration_s: float = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Try:
    """The outcome of one measurement."""

    seed: int
    ratio: float
    low: float | None  # ends of the interval; None if there are too few rounds for one
    high: float | None
    rounds: int
    others: float  # fraction of the cores that other processes used
    samples: int  # of the device's sensors
    verdict: str

    def holds(self, truth: float) -> bool:
        return self.low is not None and self.high is not None and truth in Interval(self.low, self.high)

    def __str__(self) -> str:
        shown = "none" if self.low is None else f"{self.low:.3f} to {self.high:.3f}"
        return (
            f"{self.seed}: {self.ratio:.3f} ({shown}), {self.rounds} rounds, others {self.others:.0%}, "
            f"{self.samples} samples: {self.verdict}"
        )


def compare_once(setting: Setting, seed: int) -> Try:
    """Measure two candidates once, the second with more work."""
    steps = (_STEPS, round(_STEPS * (1 + setting.slowdown / 100)))
    plan = replace(measure_plan(setting.duration_s), seed=seed)
    if not setting.sampling:
        plan = replace(plan, sample_interval_s=_NEVER_S, clock_settle_s=0.0)
    work = WORK[setting.work]
    reports = measure([Candidate(name=name, infer=work(count)) for name, count in zip("ab", steps, strict=True)], plan)
    ratio = side_by_side(reports)[1].ratio
    assert ratio is not None
    trace, interval = reports[0].trace, ratio.interval
    return Try(
        seed=seed,
        ratio=ratio.value,
        low=None if interval is None else interval.low,
        high=None if interval is None else interval.high,
        rounds=ratio.rounds,
        others=reports[1].others_fraction or 0.0,
        samples=0 if trace is None else len(trace.costs_ms),
        verdict=ratio.verdict,
    )


def summary(setting: Setting, tries: Sequence[Try]) -> str:
    """Return the counts in one line."""
    verdicts = dict(Counter(each.verdict for each in tries))
    true = sum(each.holds(1 + setting.slowdown / 100) for each in tries)
    return f"{setting}: {len(tries)} tries: {verdicts}; the interval contains the truth {true} times"


def read_tries(path: Path | None, setting: Setting) -> list[Try]:
    """Return the tries of a setting that a file keeps; a line may be empty, or cut off."""
    found = []
    for line in path.read_text("utf-8").splitlines() if path and path.exists() else ():
        with contextlib.suppress(ValueError):
            record = json.loads(line)
            if record["setting"] == asdict(setting):
                found.append(Try(**record["try"]))
    return found


def main() -> None:
    """Print one line per measurement and the counts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--slowdown", type=float, default=0.0, help="percent")
    parser.add_argument("--tries", type=int, default=40)
    parser.add_argument("--load", type=int, default=0)
    parser.add_argument("--bursts", action="store_true")
    parser.add_argument("--work", choices=WORK, default="numpy")
    parser.add_argument("--sampling", choices=("on", "off"), default="on")
    parser.add_argument("--duration", type=float, default=1.0)
    parser.add_argument("--minutes", type=float, default=float("inf"), help="start no further try after that time")
    parser.add_argument("--out", type=Path, metavar="FILE.jsonl", help="keep each try, and go on after those kept")
    arguments = parser.parse_args()
    setting = Setting(
        slowdown=arguments.slowdown,
        work=arguments.work,
        load=arguments.load,
        bursts=arguments.bursts,
        sampling=arguments.sampling == "on",
        duration_s=arguments.duration,
    )
    end_s = time.monotonic() + 60 * arguments.minutes
    tries = read_tries(arguments.out, setting)
    done = {each.seed for each in tries}
    with load(setting.load, bursts=setting.bursts):
        for seed in sorted(set(range(arguments.tries)) - done):
            if time.monotonic() > end_s:
                break
            tries.append(compare_once(setting, seed))
            print(tries[-1], flush=True)
            if arguments.out is not None:
                with arguments.out.open("a", encoding="utf-8") as file:
                    file.write("\n" + json.dumps({"setting": asdict(setting), "try": asdict(tries[-1])}))
    print(summary(setting, tries))


if __name__ == "__main__":
    main()
