"""OpenVINO on the CPU: the model as IR files that every OpenVINO tool reads, compiled for latency as it loads."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from edgevit.errors import BuildError
from edgevit.runtimes.base import Artifact, BuildOptions, Engine, ExecutedPrecision, Runtime, available_cores
from edgevit.tensors import Array, Dim, Precision, TensorSpec

DEVICE = "CPU"
_PRECISIONS = {"f32": "fp32", "f16": "fp16", "bf16": "bf16", "i8": "int8", "u8": "int8", "f64": "fp64"}
_MULTIPLYING = frozenset({"Convolution", "GroupConvolution", "FullyConnected", "MatMul", "ScaledAttn", "MHA",
                          "ScaledDotProductAttention", "Deconvolution"})  # fmt: skip


class OpenVino(Runtime):
    """The CPU plugin, held to the precision that was asked for."""

    fmt: ClassVar[str] = "openvino"
    title: ClassVar[str] = "OpenVINO"
    module: ClassVar[str] = "openvino"
    extra: ClassVar[str] = "openvino"
    precisions: ClassVar[tuple[Precision, ...]] = ("fp32",)

    def build(self, model: Path, folder: Path, options: BuildOptions) -> Artifact:
        self.require_precision(options.precision)
        ov = self.load()
        start = time.perf_counter()
        xml, weights = folder / "model.xml", folder / "model.bin"
        try:
            converted = ov.convert_model(model)
            # OpenVINO's default would halve fp32 weights and say nothing.
            ov.save_model(converted, xml, compress_to_fp16=False)
        except Exception as error:  # OpenVINO raises RuntimeError and its own kinds
            raise BuildError(f"OpenVINO cannot convert {model.name}: {_line(error)}") from error
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

    def _infer(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        try:
            results = self._request.infer(dict(feeds), share_inputs=True, share_outputs=True)
        except Exception as error:
            raise BuildError(f"OpenVINO failed to run: {_line(error)}") from error
        # Copies: the request writes its next answers into the same memory.
        return {spec.name: np.array(results[index]) for index, spec in enumerate(self.outputs)}

    def executed_precision(self) -> ExecutedPrecision:
        """By the layers of the compiled model that multiply, as the plugin reports them."""
        found: Counter[str] = Counter()
        for node in self._compiled.get_runtime_model().get_ops():
            info = node.get_rt_info()
            if str(info["layerType"].astype(str)) in _MULTIPLYING:
                precision = str(info["runtimePrecision"].astype(str))
                found[_PRECISIONS.get(precision.lower(), precision)] += 1
        return ExecutedPrecision(dict(found))

    def close(self) -> None:
        self._request = self._compiled = None


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
