"""The lint targets: the operators and opsets that each supports, and the limits that the rules check.

TensorRT: from the support matrix and changelog of its ONNX parser (onnx-tensorrt 8.5 to 10.15; Swish: 11.0).
OpenVINO and ONNX Runtime: found by running the operator test models of onnx 1.23 in OpenVINO 2026.4 and ONNX Runtime
1.31. Forms of operators that OpenVINO supports in part are in `openvino_forms`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, TypeAlias

from edgevit.errors import UsageError, unknown_name
from edgevit.formats import DEFAULT_TENSORRT, get_format

if TYPE_CHECKING:  # the help of edgevit lint lists the targets, and starts without onnx_ir
    import onnx_ir as ir

Level: TypeAlias = Literal["error", "warning", "note"]
Version: TypeAlias = tuple[int, int]

OLDEST_TENSORRT: Version = (8, 5)  # JetPack 5
NEWEST_MAJOR = 11


@dataclass(frozen=True, slots=True)
class LintTarget:
    """A runtime to check a graph for. Only TensorRT has a version, because its parser changes between versions.

    Raises UsageError for a format without an entry in `SUPPORT`.
    """

    fmt: str
    version: Version = field(default_factory=lambda: parse_version(DEFAULT_TENSORRT))

    def __post_init__(self) -> None:
        if self.fmt not in SUPPORT:
            raise unknown_name("lint target", self.fmt, LINTABLE)

    @property
    def support(self) -> LintSupport:
        """The operators and limits of the runtime."""
        return SUPPORT[self.fmt]

    def __str__(self) -> str:
        entry = get_format(self.fmt)
        return f"{entry.title} {dotted(self.version)}" if entry.versioned_parser else entry.title


@dataclass(frozen=True, slots=True)
class Unsupported:
    """Reason why a target does not support a node, and what to do."""

    level: Level
    why: str
    remedy: str


@dataclass(frozen=True, slots=True, kw_only=True)
class LintSupport:
    """The operators that a runtime supports, and the limits that the rules check."""

    find_unsupported: Callable[[ir.Node, LintTarget], Unsupported | None]
    newest_opset: Callable[[Version], int] | None = None  # None: accepts any
    newer_opsets_rejected_by: str | None = None  # the release that was tried; None: reads them, perhaps wrongly
    tensorrt_parser: bool = False  # has the forms, the symmetric quantization and the fusion of TensorRT
    compiles: bool = False  # compiles the whole graph: ranks and shape arithmetic matter
    max_rank: int | None = None
    supports_scatter_nd: bool = True
    float64_effect: str  # of float64 in the data path
    clamps_int64_before: Version | None = None  # versions that compute int64 in int32


def parse_target(text: str) -> LintTarget:
    """Parse `trt`, `trt:10.3`, `openvino`, `ort` or an alias. Raises UsageError for anything else."""
    name, colon, version = text.strip().lower().partition(":")
    fmt = get_format(name, among=LINTABLE, kind="lint target").name
    if not colon:
        return LintTarget(fmt)
    if not get_format(fmt).versioned_parser:
        raise UsageError(f"only TensorRT targets take a version: use --target {fmt}, not {text}")
    return LintTarget(fmt, parse_version(version))


LINTABLE_VERSIONS = f"MAJOR.MINOR from {OLDEST_TENSORRT[0]}.{OLDEST_TENSORRT[1]} to {NEWEST_MAJOR}.x"


def parse_version(text: str, *, known: str = LINTABLE_VERSIONS) -> Version:
    """Parse a TensorRT version into major and minor.

    Raises UsageError, which names the `known` versions, for versions outside the range of lint.
    """
    match = re.fullmatch(r"(\d+)\.(\d+)(\.\d+)*", text)
    version = (int(match[1]), int(match[2])) if match else None
    if version is None or version < OLDEST_TENSORRT or version[0] > NEWEST_MAJOR:
        raise UsageError(f"unknown TensorRT version {text!r}: give {known}, such as {DEFAULT_TENSORRT}")
    return version


def dotted(version: Version) -> str:
    return ".".join(str(part) for part in version)


def find_unsupported(node: ir.Node, target: LintTarget) -> Unsupported | None:
    """Return why `target` does not support a node; None if it does."""
    return target.support.find_unsupported(node, target)


def newest_opset(target: LintTarget) -> int | None:
    """Return the newest opset that the target supports; None for OpenVINO, which accepts any."""
    newest = target.support.newest_opset
    return None if newest is None else newest(target.version)


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
_ORT_UNSUPPORTED = frozenset({"ImageDecoder"})
_ORT_DOMAINS = frozenset({"", "ai.onnx", "ai.onnx.ml", "com.microsoft", "com.microsoft.nchwc"})
_OPENVINO_UNSUPPORTED = frozenset({
    "BitCast", "CausalConvWithState", "CumProd", "DeformConv", "Det", "ImageDecoder", "LinearAttention", "MaxUnpool",
    "MelWeightMatrix", "OptionalGetElement", "OptionalHasElement", "RegexFullMatch", "SequenceEmpty", "SequenceInsert",
    "SequenceLength", "SequenceMap", "SplitToSequence", "StringConcat", "StringNormalizer", "StringSplit", "SwiGLU",
    "TensorScatter", "TfIdfVectorizer",
})  # fmt: skip
TESTED_OPENVINO = "OpenVINO 2026.4"
_REWRITE = "rewrite the module without it"
_STANDARD_ONLY = "export with standard ONNX operators only"


def _unsupported_by_tensorrt(node: ir.Node, target: LintTarget) -> Unsupported | None:
    since = _TENSORRT_OPERATORS.get(node.op_type)
    known = since is not None and since <= target.version
    if node.domain not in ("", "ai.onnx"):
        name = f"{node.domain}::{node.op_type}"
        if known:
            why = f"{name} is parsed as the standard {node.op_type}: TensorRT's parser ignores the domain"
            return Unsupported("warning", why, _STANDARD_ONLY)
        return Unsupported("error", f"{name} is not an ONNX operator and needs a TensorRT plugin", _STANDARD_ONLY)
    if since is None:
        return Unsupported("error", f"no version of TensorRT's parser supports {node.op_type}", _REWRITE)
    if not known:
        why = f"{target} does not support {node.op_type}, which was added in {dotted(since)}"
        remedy = f"export with --opset {newest_opset(target)}, which writes it with simpler operators"
        return Unsupported("error", why, remedy)
    return None


def _unsupported_by_openvino(node: ir.Node, _target: LintTarget) -> Unsupported | None:
    if node.domain in ("", "ai.onnx"):
        why = f"{TESTED_OPENVINO} does not support {node.op_type}"
        return Unsupported("error", why, _REWRITE) if node.op_type in _OPENVINO_UNSUPPORTED else None
    if node.domain == "com.microsoft":
        why = f"OpenVINO supports only some of ONNX Runtime's own operators, such as {node.op_type}"
        return Unsupported("warning", why, _STANDARD_ONLY)
    if node.domain == "org.openvinotoolkit":
        return None
    return Unsupported("error", f"OpenVINO does not support operators of the domain {node.domain}", _STANDARD_ONLY)


def _unsupported_by_onnxruntime(node: ir.Node, _target: LintTarget) -> Unsupported | None:
    if node.domain not in _ORT_DOMAINS:
        why = f"ONNX Runtime needs a custom-operator library for operators of the domain {node.domain}"
        return Unsupported("error", why, _STANDARD_ONLY)
    if node.op_type in _ORT_UNSUPPORTED:
        return Unsupported("error", f"ONNX Runtime has no kernel for {node.op_type}", _REWRITE)
    return None


def _newest_tensorrt_opset(version: Version) -> int:
    return max(opset for since, opset in _TENSORRT_OPSETS.items() if since <= version)


SUPPORT: Mapping[str, LintSupport] = {
    "trt": LintSupport(
        find_unsupported=_unsupported_by_tensorrt,
        newest_opset=_newest_tensorrt_opset,
        tensorrt_parser=True,
        compiles=True,
        max_rank=8,
        supports_scatter_nd=False,
        float64_effect="TensorRT computes in float32 and clamps values out of its range",
        clamps_int64_before=(9, 0),
    ),
    "openvino": LintSupport(
        find_unsupported=_unsupported_by_openvino,
        compiles=True,
        float64_effect="OpenVINO's CPU plugin computes in float32",
    ),
    "ort": LintSupport(
        find_unsupported=_unsupported_by_onnxruntime,
        newest_opset=lambda _version: _ORT_OPSET,
        newer_opsets_rejected_by="ONNX Runtime 1.31",
        float64_effect="twice the memory and half the speed of float32",
    ),
}
LINTABLE = tuple(SUPPORT)
