"""Compare a bundle's engine with its reference outputs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from edgevit.bundles.bundle import Bundle
from edgevit.bundles.engine import load_engine, require_precision
from edgevit.bundles.manifest import MANIFEST_FILE
from edgevit.dense.matching import ClassAgreement, agreement_of_outputs
from edgevit.errors import BundleError, ParityError
from edgevit.runtimes.base import BuildOptions, Engine
from edgevit.runtimes.parity import ParityReport, compare, references_for, run_rows, undefined_output
from edgevit.types import DENSE_TASKS, PHOTOS, Reference, TensorSpec
from edgevit.untrusted import shorten


def verify(
    bundle: Bundle, references: Sequence[Reference] | None = None, *, threads: int | None = None
) -> ParityReport:
    """Compare the bundle's engine with PyTorch: with the outputs in reference.npz, or with `references`.

    The report may have failed: call `ParityReport.require`. Raises ParityError if PyTorch's own outputs are NaN or not
    finite, PrecisionError if another precision runs than was requested, BundleError if the manifest describes other
    inputs or outputs than the engine has.
    """
    references = bundle.references() if references is None else references
    if reason := undefined_output(references):
        raise ParityError(
            f"no engine can be compared with the reference outputs: {reason}; export the model without --no-verify"
        )
    with load_engine(bundle, threads=threads) as engine:
        _require_described_tensors(bundle, engine)
        require_precision(bundle, engine)
        return engine_parity(engine, references, bundle.options)


def _require_described_tensors(bundle: Bundle, engine: Engine) -> None:
    """Raise BundleError unless the engine has the inputs and outputs, and the photo size, of the manifest."""
    manifest = bundle.manifest
    if not _describe(manifest.inputs, engine.inputs):
        raise _mismatch(bundle, "inputs", _named(manifest.inputs), engine.inputs)
    if not _describe(manifest.outputs, engine.outputs):
        raise _mismatch(bundle, "outputs", _named(manifest.outputs), engine.outputs)
    preprocessing = manifest.model.preprocessing
    if preprocessing is not None and [preprocessing.input_size] != [spec.shape[1:] for spec in engine.inputs]:
        raise _mismatch(bundle, "model.preprocessing.input_size", preprocessing.input_size, engine.inputs)


def _describe(specs: Sequence[TensorSpec], actual: Sequence[TensorSpec]) -> bool:
    """Return whether specs are those of an engine, in any order. TensorRT before 10 has int32 for int64."""
    narrow = {replace(spec, dtype="int32") if spec.dtype == "int64" else spec for spec in specs}
    return set(actual) in (set(specs), narrow)


def _mismatch(bundle: Bundle, field: str, described: object, actual: Sequence[TensorSpec]) -> BundleError:
    return BundleError(
        f"{bundle.path / MANIFEST_FILE} is damaged: {field} is {shorten(described)}, but the engine has "
        f"{', '.join(_named(actual)) or 'none'}; export the bundle again"
    )


def _named(specs: Sequence[TensorSpec]) -> list[str]:
    return [str(spec) for spec in specs]


def agreement_by_class(bundle: Bundle, *, threads: int | None = None) -> tuple[ClassAgreement, ...]:
    """Compare objects, or pixels, that the engine and PyTorch find in the photos of reference.npz.

    Empty for models that find neither, and without photos.
    """
    task, form = bundle.manifest.model.task, bundle.manifest.model.output_form
    photos = [reference for reference in bundle.references() if reference.kind == PHOTOS]
    if task not in DENSE_TASKS or form in ("raw", "features") or not photos:
        return ()
    (reference,) = photos[:1]
    with load_engine(bundle, threads=threads) as engine:
        outputs = run_rows(engine.run, reference, bundle.options.smallest_batch)
    return agreement_of_outputs(reference.outputs, outputs, form, bundle.preprocessing.input_size[1:])


def engine_parity(engine: Engine, references: Sequence[Reference], options: BuildOptions) -> ParityReport:
    """Compare an engine with reference outputs at each batch size of `options`."""
    return compare(
        f"{engine.fmt}: engine",
        engine.run,
        references_for(references, options.precision),
        precision=options.precision,
        batches=options.batch_sizes,
    )
