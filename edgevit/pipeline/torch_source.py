"""TorchSource: an export that begins with a module of PyTorch."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import ClassVar

import onnx_ir as ir
import torch

from edgevit.arrays import is_undefined
from edgevit.errors import ExportError
from edgevit.export.capture import capture
from edgevit.export.capture_errors import forward_error
from edgevit.export.graph import BATCH, OnnxGraph
from edgevit.models.description import ModelDescription
from edgevit.models.loading import LoadedModel
from edgevit.models.reference import compute_references, float32_errors
from edgevit.pipeline.export_run import StageTimer
from edgevit.pipeline.source import Source
from edgevit.runtimes.base import BuildOptions, Engine
from edgevit.runtimes.pytorch import TORCH_CPU, TorchEngine
from edgevit.types import Reference

_LAYERS = ("Conv", "ConvTranspose", "Gemm", "MatMul")


class TorchSource(Source):
    """A module, captured by torch.export and run eagerly as the reference."""

    title: ClassVar[str] = "PyTorch"
    baseline: ClassVar[str] = TORCH_CPU.title
    exporter: ClassVar[str] = "torch.onnx.export(dynamo=True)"

    def __init__(self, model: LoadedModel) -> None:
        self._model = model

    @classmethod
    def of(cls, model: ModelDescription) -> TorchSource:
        assert isinstance(model, LoadedModel)
        return cls(model)

    @property
    def exporter_version(self) -> str:
        return torch.__version__

    def capture(self, timer: StageTimer, options: BuildOptions) -> OnnxGraph:
        """Capture the model. Raises ExportError if an output has no batch dimension."""
        model, example = self._model, self._model.example
        dynamic_batch = options.dynamic_batch is not None
        if dynamic_batch and len(example[0]) == 1:  # torch.export treats a batch of one as a constant
            example = tuple(tensor.repeat(2, *([1] * (tensor.ndim - 1))) for tensor in example)
        with timer.watch() as memory:
            captured = capture(
                model.module,
                example,
                dynamic_batch=dynamic_batch,
                input_names=model.input_names,
                output_names=model.output_names,
            )
        timer.record("capture (torch.export)", captured.capture_s, memory)  # the peak of both
        timer.record("translate to ONNX", captured.translate_s, memory)
        _require_no_bfloat16(captured.graph)
        for spec in captured.graph.outputs:
            if not spec.shape:
                raise ExportError(f"output {spec} has no batch dimension; return one result per image, batch first")
            if dynamic_batch and spec.shape[0] != BATCH:
                raise ExportError(f"output {spec} has no dynamic batch dimension; export with a fixed --batch")
        return captured.graph

    def references(
        self, captured: OnnxGraph, *, images: Path | None, strict: bool, verify: bool, threads: int | None
    ) -> tuple[Reference, ...]:
        names = [spec.name for spec in captured.outputs]
        try:
            return compute_references(self._model, names, images=images, strict=strict, verify=verify)
        except ExportError as error:  # torch.export traces modules in half precision that PyTorch does not run
            raise forward_error(self._model.module, self._model.example) or error from error

    def undefined_weights(self) -> tuple[str, ...]:
        module = self._model.module
        named = itertools.chain(module.named_parameters(), module.named_buffers())
        return tuple(name for name, value in named if is_undefined(value.detach().float().numpy()))

    def float32_errors(self, reference: Reference, rows: Iterable[int]) -> Mapping[int, Mapping[str, float]]:
        return float32_errors(self._model, reference, rows)

    def engine(self, captured: OnnxGraph, *, threads: int | None) -> Engine:
        return TorchEngine(self._model.module, captured.inputs, captured.outputs, threads=threads)


def _require_no_bfloat16(graph: OnnxGraph) -> None:
    """Raise ExportError if a layer computes in bfloat16, which ONNX Runtime has no kernel for on the CPU."""
    for node in graph.model.graph.all_nodes():
        if node.op_type in _LAYERS and node.outputs[0].dtype == ir.DataType.BFLOAT16:
            raise ExportError(
                f"forward() computes {node.name} in bfloat16, which runtimes do not take: compute in float32 "
                "(module.float()) and choose the precision with --precision"
            )
