"""Measure the latency of bundles side by side."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgevit.bundles.bundle import Bundle, display_names, require_distinct
from edgevit.bundles.engine import load_engine, open_engine, require_precision, used_threads
from edgevit.bundles.latency_file import bundle_details
from edgevit.bundles.source_model import FROM_MANIFEST, PytorchSource, load_unchecked, require_match
from edgevit.errors import MeasureError, ParityError, UsageError, did_you_mean, unknown_name
from edgevit.files import first_line
from edgevit.formats import get_format
from edgevit.latency.candidate import candidate_from_engine
from edgevit.latency.measure import measure
from edgevit.latency.memory import peak_memory_of
from edgevit.latency.plan import MeasurePlan
from edgevit.latency.progress import OnMeasure
from edgevit.latency.report import LatencyReport
from edgevit.latency.studies import NO_STUDIES, Studies, Subject, study
from edgevit.macs import ModelWork
from edgevit.precisions import chosen_in_session
from edgevit.runtimes.base import BuildOptions, Engine
from edgevit.runtimes.loading import Loading, timed_load
from edgevit.runtimes.parity import ParitySummary, compare, references_for
from edgevit.runtimes.peers import PEERS, build_peer, open_peer, require_peer
from edgevit.runtimes.precision import TF32
from edgevit.runtimes.pytorch import CUDA, TORCH_MODES, TorchEngine, TorchMode, module_bytes, torch_mode
from edgevit.runtimes.registry import get_runtime
from edgevit.subprocesses import python_command
from edgevit.types import Array, Precision

if TYPE_CHECKING:
    from edgevit.models.loading import LoadedModel

FROM_PYTORCH = (*TORCH_MODES, *PEERS)  # names of candidates that are made of the PyTorch model
_RUN_ONCE = "import sys; from edgevit.bundles.benchmark import run_once; run_once(*sys.argv[1:])"


def measure_bundles(
    bundles: Sequence[Bundle],
    *,
    against: Sequence[str] = (),
    source: PytorchSource = FROM_MANIFEST,
    threads: int | None = None,
    plan: MeasurePlan | None = None,
    studies: Studies = NO_STUDIES,
    on_progress: OnMeasure | None = None,
) -> tuple[LatencyReport, ...]:
    """Measure all bundles in interleaved rounds of one process; the first bundle is the reference of the ratios.

    `against` adds candidates made from the first bundle: a name of TORCH_MODES or PEERS for its PyTorch model, which
    `source` names, or a format, built from its ONNX file. The outputs of all are compared with PyTorch's. `studies` are
    made after the rounds, of the bundles; the limit is measured for the others too.

    Raises UsageError for an unknown name or one that is given twice, MissingError if a runtime is not installed.
    """
    others = [_require_known(name) for name in against]
    names = display_names(bundles)
    require_distinct([*names, *others])
    with ExitStack() as stack:
        subjects = [
            _bundle_subject(stack, name, bundle, used_threads(bundle, threads))
            for name, bundle in zip(names, bundles, strict=True)
        ]
        threads = used_threads(bundles[0], threads)
        for other in others:
            if other in TORCH_MODES:
                subjects.append(_torch_subject(stack, bundles[0], source, threads, mode=torch_mode(other)))
            elif other in PEERS:
                subjects.append(_peer_subject(stack, bundles[0], source, threads, name=other))
            else:
                subjects.append(_other_runtime(stack, bundles[0], other, threads))
        reports = measure([subject.candidate for subject in subjects], plan or measure_plan(), on_progress)
        return study(studies, subjects, reports, on_progress)


def _require_known(name: str) -> str:
    """Return the name of a candidate of `against`, a format's alias replaced by its name. Raises UsageError."""
    if name in FROM_PYTORCH:
        return name
    try:
        return get_format(name).name
    except UsageError:
        if did_you_mean(name, FROM_PYTORCH):  # a format's error lists formats only
            raise unknown_name("candidate", name, FROM_PYTORCH) from None
        raise


def measure_plan(duration_s: float = 3.0) -> MeasurePlan:
    """Return a plan with at least `duration_s` seconds of samples for each engine, and up to three times the rounds."""
    return MeasurePlan(
        min_duration_s=duration_s,
        max_duration_s=max(120.0, 4 * duration_s),
        turn_s=min(0.2, duration_s / 16),  # enough rounds for an interval
        extension=3.0,
    )


