"""OpenVINO on the CPU: the model as IR files that every OpenVINO tool reads, compiled for latency as it loads."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar, NamedTuple

import numpy as np

from edgevit.errors import BuildError
from edgevit.runtimes.base import (
    Artifact,
    BuildOptions,
    Engine,
    ExecutedPrecision,
    Runtime,
    Shape,
    attention_multiply_adds,
    available_cores,
    by_precision,
    convolution_multiply_adds,
    product_multiply_adds,
)
from edgevit.tensors import Array, Dim, Precision, TensorSpec

DEVICE = "CPU"
_PRECISIONS = {"f32": "fp32", "f16": "fp16", "bf16": "bf16", "i8": "int8", "u8": "int8", "f64": "fp64"}
_CONVOLUTIONS = frozenset({"Convolution", "GroupConvolution"})
_PRODUCTS = frozenset({"FullyConnected", "MatMul"})
_ATTENTIONS = frozenset({"ScaledAttn", "MHA", "ScaledDotProductAttention"})
_MULTIPLYING = _CONVOLUTIONS | _PRODUCTS | _ATTENTIONS | {"Deconvolution"}
# Several operators compiled into one layer: what multiplies in it is told by their names alone.
_COMPILED = "Subgraph"
_TELEMETRY = "openvino_telemetry"


class OpenVino(Runtime):
    """The CPU plugin, held to the precision that was asked for."""

    fmt: ClassVar[str] = "openvino"
    title: ClassVar[str] = "OpenVINO"
    module: ClassVar[str] = "openvino"
    extra: ClassVar[str] = "openvino"
    precisions: ClassVar[tuple[Precision, ...]] = ("fp32", "int8")

    def load(self) -> ModuleType:
        """OpenVINO, without its telemetry: where that package is found, it reports the import and each conversion to
        its makers, from a thread of its own, and nobody is asked. OpenVINO does without it where it is not found."""
        sys.modules.setdefault(_TELEMETRY, None)  # type: ignore[arg-type]  # None: an import raises ImportError
        return super().load()

    def build(self, model: Path, folder: Path, options: BuildOptions) -> Artifact:
        self.require_precision(options.precision)
        ov = self.load()
        start = time.perf_counter()
        xml, weights = folder / "model.xml", folder / "model.bin"
        try:
            converted = ov.convert_model(model)
        except Exception as error:  # OpenVINO raises RuntimeError and its own kinds
            raise BuildError(f"OpenVINO cannot convert {model.name}: {_line(error)}") from error
        try:
            # OpenVINO's default would halve fp32 weights and say nothing.
            ov.save_model(converted, xml, compress_to_fp16=False)
        except Exception as error:
            raise BuildError(f"OpenVINO cannot write {xml.name}; is the disk full? ({_line(error)})") from error
        _require_whole(ov, xml, weights)
        return Artifact(fmt=self.fmt, files=(xml, weights), build_s=time.perf_counter() - start)

    def open(self, artifact: Path, options: BuildOptions) -> Engine:
        return OpenVinoEngine(self.load(), artifact, options)


class OpenVinoEngine(Engine):
    """One inference request of a model compiled for latency."""

    fmt = OpenVino.fmt

    def __init__(self, ov: Any, artifact: Path, options: BuildOptions) -> None:
        settings: dict[str, Any] = {
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_NUM_THREADS": options.threads or available_cores(),
            # The plugin would run fp32 models in bf16 where the processor has it.
            "INFERENCE_PRECISION_HINT": "f32",
        }
        if options.cache_dir is not None:
            settings["CACHE_DIR"] = str(options.cache_dir)
        try:
            self._compiled = ov.Core().compile_model(str(artifact), DEVICE, settings)
        except Exception as error:
            raise BuildError(f"OpenVINO cannot load {artifact}: {_line(error)}") from error
        devices = self._compiled.get_property("EXECUTION_DEVICES")
        if list(devices) != [DEVICE]:
            raise BuildError(f"OpenVINO runs on {devices}, not on {DEVICE}")
        self._request = self._compiled.create_infer_request()
        self.inputs = tuple(_spec(port) for port in self._compiled.inputs)
        self.outputs = tuple(_spec(port) for port in self._compiled.outputs)
        self.batches = options.dynamic_batch
        self._ov, self._artifact, self._settings = ov, artifact, settings

    def _infer(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        try:
            results = self._request.infer(dict(feeds), share_inputs=True, share_outputs=True)
        except Exception as error:
            raise BuildError(f"OpenVINO failed to run: {_line(error)}") from error
        # Copies: the request writes its next answers into the same memory.
        return {spec.name: np.array(results[index]) for index, spec in enumerate(self.outputs)}

    def executed_precision(self) -> ExecutedPrecision:
        """By the layers of the compiled model that multiply, as the plugin reports them.

        A model compiled for a dynamic batch tells no shapes, one from the cache not what it fused: its multiply-adds
        are those of the same model compiled anew, for the optimum batch, where both run the same precisions. They are
        unknown where they are not those of the graph.
        """
        source = self._source()
        asked = _operators(source)
        found = _read_back(self._compiled, asked)
        if self.batches is not None or "CACHE_DIR" in self._settings:
            settings = {name: value for name, value in self._settings.items() if name != "CACHE_DIR"}
            anew = _read_back(self._ov.Core().compile_model(source, DEVICE, settings), asked)
            same = anew.layers.keys() == found.layers.keys()
            found = replace(found, multiply_adds=anew.multiply_adds if same else {})
        total = sum(operator.multiply_adds or 0 for operator in asked.values())
        counted = sum(found.multiply_adds.values())
        return found if abs(counted - total) <= 0.02 * total else replace(found, multiply_adds={})

    def _source(self) -> Any:
        """The graph that was compiled, with all its shapes known."""
        try:
            model = self._ov.Core().read_model(str(self._artifact))
            if self.batches is not None:
                model.reshape({spec.name: list(spec.with_batch(self.batches.optimum)) for spec in self.inputs})
        except Exception as error:
            raise BuildError(f"OpenVINO cannot read {self._artifact} again: {_line(error)}") from error
        return model

    def close(self) -> None:
        self._request = self._compiled = None


class _Operator(NamedTuple):
    products: int
    multiply_adds: int | None  # None where the shapes do not tell


def _operators(model: Any) -> dict[str, _Operator]:
    """The operators of a graph that multiply, by name."""
    found = {}
    for node in model.get_ops():
        kind = node.get_type_name()
        if kind in ("ConvolutionBackpropData", "GroupConvolutionBackpropData"):
            kind = "Deconvolution"
        if kind in _MULTIPLYING:
            products = 2 if kind in _ATTENTIONS else 1
            found[node.get_friendly_name()] = _Operator(products, _multiply_adds(kind, node))
    return found


def _read_back(compiled: Any, asked: Mapping[str, _Operator]) -> ExecutedPrecision:
    """What a compiled model runs; `asked` has the graph's operators by name."""
    return by_precision(_layers(compiled.get_runtime_model(), asked))


