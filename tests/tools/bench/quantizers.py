"""int8 engines that a user makes without edgevit: NNCF on OpenVINO, quantize_static on ONNX Runtime."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from edgevit.errors import BuildError, MissingError
from edgevit.types import Array

_TIMEOUT_S = 1200.0  # of one quantization by NNCF


def quantize_with_nncf(model: Any, calibration: Array, folder: Path, *, preset: str) -> Any:
    """Return an OpenVINO model quantized by NNCF. Raises MissingError without NNCF, BuildError if it fails."""
    if importlib.util.find_spec("nncf") is None:
        raise MissingError("NNCF is not installed: pip install 'edgevit[bench]'")
    import openvino

    source, rows, target = folder / "direct.xml", folder / "calibration.npy", folder / f"nncf-{preset}.xml"
    if not source.exists():
        openvino.save_model(model, source, compress_to_fp16=False)
        np.save(rows, calibration)
    command = [sys.executable, "-m", "tests.tools.bench.nncf_child", *map(str, (source, rows, target)), preset]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False)
    except subprocess.TimeoutExpired:
        raise BuildError(f"NNCF did not finish within {_TIMEOUT_S:.0f} s") from None
    if done.returncode:
        raise BuildError(f"NNCF failed: {(done.stderr.strip().splitlines() or ['no message'])[-1]}")
    return openvino.Core().read_model(target)


def quantize_static(onnx_file: Path, name: str, calibration: Array, *, reduce_range: bool) -> Path:
    """Return an ONNX file quantized as ONNX Runtime's documentation shows for x86: uint8 by int8, a scale a channel."""
    from onnxruntime.quantization import QuantType, quant_pre_process
    from onnxruntime.quantization import quantize_static as quantize

    prepared = onnx_file.with_name("prepared.onnx")
    target = onnx_file.with_name(f"static-{'reduced' if reduce_range else 'full'}.onnx")
    try:
        if not prepared.exists():
            quant_pre_process(onnx_file, prepared)
        quantize(
            prepared,
            target,
            _Reader(name, calibration),
            per_channel=True,
            reduce_range=reduce_range,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
        )
    except Exception as error:  # many exception classes
        raise BuildError(
            f"quantize_static failed: {str(error).splitlines()[0] if str(error) else type(error)}"
        ) from error
    return target


class _Reader:
    """Feeds of one row each, in the form of `onnxruntime.quantization.CalibrationDataReader`."""

    def __init__(self, name: str, rows: Array) -> None:
        self._feeds: Iterator[dict[str, Array]] = iter([{name: row[np.newaxis]} for row in rows])

    def get_next(self) -> dict[str, Array] | None:
        return next(self._feeds, None)