def runs_on_gpu(bundles: Sequence[Bundle], against: Sequence[str]) -> bool:
    """Return whether a candidate of `measure_bundles` runs on a GPU, as far as is known before it is loaded."""
    if any(torch_mode(name).device == CUDA for name in against if name in TORCH_MODES):
        return True
    others = (name for name in against if name not in FROM_PYTORCH)
    return any(get_format(name).runs_on_device for name in (*(bundle.fmt for bundle in bundles), *others))


def run_once(path: str, threads: str = "", streams: str = "") -> None:
    """Load a bundle's engine and run one batch, or one in each stream.

    Runs in a process of its own, whose peak memory is measured.
    """
    bundle = Bundle.open(path)
    with open_engine(bundle, threads=int(threads) if threads else None) as engine:
        engine.run(_feeds(bundle))
        runner = engine.throughput_runner(int(streams)) if streams else None
        if runner is not None:
            runner.run_for(_feeds(bundle), 0.0)
            runner.close()


def _bundle_subject(stack: ExitStack, name: str, bundle: Bundle, threads: int | None) -> Subject:
    """The bundle's own engine, which has to run in the bundle's precision."""
    peak_mb = peak_memory_mb(bundle, threads)
    if bundle.engine_path is not None:
        stack.enter_context(get_runtime(bundle.fmt).session())
    engine, loading = timed_load(lambda: load_engine(bundle, threads=threads))
    stack.enter_context(engine)
    executed = require_precision(bundle, engine)
    candidate = candidate_from_engine(
        name,
        engine,
        _feeds(bundle),
        threads=threads,
        loading=replace(loading, peak_memory_mb=peak_mb),
        details=bundle_details(bundle, precision=executed.actual),
    )
    return Subject(
        candidate=replace(candidate, parity=_parity(name, bundle, engine, bundle.options.precision)),
        engine=engine,
        runtime=get_runtime(bundle.fmt).title,
        feeds=_feeds_by_batch(bundle),
        executed=executed,
        work=_work_of_engine(bundle),
    )


def _torch_subject(
    stack: ExitStack, bundle: Bundle, source: PytorchSource, threads: int | None, *, mode: TorchMode
) -> Subject:
    """PyTorch with the model that the bundle was exported from."""
    inputs, outputs = bundle.manifest.inputs, bundle.manifest.outputs
    model, loading = timed_load(lambda: _pytorch_model(bundle, source))
    torch_engine = TorchEngine(model.module, inputs, outputs, threads=threads, mode=mode)
    if mode.compiled:
        torch_engine.compile(_feeds(bundle))
    precision = _precision_of_pytorch(bundle)
    peer = _Peer(
        name=mode.title,
        runtime=mode.title,  # the CPU and the GPU have rates of their own
        loading=loading,
        threads=threads,
        work=_work_of_module(bundle, model.module),
        source=source.details,
    )
    return _subject(stack, bundle, torch_engine, peer, judged=precision)


def _peer_subject(
    stack: ExitStack, bundle: Bundle, source: PytorchSource, threads: int | None, *, name: str
) -> Subject:
    """A peer of PEERS, made of the model that the bundle was exported from."""
    require_peer(name)
    module = _pytorch_model(bundle, source).module
    inputs, outputs = bundle.manifest.inputs, bundle.manifest.outputs
    folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="edgevit-")))
    model = build_peer(name, module, _feeds(bundle), outputs, folder)
    engine, loading = timed_load(lambda: open_peer(name, model, inputs, outputs, threads=threads))
    peer = _Peer(
        name=name,
        runtime=get_runtime(PEERS[name]).title,
        loading=loading,
        threads=threads,
        work=_work_of_module(bundle, module),
        source=source.details,
    )
    return _subject(stack, bundle, engine, peer, judged=_precision_of_pytorch(bundle))


def _pytorch_model(bundle: Bundle, source: PytorchSource) -> LoadedModel:
    """The PyTorch model, whose outputs are checked; the values of random weights do not matter to the time."""
    model = load_unchecked(bundle, source)
    if not bundle.manifest.model.has_random_weights:
        require_match(bundle, model)
    return model


def _work_of_engine(bundle: Bundle) -> ModelWork | None:
    """The work of the bundle's engine, which in bf16 is less than that of the graph."""
    work = bundle.manifest.work
    return work.in_16_bits() if work is not None and chosen_in_session(bundle.options.precision) else work


def _work_of_module(bundle: Bundle, module: Any) -> ModelWork | None:
    """The work of the module itself, in fp32: int8 weights are smaller, in fp16 the results too."""
    work = bundle.manifest.work
    if work is None:
        return None
    larger = 2 if bundle.options.precision == "fp16" else 1  # the graph of an int8 bundle has fp32 results
    return replace(work, weight_bytes=module_bytes(module), activation_bytes=larger * work.activation_bytes)


