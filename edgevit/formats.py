"""The output formats: one entry each, with its opset, precisions, int8 scheme and packages.

To add a format, add its entry to `FORMATS`, its module to `runtimes/` and its extra to `pyproject.toml`.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from edgevit.errors import PrecisionError, unknown_name
from edgevit.types import Precision

GroupNormForm: TypeAlias = Literal["native", "instance"]
PassPipeline: TypeAlias = Literal["generic", "openvino", "tensorrt"]
Int8Range: TypeAlias = Literal["safe", "full"]

# Metadata of the fields that decide about speed alone; docs/forms.md has a row for each runtime that uses one.
FOR_SPEED: Mapping[str, bool] = {"for_speed": True}

# The version that graphs are made for if none is given and none can build here: JetPack 6.1 and 6.2.
DEFAULT_TENSORRT = "10.3"


@dataclass(frozen=True, slots=True, kw_only=True)
class Int8Scheme:
    """The placement of QuantizeLinear and DequantizeLinear from which a runtime makes integer arithmetic."""

    activations: Literal["uint8", "int8"]  # uint8 with a zero point, or symmetric int8
    quantize_outputs_of: frozenset[str] = frozenset()  # operators that need a quantized output to run in int8
    # Sums of such an output and another quantized value run in int8.
    quantize_additions: bool = field(default=False, metadata=FOR_SPEED)
    # Sums before a ReLU of a convolution's output that nothing else reads and a value that is quantized run in int8.
    quantize_shortcuts: bool = field(default=False, metadata=FOR_SPEED)
    # Operators without weights that the runtime can run in int8. They stay in float unless `edgevit tune` measures that
    # the engine is faster with them in int8.
    operators: frozenset[str] = frozenset()
    int32_biases: bool = False  # biases are int32 in the graph; else they keep their type
    float_dtype: Precision = "fp32"  # of everything that is not quantized
    # "full": weights up to +-127. "safe": so small that no two products with uint8 overflow 16 bits, as they would on
    # x86 processors without VNNI.
    weight_range: Int8Range = "safe"
    # Linear layers run as 1x1 convolutions on processors that run those faster.
    linear_as_conv: bool = field(default=False, metadata=FOR_SPEED)
    # Grouped convolutions with at least so many inputs a group are int8 on processors with AVX-VNNI alone; None: none.
    min_group_inputs_with_avx_vnni: int | None = field(default=None, metadata=FOR_SPEED)
    # The same on every processor for those of few positions, whose time is that of reading their weights.
    min_group_inputs_of_few_rows: int | None = field(default=None, metadata=FOR_SPEED)
    # Convolutions with fewer multiply-adds at a position stay in float: `SpeedRule`.
    min_position_macs: int = field(default=0, metadata=FOR_SPEED)
    # Convolutions with fewer multiply-adds for each number that is converted between float and integers stay in float.
    min_conversion_macs: int = field(default=0, metadata=FOR_SPEED)
    # The same on processors with AVX2 and neither VNNI nor AVX-512.
    min_conversion_macs_with_avx2: int = field(default=0, metadata=FOR_SPEED)
    # Wide maps between convolutions that stay in float are computed in slices.
    slice_wide_maps: bool = field(default=False, metadata=FOR_SPEED)
    # Zero points of the inputs of linear layers are part of their biases.
    fold_zero_points: bool = field(default=False, metadata=FOR_SPEED)


@dataclass(frozen=True, slots=True, kw_only=True)
class Format:
    """An output format and the runtime that runs it."""

    name: str  # on the command line and in bundle names: "ort"
    title: str  # in tables and messages: "ONNX Runtime"
    runtime: str  # "module:class" of the `Runtime`, imported when it is needed
    packages: tuple[str, ...]  # distributions that provide the runtime, for its version; the first one names it
    extra: str  # edgevit's extra that installs it
    precisions: tuple[Precision, ...]
    opset: int  # ONNX opset of its graphs, unless --opset asks for another
    group_norm: GroupNormForm
    aliases: tuple[str, ...] = ()  # other names on the command line
    passes: PassPipeline = "generic"
    int8: Int8Scheme | None = None  # None: no int8
    ahead_of_time: bool = False  # builds for GPUs that --sm names
    workspace: bool = False  # takes --workspace
    versioned_parser: bool = False  # graphs depend on the runtime's version: takes --trt-version
    builds_on_device: bool = False  # a machine without the device exports the bundle without the engine
    runs_on_device: bool = False  # a machine without the device cannot run the engine
    deployable: bool = True  # False: an exchange format, whose speed is not measured

    @property
    def package(self) -> str:
        """The name of the runtime's package in environments and baselines: "tensorrt_rtx"."""
        return self.packages[0].replace("-", "_")

    @property
    def int8_on_cpu(self) -> bool:
        """Whether its engines multiply 8-bit integers on the processor."""
        return self.int8 is not None and self.deployable and not self.runs_on_device

    def require_int8(self) -> Int8Scheme:
        """The int8 scheme. Raises PrecisionError if the format has none."""
        if self.int8 is None:
            raise PrecisionError(f"{self.title} does not run int8; it runs {', '.join(self.precisions)}")
        return self.int8