def _layers(model: Any, asked: Mapping[str, _Operator]) -> Iterator[tuple[str, int | None]]:
    """The precision and the multiply-adds of each layer that multiplies."""
    for node in model.get_ops():
        info = {name: str(value.astype(str)) for name, value in node.get_rt_info().items()}
        kind, runs = info["layerType"], info["runtimePrecision"]
        precision = _PRECISIONS.get(runs.lower(), runs)
        if kind in _MULTIPLYING - _ATTENTIONS:
            yield precision, _multiply_adds(kind, node)
        elif kind in _ATTENTIONS or kind == _COMPILED:
            inside = [asked[name] for name in info["originalLayersNames"].split(",") if name in asked]
            counts = [operator.multiply_adds for operator in inside]
            if kind == _COMPILED and precision == "int8" and not _multiplies_int8(node, inside):
                precision = "fp32"
            if inside or kind in _ATTENTIONS:
                yield precision, None if None in counts else sum(count or 0 for count in counts)


def _multiplies_int8(node: Any, inside: Sequence[_Operator]) -> bool:
    """Whether all that several products in one layer multiply comes in 8 bits; one such input makes the plugin call the
    whole layer so, with the others in fp32."""
    types = [port.get_element_type().to_string() for port in node.inputs()]
    return sum(name in ("i8", "u8") for name in types) > sum(operator.products for operator in inside)


def _multiply_adds(kind: str, node: Any) -> int | None:
    """Of an operator or a layer, by its shapes: data are (N, C, ...) whatever their layout in memory."""
    inputs, out = [_shape(port) for port in node.inputs()], _shape(node.output(0))
    data, other = inputs[0], inputs[1] if len(inputs) > 1 else None
    if data is None or other is None or out is None:
        return None
    if kind in _CONVOLUTIONS:
        return convolution_multiply_adds(out, other, out[1])
    if kind == "Deconvolution":
        return convolution_multiply_adds(data, other, data[1])
    if kind in _PRODUCTS:
        return product_multiply_adds(data, out)
    return attention_multiply_adds(data, other, out)


def _shape(port: Any) -> Shape | None:
    partial = port.get_partial_shape()
    return tuple(int(size) for size in partial.to_shape()) if partial.is_static else None


def _require_whole(ov: Any, xml: Path, weights: Path) -> None:
    """OpenVINO's writer says nothing of a full disk: what it wrote is read back before it counts."""
    try:
        ov.Core().read_model(str(xml), str(weights))
    except Exception as error:
        raise BuildError(f"OpenVINO did not write {xml.name} whole; is the disk full? ({_line(error)})") from error


def _spec(port: Any) -> TensorSpec:
    shape: list[Dim] = [dim.get_length() if dim.is_static else "batch" for dim in port.get_partial_shape()]
    return TensorSpec(port.get_any_name(), np.dtype(port.get_element_type().to_dtype()).name, tuple(shape))


def _line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
