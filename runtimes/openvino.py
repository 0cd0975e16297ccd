"""OpenVINO on the CPU: the model as IR files that every OpenVINO tool reads, compiled for latency as it loads."""

from __future__ import annotations

import io
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar

import numpy as np

from edgevit.errors import BuildError
from edgevit.runtimes.base import Artifact, BuildOptions, Engine, Runtime, available_cores
from edgevit.runtimes.openvino_precision import operators, read_back
from edgevit.runtimes.precision import ExecutedPrecision
from edgevit.types import Array, Dim, TensorSpec

DEVICE = "CPU"
_TELEMETRY = "openvino_telemetry"


class OpenVino(Runtime):
    """The CPU plugin, held to the precision that was asked for."""

    fmt: ClassVar[str] = "openvino"
    module: ClassVar[str] = "openvino"

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
            converted = ov.convert_model(io.BytesIO(model.read_bytes()))  # a path would be taken apart at its commas
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
        self._ov, self._settings = ov, settings
        self._artifact = artifact.absolute()  # it is read again, wherever the process has gone since
        self._turn = threading.Lock()

    def _infer(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        with self._turn:  # a request that is busy refuses
            self._require_open(self._request)
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
        asked = operators(source)
        found = read_back(self._compiled, asked)
        if self.batches is not None or "CACHE_DIR" in self._settings:
            settings = {name: value for name, value in self._settings.items() if name != "CACHE_DIR"}
            anew = read_back(self._ov.Core().compile_model(source, DEVICE, settings), asked)
            same = anew.layers.keys() == found.layers.keys()
            found = replace(found, macs=anew.macs if same else {})
        total = sum(operator.multiply_adds or 0 for operator in asked.values())
        counted = sum(found.macs.values())
        return found if abs(counted - total) <= 0.02 * total else replace(found, macs={})

    def executed_layers(self) -> ExecutedPrecision:
        return replace(read_back(self._compiled, operators(self._source())), macs={})

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
