"""What a device does with a bundle: judge it, ask it, measure it. PyTorch is needed only where it is asked for."""

from __future__ import annotations

import contextlib
import shutil
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edgevit import metrics as accuracy
from edgevit.bundles import bundle as bundles
from edgevit.bundles.bundle import Bundle
from edgevit.datasets import find_labelled
from edgevit.errors import MeasureError, MissingError, ParityError, UsageError
from edgevit.formats import get_format
from edgevit.images import Preprocessing, find_images, read_batch
from edgevit.latency.environment import Environment
from edgevit.latency.measure import (
    Candidate,
    LatencyReport,
    MeasurePlan,
    candidate_from_engine,
    measure,
)
from edgevit.latency.memory import peak_memory_of
from edgevit.metrics import AccuracyReport, OnImages
from edgevit.runtimes.base import BuildOptions, Engine, ExecutedPrecision, OnPhase
from edgevit.runtimes.build import build_engine, open_built
from edgevit.runtimes.loading import Loading, timed_load
from edgevit.runtimes.parity import ParityReport, compare, references_for
from edgevit.runtimes.registry import get_runtime, load_engine, open_engine, require_precision
from edgevit.types import Array, Reference, TensorSpec

if TYPE_CHECKING:
    from edgevit.models.loading import LoadedModel

TORCH = "torch"
_RUN_ONCE = "import sys; from edgevit.bundles.device import run_once; run_once(*sys.argv[1:])"


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """The most likely classes of one photo, best first."""

    image: Path
    top: tuple[tuple[int, str, float], ...]  # class, its name, its probability

    def to_json(self) -> dict[str, Any]:
        top = [{"class": index, "name": name, "probability": probability} for index, name, probability in self.top]
        return {"image": str(self.image), "top": top}


def verify(bundle: Bundle, *, images: Path | None = None, threads: int | None = None) -> ParityReport:
    """Compares the bundle's engine with the answers of PyTorch that it carries, or with PyTorch itself on `images`.

    Raises BundleError where the bundle is not whole, MissingError where PyTorch is asked for and not installed.
    """
    references = bundle.references() if images is None else _ask_pytorch(bundle, images)
    with load_engine(bundle, threads=threads) as engine:
        require_precision(bundle, engine)
        return _judge(engine, references, bundle.options)


def build(
    bundle: Bundle,
    *,
    fmt: str | None = None,
    threads: int | None = None,
    workspace_mb: int | None = None,
    on_phase: OnPhase | None = None,
) -> tuple[Bundle, ParityReport]:
    """Builds an engine here from the ONNX file of a bundle, judges it, and publishes the bundle with it.

    For the bundle's own format it takes the bundle's place; for another one it stands beside it. Raises MissingError
    without the runtime or its device, BuildError, PrecisionError and ParityError; nothing has changed then.
    """
    runtime = get_runtime(fmt or bundle.fmt, on_phase)
    own = bundle.options if runtime.fmt == bundle.fmt else replace(bundle.options, compute_capabilities=None)
    options = replace(own, threads=threads, workspace_mb=workspace_mb)
    runtime.require_precision(options.precision)
    name = bundles.bundle_name(bundle.manifest["model"]["name"], options.precision, runtime.fmt)
    target = bundle.path.resolve().parent / (bundle.name if runtime.fmt == bundle.fmt else name)
    bundles.require_replaceable(target)  # said before the long work, not after it
    with bundles.staging(target.parent) as folder, ExitStack() as stack:
        place = folder / target.name
        place.mkdir()
        for file in (bundles.MODEL, bundles.REFERENCE, bundles.CLASSES):
            if (bundle.path / file).exists():
                shutil.copyfile(bundle.path / file, place / file)
        built = build_engine(runtime, place / bundles.MODEL, place, options)
        built = open_built(built, options, share=bundle.asked_share)
        if built.engine is None:
            raise MissingError(str(built.missing))
        stack.enter_context(built.engine)
        parity = _judge(built.engine, bundle.references(), options)
        parity.require()
        kept = {key: value for key, value in bundle.manifest.items() if key not in ("files", "schema_version")}
        environment = Environment.capture().to_json()
        proof = {"parity": parity.to_json(), "latency": None, "environment": environment}
        bundles.write_manifest(place, {**kept, **built.entries(place, options), **proof})
        (made,) = bundles.publish({place: target})
        return made, parity


def _judge(engine: Engine, references: Sequence[Reference], options: BuildOptions) -> ParityReport:
    return compare(
        f"{engine.fmt}: engine",
        engine.run,
        references_for(references, options.precision),
        precision=options.precision,
        batches=options.batch_sizes,
    )


