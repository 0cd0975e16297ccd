"""Build the candidates of one model, and open them with a number of threads."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import openvino
import torch

from edgevit.bundles.bundle import Bundle, bundle_name
from edgevit.bundles.engine import load_engine
from edgevit.errors import EdgevitError
from edgevit.export.graph import OnnxGraph
from edgevit.files import first_line
from edgevit.latency.candidate import candidate_from_engine
from edgevit.latency.studies import Subject
from edgevit.models.loading import LoadedModel, from_name
from edgevit.pipeline import run as pipeline
from edgevit.pipeline.config import widest_int8_range
from edgevit.pipeline.export_run import StageTimer
from edgevit.pipeline.source import source_of
from edgevit.runtimes.base import BuildOptions, Engine
from edgevit.runtimes.peers import (
    DIRECT_OPENVINO,
    NAIVE_ONNX,
    NAIVE_ONNX_FILE,
    DirectOpenVinoEngine,
    NaiveOnnxEngine,
    build_peer,
)
from edgevit.runtimes.pytorch import TorchEngine, torch_mode
from edgevit.runtimes.registry import get_runtime
from edgevit.types import Array, Precision
from tests.helpers.quantization import snr_db
from tests.tools.bench.candidates import OPENVINO, ORT, Candidate
from tests.tools.bench.kept import Folders, kept
from tests.tools.bench.quantizers import prepare_static, quantize_static, quantize_with_nncf
from tests.tools.crops import crops

CALIBRATION_ROWS, HELD_OUT_ROWS = 32, 8
_CALIBRATION, _HELD_OUT = 0, 1  # seeds of the crops


@dataclass
class EngineBuilder:
    """The candidates of one model, each built when it is first needed unless it is kept. A failure is remembered."""

    name: str
    folders: Folders
    weights: Path | None = None
    calibration_rows: Array | None = None  # None: crops of the photos of the package
    failures: dict[str, str] = field(default_factory=dict)  # why candidates could not be built or loaded
    _built: dict[str, Any] = field(default_factory=dict)

    @cached_property
    def model(self) -> LoadedModel:
        return from_name(self.name, weights=self.weights)

    @property
    def million_parameters(self) -> float:
        return sum(each.numel() for each in self.model.module.parameters()) / 1e6

    @cached_property
    def captured(self) -> OnnxGraph:
        """The graph that all exports of edgevit begin with."""
        return source_of(self.model).capture(StageTimer(), BuildOptions())

    @cached_property
    def calibration(self) -> Array:
        if self.calibration_rows is not None:
            return self.calibration_rows
        return self._crops(CALIBRATION_ROWS, seed=_CALIBRATION)

    @cached_property
    def held_out(self) -> Array:
        """Inputs that no candidate was calibrated on."""
        return self._crops(HELD_OUT_ROWS, seed=_HELD_OUT)

    def _crops(self, count: int, *, seed: int) -> Array:
        assert self.model.preprocessing is not None  # of registered models
        return crops(self.model.preprocessing, count, seed=seed)

    @cached_property
    def expected(self) -> Array:
        """PyTorch's outputs for `held_out`."""
        with torch.inference_mode():
            return np.concatenate([self.model.module(torch.from_numpy(row[None])).numpy() for row in self.held_out])

    def feeds(self, row: int = 0) -> dict[str, Array]:
        return {self.model.input_names[0]: self.held_out[row : row + 1]}

    def snr_db(self, engine: Engine) -> float:
        """Return the signal-to-noise ratio of an engine's outputs against PyTorch's."""
        name = engine.outputs[0].name
        actual = np.concatenate([engine.run(self.feeds(row))[name] for row in range(len(self.held_out))])
        return snr_db(self.expected, actual)

    def open(self, candidate: Candidate, threads: int, stack: ExitStack) -> Subject | None:
        """Return a candidate, loaded; None if it cannot be built or loaded. `stack` closes it."""
        if candidate.name in self.failures:
            return None
        try:
            engine = stack.enter_context(self._engine(candidate, threads))
            return Subject(
                candidate=candidate_from_engine(candidate.name, engine, self.feeds(), threads=threads),
                engine=engine,
                runtime=candidate.runtime,
                feeds={1: self.feeds()},
                executed=engine.executed_precision(),
                work=self._fp32().manifest.work,
                is_peer=candidate.kind != "ours",
            )
        except EdgevitError as error:
            self.failures[candidate.name] = first_line(error)
            return None

    def _engine(self, candidate: Candidate, threads: int) -> Engine:
        artifact = self._artifact(candidate.name)
        if isinstance(artifact, Bundle):
            with get_runtime(artifact.fmt).session():
                return load_engine(artifact, threads=threads)
        inputs, outputs = self._fp32().manifest.inputs, self._fp32().manifest.outputs
        if candidate.runtime == ORT:
            return NaiveOnnxEngine(artifact, inputs, outputs, threads=threads)
        if candidate.runtime == OPENVINO:
            pinned: Literal["f32"] | None = "f32" if candidate.precision == "fp32" else None
            return DirectOpenVinoEngine(artifact, inputs, outputs, threads=threads, inference_precision=pinned)
        torch.compiler.reset()  # what was compiled before has its number of threads in it
        mode = torch_mode(candidate.name)
        engine = TorchEngine(self.model.module, inputs, outputs, threads=threads, mode=mode)
        engine.compile(self.feeds())
        return engine

    def _fp32(self) -> Bundle:
        bundle = self._artifact("ort")
        assert isinstance(bundle, Bundle)
        return bundle

    def _artifact(self, name: str) -> Any:
        """Return what a candidate is loaded from: a bundle, an ONNX file, an OpenVINO model or a module."""
        if name not in self._built:
            self._built[name] = self._build(name)
        return self._built[name]

    def _build(self, name: str) -> Any:
        match name:
            case "ort" | "openvino":
                return self._export(name, "fp32")
            case "openvino-bf16":
                return self._export("openvino", "bf16")
            case "ort-int8" | "openvino-int8":
                return self._export(name.removesuffix("-int8"), "int8")
            case "onnx-ort":
                return self._kept(name, partial(self._plain, NAIVE_ONNX)) / NAIVE_ONNX_FILE
            case "onnx-openvino" | "onnx-openvino-bf16":
                return openvino.Core().read_model(self._artifact("onnx-ort"))
            case "ov-direct" | "ov-direct-bf16":
                return openvino.Core().read_model(self._direct())
            case "torch-compile":
                return self.model.module
            case "nncf-performance" | "nncf-mixed":
                preset = name.removeprefix("nncf-")
                make = partial(quantize_with_nncf, self._direct(), self.calibration, preset=preset)
                return openvino.Core().read_model(self._kept(name, lambda folder: make(folder=folder)) / "model.xml")
            case "static-full" | "static-reduced":
                source = partial(prepare_static, self._artifact("onnx-ort"))
                prepared = self._kept("static-prepared", source) / "model.onnx"
                make = partial(
                    quantize_static,
                    prepared,
                    self.model.input_names[0],
                    self.calibration,
                    reduce_range=name == "static-reduced",
                )
                return self._kept(name, lambda folder: make(folder=folder)) / "model.onnx"
        raise AssertionError(name)

    def _kept(self, name: str, make: Callable[[Path], object]) -> Path:
        return kept(self.folders.peers, name, make)

    def _direct(self) -> Path:
        """Return the file of the model that OpenVINO converts from the module."""

        def convert(folder: Path) -> None:
            openvino.save_model(self._plain(DIRECT_OPENVINO, folder), folder / "model.xml", compress_to_fp16=False)

        return self._kept("ov-direct", convert) / "model.xml"

    def _plain(self, peer: str, folder: Path) -> Any:
        return build_peer(peer, self.model.module, self.feeds(), self._fp32().manifest.outputs, folder)

    def _export(self, fmt: str, precision: Precision) -> Bundle:
        """Export as `edgevit export` does; only int8 is verified, since the SNR is measured like everyone's."""

        def make(folder: Path) -> None:
            config = pipeline.ExportConfig(
                formats=(fmt,),
                options=BuildOptions(precision=precision),
                calib={self.model.input_names[0]: self.calibration} if precision == "int8" else None,
                int8_range=widest_int8_range() if precision == "int8" else "safe",
                out=folder,
                verify=precision == "int8",
                explain=False,
                latency=False,
            )
            pipeline.run(self.model, config, captured=self.captured)

        name = bundle_name(self.model.name, precision, fmt)
        return Bundle.open(kept(self.folders.own, f"{precision}-{fmt}", make) / name)
