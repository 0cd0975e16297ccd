"""int8 engines that a user makes without edgevit: NNCF on OpenVINO, quantize_static on ONNX Runtime."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from edgevit.errors import BuildError, MissingError
from edgevit.types import Array

_TIMEOUT_S = 1200.0  # of one quantization by NNCF


def quantize_with_nncf(source: Path, calibration: Array, folder: Path, *, preset: str) -> None:
    """Quantize an OpenVINO file to `folder`/model.xml. Raises MissingError without NNCF, BuildError if it fails."""
    if importlib.util.find_spec("nncf") is None:
        raise MissingError("NNCF is not installed: pip install 'edgevit[bench]'")
    rows = folder / "calibration.npy"
    np.save(rows, calibration)
    arguments = (source, rows, folder / "model.xml", preset)
    command = [sys.executable, "-m", "tests.tools.bench.nncf_child", *map(str, arguments)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False)
    except subprocess.TimeoutExpired:
        raise BuildError(f"NNCF did not finish within {_TIMEOUT_S:.0f} s") from None
    if done.returncode:
        raise BuildError(f"NNCF failed: {(done.stderr.strip().splitlines() or ['no message'])[-1]}")


def prepare_static(onnx_file: Path, folder: Path) -> None:
    """Write `folder`/model.onnx, prepared for `quantize_static` as ONNX Runtime's documentation asks."""
    from onnxruntime.quantization import quant_pre_process

    with _as_build_error("quant_pre_process"):
        quant_pre_process(onnx_file, folder / "model.onnx")


def quantize_static(prepared: Path, name: str, calibration: Array, folder: Path, *, reduce_range: bool) -> None:
    """Quantize to `folder`/model.onnx as ONNX Runtime documents for x86: uint8 by int8, a scale a channel."""
    from onnxruntime.quantization import QuantType
    from onnxruntime.quantization import quantize_static as quantize

    with _as_build_error("quantize_static"):
        quantize(
            prepared,
            folder / "model.onnx",
            _Reader(name, calibration),
            per_channel=True,
            reduce_range=reduce_range,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
        )


@contextmanager
def _as_build_error(function: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # many exception classes
        reason = str(error).splitlines()[0] if str(error) else type(error)
        raise BuildError(f"{function} failed: {reason}") from error


class _Reader:
    """Feeds of one row each, in the form of `onnxruntime.quantization.CalibrationDataReader`."""

    def __init__(self, name: str, rows: Array) -> None:
        self._feeds: Iterator[dict[str, Array]] = iter([{name: row[np.newaxis]} for row in rows])

    def get_next(self) -> dict[str, Array] | None:
        return next(self._feeds, None)
