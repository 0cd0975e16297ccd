"""Peers: engines that a user would make of a PyTorch module without edgevit, by the shortest way.

`naive-onnx` is `torch.onnx.export(module, example, dynamo=True)`, run by ONNX Runtime with its defaults. `ov-direct` is
`openvino.convert_model(module, example_input=example, input=shapes)`, compiled for the CPU with its
defaults. Only a number of threads is set, if one is asked for.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import logging
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from edgevit.errors import BuildError, ExportError, InferenceError, MissingError, unknown_name
from edgevit.files import first_line
from edgevit.runtimes.base import Engine, Operations
from edgevit.runtimes.onnxruntime import PROVIDER, OnnxRuntime, profile_session
from edgevit.runtimes.onnxruntime import matmul as onnxruntime_matmul
from edgevit.runtimes.onnxruntime_precision import read_precision as read_onnxruntime_precision
from edgevit.runtimes.openvino import OpenVino, compiled_threads
from edgevit.runtimes.openvino_convert import preserve_root_logger
from edgevit.runtimes.openvino_precision import DEVICE, multiplying_operators, read_precision
from edgevit.runtimes.openvino_product import matmul as openvino_matmul
from edgevit.runtimes.precision import ExecutedPrecision
from edgevit.runtimes.pytorch import load_torch
from edgevit.types import Array, Feeds, TensorSpec

NAIVE_ONNX, DIRECT_OPENVINO = "naive-onnx", "ov-direct"
NAIVE_ONNX_FILE = "naive.onnx"
PEERS = {NAIVE_ONNX: OnnxRuntime.fmt, DIRECT_OPENVINO: OpenVino.fmt}  # names on the command line, and the runtimes


def require_peer(name: str) -> None:
    """Raise MissingError if a package that the peer needs is not installed, UsageError for an unknown name."""
    if name not in PEERS:
        raise unknown_name("peer", name, PEERS)
    load_torch()
    if name == DIRECT_OPENVINO:
        OpenVino().load()
        return
    OnnxRuntime().load()
    missing = [package for package in ("onnx", "onnxscript") if importlib.util.find_spec(package) is None]
    if missing:
        raise MissingError(f"{name} needs {' and '.join(missing)}; install it: pip install 'edgevit[export]'")


def build_peer(name: str, module: Any, feeds: Feeds, outputs: Sequence[TensorSpec], folder: Path) -> Any:
    """Make the peer's model of a module: the path of an ONNX file in `folder`, or an OpenVINO model.

    Raises ExportError if PyTorch's exporter or OpenVINO's converter fails.
    """
    require_peer(name)
    torch = load_torch()
    example = tuple(torch.from_numpy(np.array(array)) for array in feeds.values())
    with contextlib.suppress(NotImplementedError):  # a program of torch.export cannot switch modes
        module.eval()
    with _quiet(), torch.no_grad():
        try:
            if name == DIRECT_OPENVINO:
                shapes = [list(array.shape) for array in feeds.values()]
                return OpenVino().load().convert_model(module, example_input=example, input=shapes)
            path = folder / NAIVE_ONNX_FILE
            names = {"input_names": list(feeds), "output_names": [spec.name for spec in outputs]}
            torch.onnx.export(module, example, path, dynamo=True, verbose=False, **names)
        except Exception as error:  # many exception classes, and those of the user's code
            raise ExportError(
                f"{name} cannot be built of this model ({first_line(error)}); leave it out of --against"
            ) from error
    return path


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Suppress warnings, log messages and lines on stdout, which --json - keeps for the result."""
    disabled = logging.root.manager.disable
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()), preserve_root_logger():
        warnings.simplefilter("ignore")
        logging.disable(logging.WARNING)
        try:
            yield
        finally:
            logging.disable(disabled)


def open_peer(
    name: str, model: Any, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec], *, threads: int | None
) -> Engine:
    """Load what `build_peer` returned. Raises BuildError if the runtime does not take it."""
    engine = DirectOpenVinoEngine if name == DIRECT_OPENVINO else NaiveOnnxEngine
    return engine(model, inputs, outputs, threads=threads)


class NaiveOnnxEngine(Engine):
    """A session of ONNX Runtime with default options."""

    fmt = NAIVE_ONNX

    def __init__(
        self, model: Path, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec], *, threads: int | None = None
    ) -> None:
        self._ort, self._model, self._threads = OnnxRuntime().load(), model, threads
        self.inputs, self.outputs = tuple(inputs), tuple(outputs)
        self._session = self._load(self._settings())

    def _settings(self) -> Any:
        settings = self._ort.SessionOptions()
        if self._threads is not None:
            settings.intra_op_num_threads = self._threads
        return settings

    def _load(self, settings: Any) -> Any:
        try:
            return self._ort.InferenceSession(str(self._model), settings, providers=[PROVIDER])
        except Exception as error:
            raise BuildError(f"ONNX Runtime cannot load {self.fmt}: {first_line(error)}") from error

    def _infer(self, feeds: Feeds) -> dict[str, Array]:
        self._require_open(self._session)
        try:
            values = self._session.run(None, dict(feeds))
        except Exception as error:
            raise InferenceError(f"ONNX Runtime failed to run {self.fmt}: {first_line(error)}") from error
        return {spec.name: value for spec, value in zip(self.outputs, values, strict=True)}

    def executed_precision(self) -> ExecutedPrecision:
        settings = self._settings()
        settings.add_session_config_entry("session.disable_prepacking", "1")  # the profile omits packed weights
        return read_onnxruntime_precision(profile_session(self._load, settings)[1])

    def matmul(self, shape: tuple[int, int, int], precision: str) -> Operations | None:
        return onnxruntime_matmul(self._ort, self._settings(), shape, precision)

    def close(self) -> None:
        self._session = None


class DirectOpenVinoEngine(Engine):
    """A model that OpenVINO converted from the module itself, compiled with default settings.

    Its default `inference_precision` is bf16 on processors that have it.
    """

    fmt = DIRECT_OPENVINO

    def __init__(
        self,
        model: Any,
        inputs: Sequence[TensorSpec],
        outputs: Sequence[TensorSpec],
        *,
        threads: int | None = None,
        inference_precision: Literal["f32"] | None = None,
    ) -> None:
        self.inputs, self.outputs = tuple(inputs), tuple(outputs)
        self._operators = multiplying_operators(model)
        chosen = {"INFERENCE_NUM_THREADS": threads, "INFERENCE_PRECISION_HINT": inference_precision}
        self._settings = {name: value for name, value in chosen.items() if value is not None}
        try:
            self._compiled = OpenVino().load().Core().compile_model(model, DEVICE, self._settings)
        except Exception as error:
            raise BuildError(f"OpenVINO cannot compile {self.fmt}: {first_line(error)}") from error

    def _infer(self, feeds: Feeds) -> dict[str, Array]:
        self._require_open(self._compiled)
        try:
            results = self._compiled([feeds[spec.name] for spec in self.inputs])
        except Exception as error:
            raise InferenceError(f"OpenVINO failed to run {self.fmt}: {first_line(error)}") from error
        return {spec.name: np.array(results[index]) for index, spec in enumerate(self.outputs)}

    @property
    def threads(self) -> int:
        self._require_open(self._compiled)
        return compiled_threads(self._compiled)

    def executed_precision(self) -> ExecutedPrecision:
        self._require_open(self._compiled)
        return read_precision(self._compiled, self._operators)

    def matmul(self, shape: tuple[int, int, int], precision: str) -> Operations | None:
        return openvino_matmul(OpenVino().load(), self._settings, shape, precision)

    def close(self) -> None:
        self._compiled = None
