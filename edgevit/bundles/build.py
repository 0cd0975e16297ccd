"""Build a bundle's engine on this machine."""

from __future__ import annotations

import shutil
from contextlib import ExitStack
from dataclasses import replace

from edgevit.bundles import store
from edgevit.bundles.bundle import Bundle, bundle_name
from edgevit.bundles.manifest import (
    CLASSES_FILE,
    MODEL_FILE,
    REFERENCE_FILE,
    BuildRecord,
    PrecisionRecord,
    RuntimeRecord,
    read_manifest,
)
from edgevit.bundles.verify import engine_parity
from edgevit.cpu import require_vnni
from edgevit.errors import MissingError
from edgevit.latency.environment import Environment
from edgevit.runtimes.base import OnPhase
from edgevit.runtimes.build import build_engine, open_built
from edgevit.runtimes.parity import ParityReport
from edgevit.runtimes.registry import get_runtime


def build(
    bundle: Bundle,
    *,
    fmt: str | None = None,
    threads: int | None = None,
    workspace_mb: int | None = None,
    on_phase: OnPhase | None = None,
) -> tuple[Bundle, ParityReport]:
    """Build an engine from the bundle's ONNX file, verify it, and publish a bundle that holds it.

    The result replaces the bundle if the format is its own, and is written next to it otherwise. On any error the
    bundle on disk is unchanged.

    Raises MissingError if the runtime or its device is missing, BuildError if the build fails, PrecisionError if
    another precision runs than was requested, ParityError if the engine's outputs are wrong.
    """
    runtime = get_runtime(fmt or bundle.fmt, on_phase)
    same_format = runtime.fmt == bundle.fmt
    inherited = bundle.options if same_format else replace(bundle.options, compute_capabilities=None)
    options = replace(inherited, threads=threads, workspace_mb=workspace_mb)
    runtime.require_precision(options.precision)
    if bundle.needs_vnni(runtime.fmt):
        require_vnni(bundle.name)
    name = bundle_name(bundle.manifest.model.name, options.precision, runtime.fmt)
    target = bundle.path.resolve().parent / (bundle.name if same_format else name)
    store.require_replaceable(target)  # before the build, which can take minutes
    with store.staging(target.parent) as staging, ExitStack() as stack:
        folder = staging / target.name
        folder.mkdir()
        for file in (MODEL_FILE, REFERENCE_FILE, CLASSES_FILE):
            if (bundle.path / file).exists():
                shutil.copyfile(bundle.path / file, folder / file)
        built = build_engine(runtime, folder / MODEL_FILE, folder, options)
        built = open_built(built, options, expected_fraction=bundle.quantized_fraction)
        if built.engine is None:
            raise MissingError(str(built.missing))
        stack.enter_context(built.engine)
        parity = engine_parity(built.engine, bundle.references(), options)
        parity.require()
        manifest = replace(
            bundle.manifest,
            build=BuildRecord.of(built, options),
            runtime=RuntimeRecord.of(built, folder),
            precision=PrecisionRecord(requested=options.precision, executed=built.precision),
            parity=parity.to_json(),
            latency=None,
            environment=Environment.capture().to_json(),
        )
        store.write_manifest(folder, manifest)
        store.publish({folder: target})
        return Bundle(target, read_manifest(target)), parity
