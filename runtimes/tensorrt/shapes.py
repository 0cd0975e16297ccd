"""Convert between edgevit's tensor specs and TensorRT's shapes and optimization profiles."""

from __future__ import annotations

from collections.abc import Sequence

from edgevit.errors import BuildError
from edgevit.runtimes.base import BatchRange
from edgevit.types import TensorSpec

_NUMPY_TYPES = {"FLOAT": "float32", "HALF": "float16", "INT8": "int8", "UINT8": "uint8", "INT32": "int32",
                "INT64": "int64", "BOOL": "bool"}  # fmt: skip


def profile_shapes(inputs: Sequence[TensorSpec], batches: BatchRange | None) -> dict[str, tuple[tuple[int, ...], ...]]:
    """Return the minimum, optimum and maximum shape of every dynamic input.

    `batches` are those of a dynamic batch. Raises BuildError if the graph has one and they are None, or the reverse.
    """
    dynamic = [spec for spec in inputs if spec.is_dynamic]
    if dynamic and batches is None:
        raise BuildError(f"{dynamic[0]} has a dynamic batch; set its range with --dynamic-batch MIN:OPT:MAX")
    if batches is None:
        return {}
    if not dynamic:
        raise BuildError(f"the graph has a fixed batch ({inputs[0]}); export it again with --dynamic-batch {batches}")
    sizes = (batches.minimum, batches.optimum, batches.maximum)
    return {spec.name: tuple(spec.with_batch(size) for size in sizes) for spec in dynamic}


def tensor_spec(name: str, dtype: str, shape: Sequence[int]) -> TensorSpec:
    """Return the spec of an input or output, from the name of its TensorRT DataType and its shape (-1 is dynamic).

    Raises BuildError if edgevit cannot feed or read such a tensor.
    """
    if dtype not in _NUMPY_TYPES:
        raise BuildError(f"unsupported dtype {dtype} of {name}; export the model with float32 inputs and outputs")
    if any(size < 0 for size in shape[1:]):
        raise BuildError(f"{name} has the shape {list(shape)}; only its first dimension, the batch, may be dynamic")
    return TensorSpec(name, _NUMPY_TYPES[dtype], tuple("batch" if size < 0 else size for size in shape))