def classify(bundle: Bundle, images: Sequence[Path], *, top: int = 5, threads: int | None = None) -> tuple[Answer, ...]:
    """The `top` classes of each photo, through the preprocessing that the bundle carries.

    A folder among `images` stands for the photos in it. Raises ImageError for a file that is no image.
    """
    if top < 1:
        raise UsageError(f"--top asks for at least one answer, not {top}")
    preprocessing, names = bundle.preprocessing, bundle.classes
    paths = [path for image in images for path in (find_images(image) if image.is_dir() else [image])]
    answers = []
    with open_engine(bundle, threads=threads) as engine:
        for path in paths:
            photo = read_batch([path], preprocessing)
            logits = _run_one(engine, photo, bundle.options)
            answers.append(Answer(image=path, top=_best(logits, names, top)))
    return tuple(answers)


def candidate_names(bundles: Sequence[Bundle]) -> list[str]:
    """What reports call bundles: by the folder's name, by its whole path where two share the name."""
    names = [bundle.name for bundle in bundles]
    return [bundle.name if names.count(bundle.name) == 1 else str(bundle.path) for bundle in bundles]


def measure_bundles(
    bundles: Sequence[Bundle], *, against: Sequence[str] = (), threads: int | None = None, duration_s: float = 3.0
) -> tuple[LatencyReport, ...]:
    """All bundles, and what each is to be held against, in one interleaved run; the first is the reference.

    `against` names `torch` or other formats: these are built from the first bundle's ONNX file.
    Raises UsageError for an unknown name, MissingError where something is not installed.
    """
    plan = MeasurePlan(
        min_duration_s=duration_s,
        max_duration_s=max(120.0, 2 * duration_s),
        turn_s=min(0.2, duration_s / 16),  # enough rounds for an interval
    )
    rivals = [name if name == TORCH else get_format(name).name for name in against]
    with ExitStack() as stack:
        candidates = [
            _contestant(stack, name, bundle, _loaded(bundle, threads), threads, own=True)
            for name, bundle in zip(candidate_names(bundles), bundles, strict=True)
        ]
        for rival in rivals:
            if rival == TORCH:
                candidates.append(_torch(stack, bundles[0], threads))
            else:
                candidates.append(_other_runtime(stack, bundles[0], rival, threads))
        return measure(candidates, plan)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Candidate:
    """An open engine that is to be evaluated, and what its answers mean."""

    name: str
    engine: Engine
    batch: int
    preprocessing: Preprocessing
    classes: tuple[str, ...] | None
    weights: str
    bundle: Bundle | None = None  # whose own engine it is; None of PyTorch


def evaluate_bundles(
    bundles: Sequence[Bundle],
    *,
    data: Path,
    models: Sequence[LoadedModel] = (),
    against: Sequence[str] = (),
    threads: int | None = None,
    limit: int | None = None,
    on_progress: OnImages | None = None,
) -> AccuracyReport:
    """Top-1 and top-5 of bundles, and of `models` in PyTorch, on the labelled images of a folder (see labelled.py).

    PyTorch is the reference where it takes part, be it as one of the `models` or `against` the bundles; the first
    bundle otherwise. `limit` takes so many images, spread over the classes. Raises UsageError for contestants that
    read photos differently or name other classes, MissingError where PyTorch is asked for and not installed.
    """
    if unknown := [name for name in against if name != TORCH]:
        raise UsageError(f"accuracy is held against {TORCH}, not {unknown[0]!r}; name a bundle beside the others")
    if against and not bundles:
        raise UsageError(f"--against {TORCH} is for bundles; a model by its name is PyTorch already")
    with ExitStack() as stack:
        candidates = [_torch_model(model, threads) for model in models]
        opened = [stack.enter_context(load_engine(bundle, threads=threads)) for bundle in bundles]
        if against:
            candidates.append(_torch_twin(bundles[0], opened[0], threads))
        names = candidate_names(bundles)
        candidates += [
            replace(_candidate(name, engine, bundle), bundle=bundle)
            for name, engine, bundle in zip(names, opened, bundles, strict=True)
        ]
        return _evaluate(candidates, data, limit, on_progress)


def _evaluate(
    candidates: Sequence[_Candidate], data: Path, limit: int | None, on_progress: OnImages | None
) -> AccuracyReport:
    first = candidates[0]
    count = accuracy.class_count(first.engine)
    for other in candidates[1:]:
        _require_alike(first, other)
    images = find_labelled(data, classes=first.classes, class_count=count)
    images = images if limit is None else images.spread(limit)
    found = accuracy.evaluate(
        {one.name: accuracy.in_own_batches(one.engine, one.batch) for one in candidates},
        images,
        first.preprocessing,
        batch=max(one.batch for one in candidates),
        precisions={one.name: _precision(one).found for one in candidates},
        progress=on_progress,
    )
    notes = [f"{one.name} has random weights: its accuracy says nothing" for one in candidates if _is_random(one)]
    return AccuracyReport(paths=images.paths, how=images.how, evaluations=found, notes=tuple(notes))


