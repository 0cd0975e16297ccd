"""The time of `Engine.run` over that of the runtime's bare session, in microseconds: docs/concepts.md.

    python -m tests.tools.run_overhead [--seconds 10]

The bare session is the runtime's own call with the least in it:

* ONNX Runtime: `session.run(None, feeds)`.
* OpenVINO: `request.infer()`, on an input that is in the request's memory already; its outputs stay there. It does less
  than any call on new inputs, so that a second figure compares with the fewest calls that do what `Engine.run` does:
  `set_input_tensor` of the array, `infer` without copies, and a copy of the output.

Both run on the session of the same engine, on one thread, in turns: some runs of one and then of the other, in swapped
order each time, after runs that are not timed. The overhead is the difference of the lower quartiles. The models are
shiftvit_cifar10 and one convolution. Run it on an idle machine: an overhead is that of code and data that the inference
before has displaced from the caches, which takes a multiple of the time that a loop of nothing else shows.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx

import edgevit
from edgevit.runtimes.base import BuildOptions, Engine
from edgevit.runtimes.onnxruntime import OnnxRuntimeEngine
from edgevit.runtimes.openvino import OpenVinoEngine
from edgevit.runtimes.registry import get_runtime
from edgevit.types import Feeds
from tests.tools.bench.rows import this_processor

FORMATS = ("ort", "openvino")
TINY = """<ir_version: 10, opset_import: ["" : 20]>
g (float[1, 3, 32, 32] images) => (float[1, 4, 30, 30] maps) <float[4, 3, 3, 3] w = {WEIGHTS}>
{ maps = Conv (images, w) }""".replace("WEIGHTS", ", ".join(["0.1"] * 108))
_TIMED, _WARMUP = 12, 3  # runs of a turn


@dataclass(frozen=True, slots=True, kw_only=True)
class Overhead:
    """The time of `Engine.run` over that of a bare session, both lower quartiles."""

    title: str
    bare_us: float
    run_us: float

    def __str__(self) -> str:
        return f"{self.title:58s} {self.bare_us:8.1f} us   Engine.run: {self.run_us - self.bare_us:+6.1f} us"


def bare_sessions(engine: Engine, feeds: Feeds) -> Iterator[tuple[str, Callable[[], object], Callable[[], object]]]:
    """Yield the name of each bare session of an engine, a call that prepares it, and the call itself."""
    if isinstance(engine, OnnxRuntimeEngine):
        session = engine._session
        yield "ONNX Runtime, session.run", lambda: None, lambda: session.run(None, feeds)
    elif isinstance(engine, OpenVinoEngine):
        request, tensor = engine._request, engine._ov.Tensor
        (array,) = feeds.values()
        own = request.get_input_tensor(0)

        def use_own_input() -> None:
            request.set_input_tensor(0, own)

        def set_infer_copy() -> object:
            request.set_input_tensor(0, tensor(array, shared_memory=True))
            request.infer(share_inputs=True, share_outputs=True)
            return request.get_output_tensor(0).data.copy()

        yield "OpenVINO, infer", use_own_input, request.infer
        yield "OpenVINO, set_input_tensor + infer + copy", use_own_input, set_infer_copy


def measure(engine: Engine, feeds: Feeds, *, name: str, seconds: float) -> list[Overhead]:
    """Return the overheads of an engine over each of its bare sessions, measured for `seconds` each."""
    engine.run(feeds)
    found = []
    for title, prepare, bare in bare_sessions(engine, feeds):
        calls: list[Callable[[], object]] = [bare, lambda: engine.run(feeds)]
        times_ns: list[list[int]] = [[], []]
        end = time.monotonic() + seconds
        order = [0, 1]
        while time.monotonic() < end or not times_ns[1]:
            for index in order:
                prepare()
                times_ns[index] += _turn(calls[index])
            order.reverse()
        prepare()
        bare_us, run_us = (float(np.quantile(times, 0.25)) / 1e3 for times in times_ns)
        found.append(Overhead(title=f"{name}, {title}", bare_us=bare_us, run_us=run_us))
    return found


def _turn(call: Callable[[], object]) -> list[int]:
    for _ in range(_WARMUP):
        call()
    times_ns = []
    for _ in range(_TIMED):
        start = time.perf_counter_ns()
        call()
        times_ns.append(time.perf_counter_ns() - start)
    return times_ns


def _engines(fmt: str, folder: Path) -> Iterator[tuple[str, Engine]]:
    """Yield the engines of shiftvit_cifar10 and of one convolution."""
    bundle = edgevit.export("shiftvit_cifar10", fmt=fmt, out=folder, latency=False)
    yield "shiftvit_cifar10", edgevit.load(bundle, threads=1)
    model, runtime, options = folder / f"{fmt}.onnx", get_runtime(fmt), BuildOptions(threads=1)
    onnx.save(onnx.parser.parse_model(TINY), model)
    target = folder / fmt
    target.mkdir()
    yield "a convolution", runtime.open(runtime.build(model, target, options).path, options)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=10.0, help="for each overhead (default: 10)")
    seconds = parser.parse_args().seconds
    print(this_processor())
    generator = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        for fmt in FORMATS:
            for name, engine in _engines(fmt, Path(folder)):
                with engine:
                    feeds = {spec.name: generator.random(spec.with_batch(1), np.float32) for spec in engine.inputs}
                    print(*measure(engine, feeds, name=name, seconds=seconds), sep="\n", flush=True)


if __name__ == "__main__":
    main()
