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

    `lasting_s` replaces the seconds of the run. The engines of `left_out` are missing.
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


def left_out(session: Session) -> tuple[str, ...]:
    """Return the titles of engines that no command can name.

    Such are the fp32 engine beside an int8 export, a bundle that the report does not know, and the PyTorch model of a
    module that was in memory.
    """
    return tuple(entry.title for entry in session.entries if entry.product is None and _option(entry, session) is None)


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
    """Return the options that name the PyTorch model, if one was measured and the bundle alone does not."""
    if not any(_is_of_pytorch(entry.report.name) for entry in session.entries):
        return []
    return shlex.split(_named(session) or _recorded(session) or "")


def _named(session: Session) -> str:
    """Return the options with which the user named the PyTorch model; empty if there were none."""
    return next(filter(None, (entry.report.details.get(PYTORCH_MODEL, "") for entry in session.entries)), "")


def _recorded(session: Session) -> str | None:
    """Return the options that name the PyTorch model of the first bundle, of which it is made."""
    return next((entry.product.torch_options for entry in session.entries if entry.product is not None), None)


def _is_of_pytorch(name: str) -> bool:
    return name in _TORCH_OPTIONS or name in PEERS


def _against(session: Session) -> Iterator[str]:
    for entry in session.entries:
        if entry.product is None and (name := _option(entry, session)) is not None:
            yield name


def _option(entry: Entry, session: Session) -> str | None:
    """Return the name that `--against` takes for an engine; None if there is none."""
    name = entry.report.name
    if _is_of_pytorch(name):
        if not _named(session) and _recorded(session) is None:
            return None
        return _TORCH_OPTIONS.get(name, name)
    try:
        return get_format(name).name
    except UsageError:
        return None
