"""Parsing of lint targets."""

from __future__ import annotations

import pytest

from edgevit.errors import UsageError
from edgevit.export.lint.targets import LintTarget, parse_target


@pytest.mark.parametrize(
    ("text", "target"),
    [
        ("trt", "TensorRT 10.3"),
        ("trt:8.6", "TensorRT 8.6"),
        ("tensorrt:10.16.1.11", "TensorRT 10.16"),
        ("TRT:11.4", "TensorRT 11.4"),
        ("openvino", "OpenVINO"),
        ("ov", "OpenVINO"),
        ("onnxruntime", "ONNX Runtime"),
    ],
)
def test_a_target_is_a_format_with_a_version_for_tensorrt(text: str, target: str) -> None:
    assert str(parse_target(text)) == target


@pytest.mark.parametrize("text", ["tensort", "trt:", "trt:10", "trt:7.2", "trt:12.0", "trt:x", "ort:1.31", ""])
def test_unknown_targets_are_rejected_with_a_remedy(text: str) -> None:
    with pytest.raises(UsageError, match=r"choose from|such as 10\.3|only TensorRT"):
        parse_target(text)


def test_a_format_without_known_operators_is_no_target() -> None:
    with pytest.raises(UsageError, match="unknown lint target 'trt-rtx'; choose from openvino, ort, trt"):
        LintTarget("trt-rtx")
