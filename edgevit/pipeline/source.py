"""Source: what an export begins with, a module of PyTorch or an ONNX file."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from edgevit.errors import ExportError
from edgevit.export.graph import BATCH, OnnxGraph
from edgevit.models.description import ModelDescription
from edgevit.pipeline.onnx_float64 import float32_errors
from edgevit.pipeline.onnx_model import (
    OnnxModel,
    original_engine,
    reference_outputs,
    require_float32,
    undefined_weights,
)
from edgevit.runtimes.base import BuildOptions, Engine
from edgevit.types import Reference

if TYPE_CHECKING:
    from edgevit.pipeline.export_run import StageTimer


class Source(ABC):
    """The graph, the reference outputs and the baseline of latency of one model."""

    title: ClassVar[str]  # of what the references are computed with
    baseline: ClassVar[str]  # the name of the engine that others are measured against
    exporter: ClassVar[str]  # the function that made the graph

    @property
    @abstractmethod
    def exporter_version(self) -> str | None:
        """The version of PyTorch; None if it has no part in the export."""

    @abstractmethod
    def capture(self, timer: StageTimer, options: BuildOptions) -> OnnxGraph:
        """Return the graph that the passes begin with."""

    @abstractmethod
    def references(
        self, captured: OnnxGraph, *, images: Path | None, strict: bool, verify: bool, threads: int | None
    ) -> tuple[Reference, ...]:
        """Return inputs, photos first, and the model's own outputs for them."""

    @abstractmethod
    def undefined_weights(self) -> tuple[str, ...]:
        """Return the names of the weights that hold NaN or +inf; -inf is left out, since it masks."""

    @abstractmethod
    def float32_errors(self, reference: Reference, rows: Iterable[int]) -> Mapping[int, Mapping[str, float]]:
        """Return the float32 error of each output on single rows; rows are left out if it is unknown."""

    @abstractmethod
    def engine(self, captured: OnnxGraph, *, threads: int | None) -> Engine:
        """Return the model itself as an engine, the baseline of latency."""


def source_of(model: ModelDescription) -> Source:
    """Return the source of a model; PyTorch is imported for a module only."""
    if isinstance(model, OnnxModel):
        return OnnxSource(model)
    from edgevit.pipeline.torch_source import TorchSource

    return TorchSource.of(model)


class OnnxSource(Source):
    """An ONNX file, run by ONNX Runtime without optimizations as the reference."""

    title: ClassVar[str] = "the file"
    baseline: ClassVar[str] = "the file (ort)"
    exporter: ClassVar[str] = "import_onnx"

    def __init__(self, model: OnnxModel) -> None:
        self._model = model

    @property
    def exporter_version(self) -> None:
        return None

    def capture(self, timer: StageTimer, options: BuildOptions) -> OnnxGraph:
        require_float32(self._model, options.precision)
        dynamic_batch = options.dynamic_batch is not None
        with timer.stage("import the file"):
            graph = self._model.imported(dynamic_batch=dynamic_batch)
        batch = BATCH if dynamic_batch else self._model.batch
        for spec in graph.outputs:
            if not spec.shape or spec.shape[0] != batch:
                raise ExportError(
                    f"output {spec} does not begin with a batch of {batch}; "
                    "every output needs the batch as its first axis"
                )
        return graph

    def references(
        self, captured: OnnxGraph, *, images: Path | None, strict: bool, verify: bool, threads: int | None
    ) -> tuple[Reference, ...]:
        return reference_outputs(self._model, images=images, strict=strict, threads=threads)

    def undefined_weights(self) -> tuple[str, ...]:
        return undefined_weights(self._model.graph)

    def float32_errors(self, reference: Reference, rows: Iterable[int]) -> Mapping[int, Mapping[str, float]]:
        return float32_errors(self._model, reference, rows)

    def engine(self, captured: OnnxGraph, *, threads: int | None) -> Engine:
        return original_engine(self._model, threads=threads)