def _precision_of_pytorch(bundle: Bundle) -> Precision | None:
    """The precision that PyTorch's outputs are judged in; None if its weights were drawn again as others."""
    record = bundle.manifest.model
    return None if record.has_random_weights and not record.has_seed else "fp32"


def _other_runtime(stack: ExitStack, bundle: Bundle, fmt: str, threads: int | None) -> Subject:
    """Another runtime on the bundle's ONNX file."""
    runtime = get_runtime(fmt)
    options = BuildOptions(threads=threads, dynamic_batch=bundle.options.dynamic_batch, batch=bundle.options.batch)
    folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="edgevit-")))
    artifact = runtime.build(bundle.model_path, folder, options)
    stack.enter_context(runtime.session())
    engine, loading = timed_load(lambda: runtime.open(artifact.path, options))
    peer = _Peer(name=fmt, runtime=runtime.title, loading=loading, threads=threads, work=bundle.manifest.work)
    judged = bundle.options.precision
    return _subject(stack, bundle, engine, peer, judged="fp32" if chosen_in_session(judged) else judged)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Peer:
    """An engine that is not the bundle's own."""

    name: str
    runtime: str  # its title
    loading: Loading
    threads: int | None
    work: ModelWork | None
    source: Mapping[str, str] = field(default_factory=dict)  # the PyTorch model, if the user named it


def _subject(stack: ExitStack, bundle: Bundle, engine: Engine, peer: _Peer, *, judged: Precision | None) -> Subject:
    """A loaded engine of a peer; any precision is accepted, and reported.

    Its outputs are compared with PyTorch's by the tolerance of the precision `judged`.
    """
    stack.enter_context(engine)
    executed, feeds = engine.executed_precision(), _feeds(bundle)
    candidate = candidate_from_engine(
        peer.name,
        engine,
        feeds,
        threads=peer.threads,
        loading=peer.loading,
        details={"precision": executed.actual, **peer.source},
    )
    # TF32 multiplies with the mantissa of fp16, so that the tolerance of fp32 would call any such engine wrong.
    judged = "fp16" if judged == "fp32" and executed.actual == TF32 else judged
    parity = None if judged is None else _parity(peer.name, bundle, engine, judged)
    return Subject(
        candidate=replace(candidate, parity=parity),
        engine=engine,
        runtime=peer.runtime,
        feeds={bundle.options.batch_to_measure: feeds},
        executed=executed,
        work=peer.work,
        is_peer=True,
    )


def _parity(name: str, bundle: Bundle, engine: Engine, precision: Precision) -> ParitySummary | None:
    """Compare an engine's outputs with PyTorch's; outputs that are no match are reported, and measured all the same."""
    references = references_for(bundle.references(), precision)
    try:
        batches = (bundle.options.batch_to_measure,)
        return compare(name, engine.run, references, precision=precision, batches=batches).summary
    except ParityError as error:  # other shapes than PyTorch's
        return ParitySummary(passed=False, max_error_std=None, cosine=None, failure=first_line(error))


def peak_memory_mb(bundle: Bundle, threads: int | None, *, streams: int | None = None) -> float | None:
    """Peak memory of a process that loads the engine and runs once, then in `streams`; None if it cannot be measured.

    A separate process, because in this one the other candidates would add to the peak.
    """
    arguments = [str(bundle.path), str(threads or ""), str(streams or "")]
    with contextlib.suppress(MeasureError):  # the engine may still load in this process
        return peak_memory_of(python_command(*arguments, code=_RUN_ONCE, is_child=False))
    return None


def _feeds(bundle: Bundle) -> dict[str, Array]:
    """One batch of the bundle's reference inputs."""
    return bundle.references()[0].batch(bundle.options.batch_to_measure)


def _feeds_by_batch(bundle: Bundle) -> dict[int, dict[str, Array]]:
    """Batches of the bundle's reference inputs: the fixed one, or powers of two within the bounds of a dynamic one."""
    bounds, reference = bundle.options.dynamic_batch, bundle.references()[0]
    sizes = {bundle.options.batch_to_measure}
    if bounds is not None:
        powers = {2**power for power in range(bounds.maximum.bit_length())}
        sizes |= {size for size in powers | {bounds.minimum, bounds.maximum} if size >= bounds.minimum}
    return {size: reference.batch(size) for size in sorted(sizes)}
