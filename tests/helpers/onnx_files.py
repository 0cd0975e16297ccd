"""Small graphs as ONNX text."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper


def save_graph(
    path: Path,
    signature: str,
    nodes: Mapping[str, str],
    weights: Mapping[str, tuple[int, ...]] | None = None,
    *,
    opset: int = 20,
) -> Path:
    """Save a graph of `nodes`, name -> "outputs = Operator(inputs)", and return its path.

    `weights` maps names to shapes; their values are random, in fp16 if the signature has float16, otherwise in fp32.
    """
    lines = "\n".join(nodes.values())
    header = f'<ir_version: 10, opset_import: ["" : {opset}]>'
    model = onnx.parser.parse_model(f"{header}\n{signature} {{\n{lines}\n}}")
    for node, name in zip(model.graph.node, nodes, strict=True):
        node.name = name
    generator = np.random.default_rng(0)
    dtype = np.float16 if "float16" in signature else np.float32
    for name, shape in (weights or {}).items():
        array = np.asarray(generator.standard_normal(shape) / 8, dtype)
        model.graph.initializer.append(numpy_helper.from_array(array, name))
    onnx.save(model, path)
    return path


def shift_block(path: Path, dtype: str = "float16") -> Path:
    """A block of ShiftViT's kind, (1, 24, 16, 16): two groups of 2 channels shifted, norm, 1x1 convolution."""
    return save_graph(
        path,
        f"""g ({dtype}[1, 24, 16, 16] x) => ({dtype}[1, 48, 16, 16] y)
        <int64[1] a0 = {{0}}, int64[1] a2 = {{2}}, int64[1] a4 = {{4}}, int64[1] a24 = {{24}}, int64[1] first = {{1}},
         int64[1] end = {{16}}, int64[1] before_end = {{15}}, int64[1] channel = {{1}}, int64[1] column = {{3}},
         int64[8] pad_right = {{0, 0, 0, 0, 0, 0, 0, 1}}, int64[8] pad_left = {{0, 0, 0, 1, 0, 0, 0, 0}},
         int64[3] flat = {{1, 1, -1}}, int64[4] shape = {{1, 24, 16, 16}}>""",
        {
            "stem/Relu": "r = Relu(x)",
            "block/Slice": "left = Slice(r, a0, a2, channel)",
            "block/Slice_1": "left_part = Slice(left, first, end, column)",
            "block/Pad": "left_shifted = Pad(left_part, pad_right)",
            "block/Slice_2": "right = Slice(r, a2, a4, channel)",
            "block/Slice_3": "right_part = Slice(right, a0, before_end, column)",
            "block/Pad_1": "right_shifted = Pad(right_part, pad_left)",
            "block/Slice_4": "rest = Slice(r, a4, a24, channel)",
            "block/Concat": "shifted = Concat <axis = 1> (left_shifted, right_shifted, rest)",
            "block.norm/GroupNormalization_flatten": "f = Reshape(shifted, flat)",
            "block.norm/GroupNormalization_normalise": "n = InstanceNormalization(f, ones, zeros)",
            "block.norm/GroupNormalization_unflatten": "u = Reshape(n, shape)",
            "block.fc/Conv": "y = Conv(u, w)",
        },
        {"ones": (1,), "zeros": (1,), "w": (48, 24, 1, 1)},
    )


def attention(path: Path, dtype: str = "float16") -> Path:
    """Attention of 4 heads of 32 on 49 tokens, q, k and v as they come."""
    head = f"{dtype}[1, 4, 49, 32]"
    return save_graph(
        path,
        f"g ({head} q, {dtype}[1, 4, 32, 49] k, {head} v) => ({head} y)",
        {
            "attn/MatMul": "s = MatMul(q, k)",
            "attn/Softmax": "p = Softmax <axis = -1> (s)",
            "attn/MatMul_1": "y = MatMul(p, v)",
        },
    )


def lstm(path: Path) -> Path:
    """An LSTM over 64 steps, (64, 1, 16) to (64, 1, 1, 16)."""
    return save_graph(
        path,
        "g (float[64, 1, 16] x) => (float[64, 1, 1, 16] y)",
        {"encoder/LSTM": "y = LSTM <hidden_size = 16> (x, w, r)"},
        {"w": (1, 64, 16), "r": (1, 64, 16)},
    )