def _precision(candidate: _Candidate) -> ExecutedPrecision:
    if candidate.bundle is None:
        return candidate.engine.executed_precision()
    return require_precision(candidate.bundle, candidate.engine)


def _require_alike(first: _Candidate, other: _Candidate) -> None:
    if other.name == first.name:
        raise UsageError(f"{first.name} is named twice; name it once")
    if other.preprocessing != first.preprocessing:
        raise UsageError(
            f"{first.name} and {other.name} read photos differently ({first.preprocessing} and {other.preprocessing}); "
            "evaluate them one by one"
        )
    counts = accuracy.class_count(first.engine), accuracy.class_count(other.engine)
    if other.classes != first.classes or counts[0] != counts[1]:
        raise UsageError(f"{first.name} and {other.name} tell different classes apart; evaluate them one by one")


def _is_random(candidate: _Candidate) -> bool:
    return candidate.weights.startswith("random")


def _candidate(name: str, engine: Engine, bundle: Bundle) -> _Candidate:
    dynamic = bundle.options.dynamic_batch
    return _Candidate(
        name=name,
        engine=engine,
        batch=dynamic.optimum if dynamic else bundle.options.batch,
        preprocessing=bundle.preprocessing,
        classes=bundle.classes,
        weights=str(bundle.manifest["model"]["weights"]),
    )


def _torch_twin(bundle: Bundle, engine: Engine, threads: int | None) -> _Candidate:
    """PyTorch with the very module that a bundle was made from, under the names of its engine."""
    from edgevit.runtimes.pytorch import TorchEngine

    module = _same_subject(bundle).module
    return _candidate(TORCH, TorchEngine(module, engine.inputs, engine.outputs, threads=threads), bundle)


def _torch_model(model: LoadedModel, threads: int | None) -> _Candidate:
    """PyTorch with a model by its name. Raises UsageError where its weights are random or it takes no photos."""
    from edgevit.runtimes.pytorch import TorchEngine

    weights = str(model.origin["weights"])
    if weights.startswith("random"):
        raise UsageError(f"{model.name} has random weights, whose accuracy says nothing; give --weights FILE")
    if model.preprocessing is None:
        raise UsageError(f"{model.name} takes no photos, and accuracy is measured on photos")
    inputs = [TensorSpec(accuracy.INPUT, "float32", ("batch", *model.preprocessing.input_size))]
    probe = TorchEngine(model.module, inputs, [TensorSpec(accuracy.OUTPUT, "float32", ())], threads=threads)
    answer = probe.run({accuracy.INPUT: model.example[0].numpy()})[accuracy.OUTPUT]
    outputs = [TensorSpec(accuracy.OUTPUT, "float32", ("batch", *answer.shape[1:]))]
    return _Candidate(
        name=f"{model.name} ({TORCH})",
        engine=TorchEngine(model.module, inputs, outputs, threads=threads),
        batch=model.batch,
        preprocessing=model.preprocessing,
        classes=model.classes,
        weights=weights,
    )


def _contestant(
    stack: ExitStack,
    name: str,
    bundle: Bundle,
    loaded: tuple[Engine, Loading],
    threads: int | None,
    *,
    own: bool = False,
) -> Candidate:
    """`own`: the engine is that of the bundle, which has to run in the bundle's precision."""
    engine = stack.enter_context(loaded[0])
    precision = (require_precision(bundle, engine) if own else engine.executed_precision()).found
    return candidate_from_engine(
        name, engine, _feeds(bundle), threads=threads, loading=loaded[1], details={"precision": precision}
    )


def _loaded(bundle: Bundle, threads: int | None) -> tuple[Engine, Loading]:
    """The engine and what loading it took, a process of its own first: here others would add to its peak."""
    arguments = [str(bundle.path), *([str(threads)] if threads is not None else [])]
    peak_mb = None
    with contextlib.suppress(MeasureError):  # the engine may still load here, and then only this is unknown
        peak_mb = peak_memory_of([sys.executable, "-c", _RUN_ONCE, *arguments])
    engine, loading = timed_load(lambda: load_engine(bundle, threads=threads))
    return engine, replace(loading, peak_memory_mb=peak_mb)


def run_once(path: str, threads: str | None = None) -> None:
    """Loads a bundle's engine and runs a batch of its own inputs: what a process needs for that is what it holds."""
    bundle = Bundle.open(path)
    with open_engine(bundle, threads=int(threads) if threads is not None else None) as engine:
        engine.run(_feeds(bundle))