# Group normalization: ONNX Runtime is faster with `instance`, OpenVINO with `native` (docs/forms.md). TensorRT up to
# 10.16 at least and TensorRT-RTX 1.7 compute GroupNormalization with one group as if every channel were a group
# (NVIDIA/TensorRT issue 4756), which needs fewer kernels and gives wrong results; `instance` is right there.
#
# int8: ONNX Runtime fuses Conv to QLinearConv only if its output is quantized, and Gemm to QGemm only if its bias is
# int32. OpenVINO needs neither, and every rounding that is left out improves accuracy. TensorRT takes no zero points;
# its float kernels are fast in fp16.
FORMATS: tuple[Format, ...] = (
    Format(
        name="onnx",
        title="ONNX",
        runtime="edgevit.runtimes.onnxruntime:OnnxFile",
        packages=("onnxruntime", "onnxruntime-gpu"),
        extra="ort",
        precisions=("fp32", "fp16", "int8"),  # a file holds any; the runtime that loads it decides the rest
        opset=18,
        group_norm="instance",
        int8=Int8Scheme(activations="uint8"),
        deployable=False,
    ),
    Format(
        name="ort",
        title="ONNX Runtime",
        aliases=("onnxruntime",),
        runtime="edgevit.runtimes.onnxruntime:OnnxRuntime",
        packages=("onnxruntime", "onnxruntime-gpu"),
        extra="ort",
        precisions=("fp32", "int8"),
        opset=20,
        group_norm="instance",
        int8=Int8Scheme(
            activations="uint8",
            quantize_outputs_of=frozenset({"Conv", "Softmax", "Add", "Mul"}),
            operators=frozenset({"MatMul", "Softmax", "Add", "Mul"}),
            quantize_additions=True,
            int32_biases=True,
            min_group_inputs_with_avx_vnni=64,
            min_group_inputs_of_few_rows=128,
            min_position_macs=100,
            min_conversion_macs=20,
            slice_wide_maps=True,
        ),
    ),
    Format(
        name="openvino",
        title="OpenVINO",
        aliases=("ov",),
        runtime="edgevit.runtimes.openvino:OpenVino",
        packages=("openvino",),
        extra="openvino",
        precisions=("fp32", "bf16", "int8"),
        opset=21,
        group_norm="native",
        passes="openvino",
        int8=Int8Scheme(
            activations="uint8",
            quantize_shortcuts=True,
            operators=frozenset({"MatMul", "Add", "Mul"}),
            linear_as_conv=True,
            fold_zero_points=True,
            min_group_inputs_with_avx_vnni=4,
            min_conversion_macs_with_avx2=20,
        ),
    ),
    Format(
        name="trt",
        title="TensorRT",
        aliases=("tensorrt", "engine"),
        runtime="edgevit.runtimes.tensorrt.runtime:TensorRt",
        packages=("tensorrt", "tensorrt-cu13", "tensorrt-cu12"),
        extra="trt",
        precisions=("fp32", "fp16", "int8"),
        opset=20,
        group_norm="instance",
        passes="tensorrt",
        int8=Int8Scheme(activations="int8", float_dtype="fp16", weight_range="full"),
        workspace=True,
        versioned_parser=True,
        builds_on_device=True,
        runs_on_device=True,
    ),
    Format(
        name="trt-rtx",
        title="TensorRT-RTX",
        runtime="edgevit.runtimes.tensorrt_rtx.runtime:TensorRtRtx",
        packages=("tensorrt-rtx", "tensorrt-rtx-cu13", "tensorrt-rtx-cu12"),
        extra="trt-rtx",
        precisions=("fp32", "fp16", "int8"),
        opset=20,
        group_norm="instance",
        passes="tensorrt",
        int8=Int8Scheme(activations="int8", float_dtype="fp16", weight_range="full"),
        ahead_of_time=True,
        workspace=True,
        runs_on_device=True,
    ),
)


def list_formats() -> tuple[Format, ...]:
    """All formats, in the order of tables."""
    return FORMATS


def get_format(name: str, *, among: Collection[str] | None = None, kind: str = "format") -> Format:
    """The format with this name or alias, upper or lower case.

    `among` restricts the choice to these names, and `kind` is the noun of the error message. Raises UsageError with
    similar names.
    """
    choice = [entry for entry in FORMATS if among is None or entry.name in among]
    for entry in choice:
        if name.lower() in (entry.name, *entry.aliases):
            return entry
    raise unknown_name(kind, name, [known for entry in choice for known in (entry.name, *entry.aliases)])
