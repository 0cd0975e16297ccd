"""The sections of a document: what HTML and Markdown show, in their order."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

from edgevit.latency.document import plots
from edgevit.latency.document.blocks import Block, Command, Facts, Section, Table, Text
from edgevit.latency.document.content import Document, Entry, Session
from edgevit.latency.document.figures import ABSENT, figure, megabytes, millijoules, with_interval
from edgevit.latency.document.identity import engine_rows, machine_rows, setting_rows
from edgevit.latency.document.measured_parts import part_sections
from edgevit.latency.document.repeat import certifying_command, left_out, repeat_command
from edgevit.latency.document.validity import Answer
from edgevit.latency.document.verdict import certified, headline
from edgevit.latency.report import LatencyReport

_TOP = 2  # level of a section's heading; those of one of several runs are a level lower

_REFERENCE = "reference"
Cell = Callable[[Entry], str]
# Several tables: one would be wider than a page.
_TIMES: dict[str, Cell] = {
    "precision": lambda entry: entry.precision or ABSENT,
    "p50 ms": lambda entry: with_interval(entry.report.p50_ms, entry.report.p50_interval_ms),
    "p90 ms": lambda entry: with_interval(entry.report.p90_ms, entry.report.percentile_interval_ms(90)),
    "p99 ms": lambda entry: with_interval(entry.report.p99_ms, entry.report.percentile_interval_ms(99)),
    "time ratio": lambda entry: (
        ABSENT if entry.ratio is None else with_interval(entry.ratio.value, entry.ratio.interval)
    ),
    "verdict": lambda entry: _REFERENCE if entry.ratio is None else entry.ratio.verdict,
}
_ON_GPU: dict[str, Cell] = {
    "GPU p50 ms": lambda entry: with_interval(*entry.report.compute_percentile(50)),
    "GPU p90 ms": lambda entry: with_interval(*entry.report.compute_percentile(90)),
    "GPU p99 ms": lambda entry: with_interval(*entry.report.compute_percentile(99)),
}
_COSTS: dict[str, Cell] = {
    "outputs": lambda entry: _outputs(entry.report),
    "images/s": lambda entry: figure(entry.report.throughput_per_s),
    "energy mJ": lambda entry: _energy(entry.report),
    "host MB": lambda entry: figure(entry.report.peak_memory_mb),
    "GPU MB": lambda entry: figure(entry.report.device_memory_mb),
    "size MB": lambda entry: megabytes(None if entry.product is None else entry.product.engine_bytes),
    "load s": lambda entry: figure(entry.report.load_s),
    "first answer ms": lambda entry: figure(entry.report.first_answer_ms),
    "runs": lambda entry: str(entry.report.runs),
}


def _outputs(report: LatencyReport) -> str:
    """Return whether the engine computed the reference outputs, if it was compared in this run."""
    if report.parity is None:
        return ABSENT
    return "as the reference" if report.parity.passed else f"WRONG: {report.parity.failure}"


def title_of(document: Document) -> str:
    """Return the title of a document: its models."""
    return f"Latency of {', '.join(document.models) or 'engines'}"


def subtitle_of(document: Document) -> str:
    """Return the devices, and the time of a single run."""
    devices = "; ".join(dict.fromkeys(session.device for session in document.sessions))
    measured_at = document.sessions[0].first.measured_at if len(document.sessions) == 1 else ""
    return f"{devices}, measured at {measured_at}" if measured_at else devices


def sections_of(document: Document) -> list[Section]:
    """Return all sections: an overview of several runs first, then each run."""
    several = len(document.sessions) > 1
    found = [Section("Notes", tuple(Text(note) for note in document.notes))] if document.notes else []
    pictures = tuple(plots.tradeoffs(document, "tradeoff"))
    if not several:
        return [*found, *_session(document.sessions[0], key="s0", level=_TOP, pictures=pictures)]
    found.append(Section("Overview", (_overview(document), *pictures)))
    for number, session in enumerate(document.sessions):
        found.append(Section(f"{number + 1}. {session.device}", _verdict(session)))
        found += _session(session, key=f"s{number}", level=_TOP + 1)
    return found


def _session(session: Session, *, key: str, level: int, pictures: Sequence[Block] = ()) -> Iterator[Section]:
    yield Section("Results", tuple(_results(session)), level)
    samples = (plots.distribution(session, f"{key}-spread"), plots.drift(session, f"{key}-drift"))
    yield Section("Pictures", (*samples, *pictures), level)
    for title, blocks in part_sections(session, key):
        yield Section(title, blocks, level)
    yield Section("Validity", (_validity(session),), level)
    yield Section("Machine", (Facts(machine_rows(session)),), level)
    yield Section("Settings", (Facts(setting_rows(session)),), level)
    yield Section("Engines", tuple(_engines(session)), level)
    yield Section("Protocol", (Facts(tuple(_protocol(session))),), level)
    yield Section("Repeat", tuple(_repeat(session)), level)


def _verdict(session: Session) -> tuple[Block, ...]:
    words = headline(session)
    return (Text(words[:1].upper() + words[1:], is_warning=certified(session) == "no"),)


def _overview(document: Document) -> Table:
    rows = [
        (
            entry.name,
            str(number + 1),
            session.device,
            entry.precision or ABSENT,
            figure(entry.ms_per_image),
            megabytes(None if entry.product is None else entry.product.engine_bytes),
            certified(session),
        )
        for number, session in enumerate(document.sessions)
        for entry in session.entries
    ]
    header = ("engine", "run", "device", "precision", "p50 ms per image", "size MB", "run certified")
    return Table(header, tuple(rows), left=4)


def _results(session: Session) -> Iterator[Block]:
    entries = session.entries
    yield _result_table(entries, _TIMES)
    if timed_on_gpu := [entry for entry in entries if entry.report.compute_ms]:
        yield _result_table(timed_on_gpu, _ON_GPU)
    yield _result_table(entries, _COSTS)
    batches = sorted({entry.report.batch for entry in entries})
    yield Text(
        f"Times are from host arrays to host arrays, of a batch of {', '.join(map(str, batches))}; in parentheses "
        "the 99 % interval. The time ratio is to the first engine, per image, in interleaved rounds: below 1 is "
        "faster. The first answer is that of a fresh engine, from the start of loading to its outputs. MB of memory "
        "are 2^20 bytes, of size 10^6."
    )
    for entry in entries:
        if entry.report.alone_p50_ms is not None:
            yield Text(
                f"{entry.title}: its clock varied in turns; alone, its p50 is {figure(entry.report.alone_p50_ms)} ms."
            )


def _result_table(entries: Sequence[Entry], cells: Mapping[str, Cell]) -> Table:
    """Return one row for each engine, without the columns that say nothing."""
    columns = {name: [cell(entry) for entry in entries] for name, cell in cells.items()}
    shown = {name: column for name, column in columns.items() if set(column) - {ABSENT, _REFERENCE}}
    rows = [(entry.title, *(column[index] for column in shown.values())) for index, entry in enumerate(entries)]
    return Table(("engine", *shown), tuple(rows))


def _energy(report: LatencyReport) -> str:
    """Return the energy of a batch above idle, of all counters."""
    estimates = report.energy_per_inference
    shown = [millijoules(each) for each in estimates.values()]
    if len(shown) == 1:
        return shown[0]
    return "; ".join(f"{name} {text}" for name, text in zip(estimates, shown, strict=True)) or ABSENT


def _validity(session: Session) -> Table:
    """Return one row for each condition and answer, with the evidence of each engine."""
    found: dict[tuple[str, Answer], list[tuple[str, str]]] = {}
    for entry in session.entries:
        for check in entry.checks:
            found.setdefault((check.name, check.answer), []).append((entry.title, check.evidence))
    order = list(dict.fromkeys(name for name, _ in found))
    rows = [
        (name, answer, _evidence(found[name, answer], session))
        for name, answer in sorted(found, key=lambda key: order.index(key[0]))
    ]
    return Table(("condition", "met", "evidence"), tuple(rows), left=3)


def _evidence(found: Sequence[tuple[str, str]], session: Session) -> str:
    """Return evidence that all engines share once, else each with its engine."""
    texts = list(dict.fromkeys(text for _, text in found))
    if len(texts) == 1 and len(found) == len(session.entries):
        return texts[0]
    return "; ".join(f"{title}: {text}" for title, text in found)


def _engines(session: Session) -> Iterator[Block]:
    for entry in session.entries:
        yield Text(entry.title)
        yield Facts(engine_rows(entry))


def _threads(session: Session) -> str:
    """Return the number of threads, of each engine if they differ."""
    counts = {
        entry.title: "chosen by the runtime" if entry.report.threads is None else str(entry.report.threads)
        for entry in session.entries
    }
    if len(set(counts.values())) == 1:
        return next(iter(counts.values()))
    return ", ".join(f"{title} {count}" for title, count in counts.items())


def _protocol(session: Session) -> Iterator[tuple[str, str]]:
    report, plan = session.first, session.first.plan
    if report.measured_at:
        yield "measured at", report.measured_at
    yield "threads", _threads(session)
    yield "warm-up", ", ".join(f"{entry.title} {entry.report.warmup_runs} runs" for entry in session.entries)
    yield "rounds", f"{len(report.round_ms)}, every engine one turn in each, in random order, in one process"
    seconds = ", ".join(f"{entry.title} {sum(entry.report.samples_ms) / 1e3:.1f} s" for entry in session.entries)
    yield "recorded", f"{seconds} (requested: at least {plan.min_duration_s:g} s each)"
    yield "unrecorded at the start of a turn", f"{plan.settle_s:g} s"
    if report.probe_ms is not None:
        yield "probes of the machine's speed", f"{len(report.probes)}, varied by {100 * report.speed_range:.0f} %"
    trace = report.trace
    if trace is None or not trace.costs_ms:
        yield "device sampling", "none: the device has no sensor that this user may read"
    else:
        rate = "" if trace.rate_hz is None else f" at {trace.rate_hz:.1f} Hz"
        yield (
            "device sampling",
            f"{len(trace.costs_ms)} times{rate}, {figure(trace.cost_ms)} ms each, between timed runs",
        )
        if trace.problem:
            yield "device sampling ended early", trace.problem


def _repeat(session: Session) -> Iterator[Block]:
    command = repeat_command(session)
    if command is None:
        yield Text("No bundle took part, so no command repeats this run.")
        return
    missing = left_out(session)
    without = f", without {', '.join(missing)}" if missing else ""
    yield Command(command, f"Measures the same engines again{without}:")
    if (longer := certifying_command(session)) is not None:
        yield Command(longer, "Measures long enough for a certificate:")
    for entry in session.entries:
        product = entry.product
        if product is not None and product.tool_line:
            yield Command(product.tool_line, f"{entry.title}, in the bundle's folder. {product.tool_note}")
