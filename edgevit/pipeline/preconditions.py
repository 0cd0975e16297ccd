"""Raise errors for an export that cannot succeed, before the long work."""

from __future__ import annotations

from edgevit.bundles import store
from edgevit.bundles.bundle import bundle_name
from edgevit.bundles.dense import DENSE_TASKS
from edgevit.cpu import require_vnni
from edgevit.dense.outputs import class_count
from edgevit.errors import UsageError
from edgevit.export.graph import OnnxGraph
from edgevit.files import has_control_characters
from edgevit.models.description import ModelDescription
from edgevit.pipeline.config import ExportConfig
from edgevit.runtimes.base import Runtime
from edgevit.types import Dim


def require_possible(runtime: Runtime, config: ExportConfig, model_name: str) -> None:
    """Raise before the long work if a package is missing, or the folder of the bundle holds something else."""
    if not runtime.format.builds_on_device:
        runtime.load()
    runtime.require_precision(config.options.precision)
    if config.int8_range == "full" and runtime.format.int8_on_cpu:
        require_vnni(f"{model_name} for {runtime.fmt}")
    store.require_replaceable(config.out / bundle_name(model_name, config.options.precision, runtime.fmt))


def require_class_names(model: ModelDescription, graph: OnnxGraph) -> None:
    """Raise UsageError if the model's class names could steer a terminal, or it has another number of classes."""
    for name in model.classes or ():
        if has_control_characters(name):
            raise UsageError(f"the class name {name!r} has control characters; give other names with --classes FILE")
    count = _class_count(model, graph)
    if model.classes is not None and count not in (None, len(model.classes)):
        raise UsageError(
            f"{len(model.classes)} class names for {count} classes; give one name a line, in the order of the "
            "logits (--classes FILE)"
        )


def _class_count(model: ModelDescription, graph: OnnxGraph) -> Dim | None:
    """Return the number of classes by the outputs; None if they do not say, as detections selected in the graph."""
    if model.origin.task in DENSE_TASKS:
        return class_count(graph.outputs, model.origin.output_form)
    logits = graph.outputs[0].shape if graph.outputs else ()
    return logits[1] if len(logits) == 2 else None
