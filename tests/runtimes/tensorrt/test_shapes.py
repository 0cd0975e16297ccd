"""Tensor specs and optimization profiles."""

from __future__ import annotations

import pytest

from edgevit.errors import BuildError
from edgevit.runtimes.base import BatchRange
from edgevit.runtimes.tensorrt.shapes import profile_shapes, tensor_spec
from edgevit.types import TensorSpec

FIXED = TensorSpec("x", "float32", (1, 3, 224, 224))
DYNAMIC = TensorSpec("x", "float32", ("batch", 3, 224, 224))
RANGE = BatchRange(1, 4, 16)


def test_each_dynamic_input_has_three_profile_shapes() -> None:
    mask = TensorSpec("mask", "int64", (4, 4))
    assert profile_shapes([DYNAMIC, mask], RANGE) == {"x": ((1, 3, 224, 224), (4, 3, 224, 224), (16, 3, 224, 224))}
    assert profile_shapes([FIXED], None) == {}


@pytest.mark.parametrize(
    ("spec", "batches", "words"),
    [(DYNAMIC, None, "set its range with --dynamic-batch"), (FIXED, RANGE, "--dynamic-batch 1:4:16")],
)
def test_graph_and_options_must_agree_on_a_dynamic_batch(
    spec: TensorSpec, batches: BatchRange | None, words: str
) -> None:
    with pytest.raises(BuildError, match=words):
        profile_shapes([spec], batches)


def test_tensor_specs_use_numpy_dtypes_and_a_named_batch() -> None:
    assert tensor_spec("x", "FLOAT", (-1, 3, 8, 8)) == TensorSpec("x", "float32", ("batch", 3, 8, 8))
    assert tensor_spec("ids", "INT64", (1, 7)) == TensorSpec("ids", "int64", (1, 7))
    with pytest.raises(BuildError, match="unsupported dtype BF16 of x; .*float32 inputs"):
        tensor_spec("x", "BF16", (1, 3))
    with pytest.raises(BuildError, match="only its first dimension"):
        tensor_spec("x", "FLOAT", (-1, 3, -1, -1))
