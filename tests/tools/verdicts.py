"""Count right and wrong verdicts of side-by-side measurements with planted slowdowns, on this machine.

    python -m tests.tools.verdicts --slowdown 0 --tries 40              # A/A: every verdict is wrong
    python -m tests.tools.verdicts --slowdown 100 --tries 20 --load 4   # next to four busy processes
    python -m tests.tools.verdicts --slowdown 10 --tries 100            # on an idle machine

The second candidate computes `--slowdown` percent more than the first. `--load` processes run at the same time as the
measurement: all the time, or in random bursts with `--bursts`. `--work ort` measures a chain of matmuls in ONNX Runtime
on all cores instead of single-threaded NumPy.
"""

from __future__ import annotations

import argparse
import multiprocessing
import random
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np

from edgevit.bundles.benchmark import measure_plan
from edgevit.latency.compare import side_by_side
from edgevit.latency.measure import Candidate, measure
from edgevit.latency.statistics import Ratio

_STEPS = 40  # of the first candidate; a step is 2.5 % of it
_LONGEST_BURST_S = 0.5
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


def compare_once(work: Callable[[int], Infer], slowdown: float, *, duration_s: float, seed: int) -> tuple[Ratio, float]:
    """Measure two candidates once and return the ratio of the second and the fraction of the cores others used."""
    steps = (_STEPS, round(_STEPS * (1 + slowdown)))
    plan = measure_plan(duration_s, seed=seed)
    reports = measure([Candidate(name=name, infer=work(count)) for name, count in zip("ab", steps, strict=True)], plan)
    ratio = side_by_side(reports)[1].ratio
    assert ratio is not None
    return ratio, reports[1].others_fraction or 0.0


def main() -> None:
    """Print one line per measurement and the counts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--slowdown", type=float, default=0.0, help="percent")
    parser.add_argument("--tries", type=int, default=40)
    parser.add_argument("--load", type=int, default=0)
    parser.add_argument("--bursts", action="store_true")
    parser.add_argument("--work", choices=WORK, default="numpy")
    parser.add_argument("--duration", type=float, default=1.0)
    arguments = parser.parse_args()
    verdicts: Counter[str] = Counter()
    covered = 0
    with load(arguments.load, bursts=arguments.bursts):
        for seed in range(arguments.tries):
            ratio, others = compare_once(
                WORK[arguments.work], arguments.slowdown / 100, duration_s=arguments.duration, seed=seed
            )
            verdicts[ratio.verdict] += 1
            interval = ratio.interval
            covered += interval is not None and 1 + arguments.slowdown / 100 in interval
            shown = "none" if interval is None else f"{interval.low:.3f} to {interval.high:.3f}"
            print(
                f"{ratio.value:.3f} ({shown}), {ratio.rounds} rounds, others {others:.0%}: {ratio.verdict}", flush=True
            )
    print(f"slowdown {arguments.slowdown:g} %: {dict(verdicts)}; the interval contains the truth {covered} times")


if __name__ == "__main__":
    main()
