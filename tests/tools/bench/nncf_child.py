"""Quantize an OpenVINO model with NNCF, in a process of its own: NNCF replaces functions of PyTorch.

    python -m tests.tools.bench.nncf_child model.xml calibration.npy quantized.xml performance

NNCF is told that a model is a transformer if it has a softmax: its classifiers end in logits.
"""

from __future__ import annotations

import sys

import numpy as np


def quantize(model_path: str, calibration_path: str, target: str, preset: str) -> None:
    import nncf  # type: ignore[import-not-found,unused-ignore]  # a development extra
    import openvino

    model = openvino.Core().read_model(model_path)
    rows = np.load(calibration_path)
    has_attention = any(operator.get_type_name() == "Softmax" for operator in model.get_ops())
    quantized = nncf.quantize(
        model,
        nncf.Dataset([row[np.newaxis] for row in rows]),
        preset=nncf.QuantizationPreset(preset),
        model_type=nncf.ModelType.TRANSFORMER if has_attention else None,
        subset_size=len(rows),
    )
    openvino.save_model(quantized, target, compress_to_fp16=False)


if __name__ == "__main__":
    quantize(*sys.argv[1:])
