"""Whom a graph can be held against before a build, and which operators each of them reads.

TensorRT's are those of its ONNX parser's own support matrix and change log (onnx-tensorrt, 8.5 to 10.15; Swish: 11.0).
Those that OpenVINO and ONNX Runtime lack were found by giving each operator's test models of onnx 1.23 to OpenVINO
2026.4 and ONNX Runtime 1.31.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, TypeAlias

import onnx_ir as ir

from edgevit.errors import UsageError, unknown_name

Level: TypeAlias = Literal["error", "warning", "note"]
Version: TypeAlias = tuple[int, int]

DEFAULT_TENSORRT: Version = (10, 3)  # JetPack 6.1 and 6.2, the newest of JetPack 6
OLDEST_TENSORRT: Version = (8, 5)  # JetPack 5
NEWEST_MAJOR = 11
TITLES = {"trt": "TensorRT", "openvino": "OpenVINO", "ort": "ONNX Runtime"}
_ALIASES = {"tensorrt": "trt", "engine": "trt", "ov": "openvino", "onnxruntime": "ort"}


@dataclass(frozen=True, slots=True)
class LintTarget:
    """Whom a graph is held against; a version only for TensorRT, whose parser differs from one to the next."""

    fmt: str
    version: Version = DEFAULT_TENSORRT

    def __str__(self) -> str:
        return f"TensorRT {dotted(self.version)}" if self.fmt == "trt" else TITLES[self.fmt]


@dataclass(frozen=True, slots=True)
class Lack:
    """Why a target does not read a node, and what to do about it."""

    level: Level
    why: str
    remedy: str


def parse_target(text: str) -> LintTarget:
    """`trt`, `trt:10.3`, `openvino` or `ort`, and their aliases. Raises UsageError for anything else."""
    name, colon, version = text.strip().lower().partition(":")
    fmt = _ALIASES.get(name, name)
    if fmt not in TITLES:
        raise unknown_name("lint target", name, (*TITLES, *_ALIASES))
    if not colon:
        return LintTarget(fmt)
    if fmt != "trt":
        raise UsageError(f"only TensorRT is held against a version: --target {fmt}, not {text}")
    return LintTarget(fmt, parse_version(version))


def parse_version(text: str) -> Version:
    """TensorRT's major and minor version. Raises UsageError where no parser of it is known here."""
    match = re.fullmatch(r"(\d+)\.(\d+)(\.\d+)*", text)
    version = (int(match[1]), int(match[2])) if match else None
    if version is None or version < OLDEST_TENSORRT or version[0] > NEWEST_MAJOR:
        raise UsageError(
            f"no TensorRT version {text!r} to check against: give MAJOR.MINOR, from {dotted(OLDEST_TENSORRT)} to "
            f"{NEWEST_MAJOR}.x, such as {dotted(DEFAULT_TENSORRT)}"
        )
    return version


def dotted(version: Version) -> str:
    return ".".join(str(part) for part in version)


def lack(node: ir.Node, target: LintTarget) -> Lack | None:
    """What `target` lacks to read a node; None where it lacks nothing."""
    if target.fmt == "trt":
        return _tensorrt_lacks(node, target)
    return _openvino_lacks(node) if target.fmt == "openvino" else _ort_lacks(node)


def newest_opset(target: LintTarget) -> int | None:
    """The newest opset that the target was made for; None where it does not matter."""
    if target.fmt == "trt":
        return max(opset for since, opset in _TENSORRT_OPSETS.items() if since <= target.version)
    return _ORT_OPSET if target.fmt == "ort" else None