def _other_runtime(stack: ExitStack, bundle: Bundle, fmt: str, threads: int | None) -> Candidate:
    """Another runtime on the same ONNX file."""
    runtime = get_runtime(fmt)
    options = BuildOptions(threads=threads, dynamic_batch=bundle.options.dynamic_batch, batch=bundle.options.batch)
    folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="edgevit-")))
    artifact = runtime.build(bundle.model_path, folder, options)
    return _contestant(stack, fmt, bundle, timed_load(lambda: runtime.open(artifact.path, options)), threads)


def _torch(stack: ExitStack, bundle: Bundle, threads: int | None) -> Candidate:
    from edgevit.runtimes.pytorch import TorchEngine

    with load_engine(bundle, threads=threads) as engine:
        inputs, outputs = engine.inputs, engine.outputs
    loaded = timed_load(lambda: TorchEngine(_subject(bundle).module, inputs, outputs, threads=threads))
    return _contestant(stack, TORCH, bundle, loaded, threads)


def _subject(bundle: Bundle) -> LoadedModel:
    """What a bundle was made from, made again. Raises UsageError where the bundle does not say how.

    Random weights come from the same seed; a weights file that has moved away leaves random ones.
    """
    from edgevit.runtimes.pytorch import load_torch

    load_torch()
    from edgevit.models import loading as subject
    from edgevit.models import registry
    from edgevit.models.initialization import randomise

    model = bundle.manifest["model"]
    source, batch, weights = model["source"], bundle.options.batch, Path(model["weights"])
    if source is None:
        raise UsageError(f"{bundle.name} was made from a module in memory, which cannot be made again from its name")
    if ":" in source:
        size = bundle.manifest["inputs"][0]["shape"][2]
        return subject.from_name(source, weights=weights if weights.is_file() else None, img_size=size, batch=batch)
    module = registry.create_model(
        source,
        weights if weights.is_file() else None,
        model["num_classes"],
        img_size=bundle.preprocessing.input_size[1:],
        **model["options"],
    )
    made = subject.from_module(module, batch=batch)
    if str(made.origin["weights"]).startswith("random"):
        randomise(module, seed=subject.SEED)
    return made


def _ask_pytorch(bundle: Bundle, images: Path) -> tuple[Reference, ...]:
    """PyTorch's answers to other photos than the bundle carries, from the very module that it was made from."""
    made = _same_subject(bundle)
    from edgevit.models import reference as model_reference

    names = [output["name"] for output in bundle.manifest["outputs"]]
    return model_reference.compute_references(made, names, images=images)


def _same_subject(bundle: Bundle) -> LoadedModel:
    """What a bundle was made from, made again. Raises UsageError where it no longer answers as it did."""
    made = _subject(bundle)
    from edgevit.models import reference as model_reference

    for reference in bundle.references():
        again = model_reference.reference_outputs(made, tuple(reference.inputs.values()), tuple(reference.outputs))
        for name, stored in reference.outputs.items():
            if not np.allclose(again[name], stored, rtol=0, atol=1e-4 * float(stored.std())):
                raise UsageError(
                    f"PyTorch no longer answers as when {bundle.name} was made: its weights "
                    f"({bundle.manifest['model']['weights']}) have changed or moved; export it again"
                )
    return made


def _feeds(bundle: Bundle) -> dict[str, Array]:
    """One batch of the bundle's own inputs."""
    options = bundle.options
    batch = options.dynamic_batch.optimum if options.dynamic_batch else options.batch
    return bundle.references()[0].batch(batch)


def _run_one(engine: Engine, photo: Array, options: BuildOptions) -> Array:
    """The logits of one photo, (classes,); an engine with a fixed batch gets copies of it."""
    batch = options.dynamic_batch.minimum if options.dynamic_batch else options.batch
    outputs = engine.run({engine.inputs[0].name: np.repeat(photo, batch, axis=0)})
    logits = outputs[engine.outputs[0].name]
    if logits.ndim != 2 or logits.shape[1] < 2:
        raise UsageError(f"the model answers {engine.outputs[0]}, which are no classes; use edgevit.load in Python")
    if not np.isfinite(logits).all():
        raise ParityError("the model answers with NaN or infinity, which is no class; see edgevit verify BUNDLE")
    first: Array = logits[0]
    return first


def _best(logits: Array, names: Sequence[str] | None, top: int) -> tuple[tuple[int, str, float], ...]:
    shifted = np.exp(logits.astype(np.float64) - logits.max())
    probabilities = shifted / shifted.sum()
    order = np.argsort(-probabilities, kind="stable")[:top]
    return tuple((int(i), names[i] if names else f"class {i}", float(probabilities[i])) for i in order)
