"""Sampler: a thread that reads the device's channels on request, while an engine works and nothing is timed."""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from edgevit.files import first_line
from edgevit.latency import clock
from edgevit.latency.sampling import board, nvml, processor
from edgevit.latency.sampling.channel import Channel, Source
from edgevit.latency.sampling.trace import NOBODY, DeviceTrace, Series
from edgevit.latency.system_files import SystemFiles

INTERVAL_S = 0.2  # 5 Hz
_MAX_WAIT_NS = 2_000_000_000  # a driver that does not answer by then ends the sampling, and not the measurement
_JOIN_S = 1.0


class _Sample(NamedTuple):
    start_ns: int
    candidate: int
    cost_ms: float
    row: list[float | None]  # a value for each channel


class Sampler:
    """Reads `sources` in a thread of its own.

    `request` asks for a sample, if one is due; until `busy` is False again, nothing may be timed. Without sources it
    does nothing. Use it in a `with` block.
    """

    def __init__(
        self,
        sources: Sequence[Source],
        names: Sequence[str],
        *,
        energy: Sequence[Source] = (),
        interval_s: float = INTERVAL_S,
        now_ns: Callable[[], int] | None = None,
    ) -> None:
        kept = [source.kept() for source in sources]
        counters = [source.kept() for source in energy]
        self._energy = [source for source in counters if source is not None]
        self._sources = [*(source for source in kept if source is not None), *self._energy]
        self._names, self._interval_ns, self._now_ns = tuple(names), round(1e9 * interval_s), now_ns or clock.now_ns
        self._served = [0] * len(self._names)  # samples of each candidate in turns
        self._samples: list[_Sample] = []  # the thread appends to it while others may read it
        self._problem = ""
        self._busy, self._stopping = False, False
        self._candidate, self._requested_ns = NOBODY, 0
        self._wanted = threading.Event()
        self._thread = threading.Thread(target=self._serve, name="edgevit-sampler", daemon=True)

    @property
    def channels(self) -> tuple[Channel, ...]:
        return tuple(channel for source in self._sources for channel in source.channels)

    @property
    def energy_names(self) -> tuple[str, ...]:
        """The energy counters, in the order of `energy_j`."""
        return tuple(channel.name for source in self._energy for channel in source.channels)

    def energy_j(self) -> tuple[float | None, ...]:
        """Read the energy counters now, in the calling thread."""
        return tuple(value for source in self._energy for value in source.read())

    def request(self, candidate: int, *, in_turns: bool = True) -> None:
        """Ask for a sample while `candidate` works, if the last one is an interval ago.

        If candidates take turns, one that has more samples than another leaves its turn to that one, for an interval at
        most.
        """
        now_ns = self._now_ns()
        waited_ns = now_ns - self._samples[-1].start_ns if self._samples else 2 * self._interval_ns
        served = in_turns and self._served[candidate] > min(self._served)
        due = waited_ns >= (2 if served else 1) * self._interval_ns
        if self._sources and due and not self._busy and not self._problem:
            self._served[candidate] += in_turns
            self._candidate, self._requested_ns, self._busy = candidate, now_ns, True
            self._wanted.set()

    @property
    def busy(self) -> bool:
        """Whether a requested sample is still being read."""
        if self._busy and self._now_ns() - self._requested_ns > _MAX_WAIT_NS:
            self._problem, self._busy = "the device's sensors did not answer in time", False
        return self._busy

    def take(self, candidate: int = NOBODY) -> None:
        """Read one sample in the calling thread. A sensor that fails ends the sampling, and not the measurement."""
        if not self._sources or self._problem:
            return
        start_ns = self._now_ns()
        try:
            row = [value for source in self._sources for value in source.read()]
        except Exception as error:
            self._problem = f"a sensor failed ({first_line(error)})"
            return
        if self._problem:  # too late: the measurement has gone on
            return
        cost_ms = round((self._now_ns() - start_ns) / 1e6, 3)
        self._samples.append(_Sample(start_ns, candidate, cost_ms, row))

    def trace(self, origin_ns: int) -> DeviceTrace | None:
        """Return the samples, with times from `origin_ns`; None if the device has no channel."""
        if not self._sources:
            return None
        samples = tuple(self._samples)
        return DeviceTrace(
            names=self._names,
            starts_ns=tuple(sample.start_ns - origin_ns for sample in samples),
            candidates=tuple(sample.candidate for sample in samples),
            costs_ms=tuple(sample.cost_ms for sample in samples),
            series=tuple(
                Series(channel, tuple(sample.row[index] for sample in samples))
                for index, channel in enumerate(self.channels)
            ),
            problem=self._problem,
        )

    def __enter__(self) -> Sampler:
        self.take()
        if self._sources:
            self._thread.start()
        return self

    def __exit__(self, *_error: object) -> None:
        self._stopping = True
        self._wanted.set()
        if self._thread.is_alive():
            self._thread.join(_JOIN_S)
        self.take()

    def _serve(self) -> None:
        while True:
            self._wanted.wait()
            self._wanted.clear()
            if self._stopping:
                return
            self.take(self._candidate)
            self._busy = False


@contextmanager
def device_sampler(
    names: Sequence[str], *, gpu_uuids: Collection[str] = (), interval_s: float = INTERVAL_S, root: Path = Path("/")
) -> Iterator[Sampler]:
    """Yield a running sampler of this machine for the candidates `names`, and of the GPUs that they use.

    `root` is the folder that holds the system's files.
    """
    files = SystemFiles(root)
    with nvml.nvml_session() as library:
        gpus = nvml.gpus_with(library, gpu_uuids) if library is not None else {}
        sources, energy = _sources(files, gpus)
        with Sampler(sources, names, energy=energy, interval_s=interval_s) as sampler:
            yield sampler


def device_channels(root: Path = Path("/")) -> tuple[Channel, ...]:
    """Return the channels that this user can read on this machine, those of all its GPUs included."""
    with nvml.nvml_session() as library:
        gpus = {gpu.uuid or "": gpu for gpu in library.gpus()} if library is not None else {}
        sources, energy = _sources(SystemFiles(root), gpus)
        return Sampler(sources, (), energy=energy).channels


def _sources(files: SystemFiles, gpus: dict[str, nvml.Gpu]) -> tuple[list[Source], list[Source]]:
    """Return the sources of a machine, and those of its energy counters."""
    sources = [*board.board_sources(files), *processor.processor_sources(files), *nvml.gpu_sources(gpus)]
    return sources, [*processor.energy_sources(files), *nvml.gpu_energy_sources(gpus)]