_SINCE_85 = """
    Abs Acos Acosh Add And ArgMax ArgMin Asin Asinh Atan Atanh AveragePool BatchNormalization Cast Ceil Celu Clip Concat
    Constant ConstantOfShape Conv ConvTranspose Cos Cosh CumSum DepthToSpace DequantizeLinear Div Dropout Einsum Elu
    Equal Erf Exp Expand EyeLike Flatten Floor GRU Gather GatherElements GatherND Gemm GlobalAveragePool GlobalLpPool
    GlobalMaxPool Greater GreaterOrEqual GridSample HardSigmoid HardSwish Identity If ImageScaler InstanceNormalization
    IsNaN LRN LSTM LeakyRelu Less LessOrEqual Log LogSoftmax Loop LpNormalization LpPool MatMul Max MaxPool Mean
    MeanVarianceNormalization Min Mod Mul Neg NonMaxSuppression NonZero Not OneHot Or PRelu Pad ParametricSoftplus Pow
    QuantizeLinear RNN RandomNormal RandomNormalLike RandomUniform RandomUniformLike Range Reciprocal ReduceL1 ReduceL2
    ReduceLogSum ReduceLogSumExp ReduceMax ReduceMean ReduceMin ReduceProd ReduceSum ReduceSumSquare Relu Reshape Resize
    ReverseSequence RoiAlign Round ScaledTanh Scan Scatter ScatterElements ScatterND Selu Shape Shrink Sigmoid Sign Sin
    Sinh Size Slice Softmax Softplus Softsign SpaceToDepth Split Sqrt Squeeze Sub Sum Tan Tanh ThresholdedRelu Tile TopK
    Transpose Trilu Unsqueeze Upsample Where Xor
"""
_TENSORRT_OPERATORS: Mapping[str, Version] = {
    operator: since
    for since, names in {
        (8, 5): _SINCE_85,
        (8, 6): "GroupNormalization IsInf LayerNormalization",
        (10, 0): "CastLike Gelu Hardmax Mish",
        (10, 1): "DeformConv",
        (10, 4): "BlackmanWindow HammingWindow HannWindow",
        (10, 5): "STFT",
        (10, 14): "Attention",
        (10, 15): "RMSNormalization RotaryEmbedding TensorScatter",
        (11, 0): "Swish",
    }.items()
    for operator in names.split()
}
_TENSORRT_OPSETS: Mapping[Version, int] = {(8, 5): 17, (10, 0): 20, (10, 9): 22, (10, 13): 24}
_ORT_OPSET = 26
_ORT_LACKS = frozenset({"ImageDecoder"})
_ORT_DOMAINS = frozenset({"", "ai.onnx", "ai.onnx.ml", "com.microsoft", "com.microsoft.nchwc"})
_OPENVINO_LACKS = frozenset({
    "BitCast", "CausalConvWithState", "CumProd", "DeformConv", "Det", "ImageDecoder", "LinearAttention", "MaxUnpool",
    "MelWeightMatrix", "OptionalGetElement", "OptionalHasElement", "RegexFullMatch", "SequenceEmpty", "SequenceInsert",
    "SequenceLength", "SequenceMap", "SplitToSequence", "StringConcat", "StringNormalizer", "StringSplit", "SwiGLU",
    "TensorScatter", "TfIdfVectorizer",
})  # fmt: skip
_REWRITE = "rewrite the module without it"
_PLAIN = "export with ONNX's own operators alone"


def _tensorrt_lacks(node: ir.Node, target: LintTarget) -> Lack | None:
    since = _TENSORRT_OPERATORS.get(node.op_type)
    known = since is not None and since <= target.version
    if node.domain not in ("", "ai.onnx"):
        name = f"{node.domain}::{node.op_type}"
        if known:
            why = f"{name} is read as ONNX's own {node.op_type}: the parser looks at the name, not at the domain"
            return Lack("warning", why, _PLAIN)
        return Lack("error", f"{name} is no ONNX operator: the parser looks for a plugin of that name", _PLAIN)
    if since is None:
        return Lack("error", f"no TensorRT's parser has {node.op_type}", _REWRITE)
    if not known:
        why = f"the parser of {target} lacks {node.op_type}, which comes with {dotted(since)}"
        return Lack("error", why, f"export with --opset {newest_opset(target)}, which has it as simpler operators")
    return None


def _openvino_lacks(node: ir.Node) -> Lack | None:
    if node.domain in ("", "ai.onnx"):
        why = f"OpenVINO 2026.4 does not convert {node.op_type}"
        return Lack("error", why, _REWRITE) if node.op_type in _OPENVINO_LACKS else None
    if node.domain == "com.microsoft":
        why = f"OpenVINO converts only some of ONNX Runtime's own operators, such as {node.op_type}"
        return Lack("warning", why, _PLAIN)
    if node.domain == "org.openvinotoolkit":
        return None
    return Lack("error", f"OpenVINO has no operators of {node.domain}", _PLAIN)


def _ort_lacks(node: ir.Node) -> Lack | None:
    if node.domain not in _ORT_DOMAINS:
        return Lack("error", f"ONNX Runtime has no operators of {node.domain} unless a library brings them", _PLAIN)
    if node.op_type in _ORT_LACKS:
        return Lack("error", f"ONNX Runtime has no kernel for {node.op_type}", _REWRITE)
    return None
