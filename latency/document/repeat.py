"""The command that repeats a measurement."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence

from edgevit.errors import UsageError
from edgevit.formats import get_format
from edgevit.latency.candidate import PYTORCH_MODEL
from edgevit.latency.document.content import Entry, Session
from edgevit.latency.document.validity import MIN_RECORDED_S
from edgevit.latency.report import LAYERS, ROOFLINE, THROUGHPUT, LatencyReport
from edgevit.runtimes.base import THREADS_REQUESTED
from edgevit.runtimes.peers import PEERS
from edgevit.runtimes.pytorch import CPU, CUDA, TORCH_CPU, TorchMode

_TORCH_OPTIONS = {
    TORCH_CPU.title: "torch",
    TorchMode(CUDA).title: "torch-cuda",
    TorchMode(CPU, compiled=True).title: "torch-compile",
    TorchMode(CUDA, compiled=True).title: "torch-compile",
}


def repeat_command(session: Session, *, lasting_s: float | None = None) -> str | None:
    """Return the `edgevit latency` command that measures the same engines again; None if no bundle took part.

    `lasting_s` replaces the seconds of the run. Engines that no option makes, such as the fp32 engine beside an int8
    export, are left out.
    """
    bundles = [entry.product.path for entry in session.entries if entry.product is not None]
    if not bundles:
        return None
    plan = session.first.plan
    threads = session.first.details.get(THREADS_REQUESTED, session.first.threads)
    against = list(_against(session))
    words = [
        *("edgevit", "latency", *bundles),
        *(["--against", ",".join(against)] if against else []),
        *_source(session),
        *(["--threads", str(threads)] if threads is not None else []),
        *("--duration", f"{plan.min_duration_s if lasting_s is None else lasting_s:g}"),
        *_studies([entry.report for entry in session.entries]),
    ]
    return shlex.join(words)


def certifying_command(session: Session) -> str | None:
    """Return the command that measures long enough for a certificate; None if this run was long enough."""
    if session.first.plan.min_duration_s >= MIN_RECORDED_S:
        return None
    return repeat_command(session, lasting_s=MIN_RECORDED_S)


def _studies(reports: Sequence[LatencyReport]) -> Iterator[str]:
    """Yield the options of the studies that were requested; a sustained run that failed leaves no time to repeat."""
    for part in (ROOFLINE, LAYERS, THROUGHPUT):
        if any(getattr(report, part) is not None or part in report.study_problems for report in reports):
            yield f"--{part}"
    sustained_s = max((report.sustained.duration_s for report in reports if report.sustained is not None), default=0)
    if sustained_s:
        yield from ("--sustained", f"{sustained_s}s")


def _source(session: Session) -> list[str]:
    """Return the options that name the PyTorch model, if the user named it."""
    named = (entry.report.details.get(PYTORCH_MODEL, "") for entry in session.entries)
    return shlex.split(next(filter(None, named), ""))


def _against(session: Session) -> Iterator[str]:
    for entry in session.entries:
        if entry.product is None and (name := _option(entry)) is not None:
            yield name


def _option(entry: Entry) -> str | None:
    """Return the name that `--against` takes for an engine; None if there is none."""
    name = entry.report.name
    if name in _TORCH_OPTIONS or name in PEERS:
        return _TORCH_OPTIONS.get(name, name)
    try:
        return get_format(name).name
    except UsageError:
        return None
