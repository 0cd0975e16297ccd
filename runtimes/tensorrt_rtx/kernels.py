"""Parse and compare the compiler's kernel list.

TensorRT-RTX prints the list during a build, without a GPU: one line for each kernel, with the tensors it reads and
writes and the ONNX nodes it implements. So the effect of a graph rewrite is visible on a machine without a GPU. The
list is a proxy for TensorRT; `PROXY` states its limits.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

from edgevit.errors import BuildError, UsageError
from edgevit.node_names import module_of_name
from edgevit.runtimes.base import BatchRange
from edgevit.runtimes.precision import UNKNOWN
from edgevit.runtimes.tensorrt_rtx.capabilities import COMPUTE_CAPABILITIES
from edgevit.runtimes.tensorrt_rtx.compiler import TIMEOUT_S, Compiled, compile_onnx

PROXY = (
    "A proxy: TensorRT-RTX compiled this without a GPU. TensorRT fuses differently; kernel counts and bytes are no "
    "latency; int8 and fp8 are not fused here; compare plans of one compute capability only."
)

# Bits per element, by the compiler's names of element types.
_BITS = {"Int64": 64, "Float": 32, "Int32": 32, "Half": 16, "BFloat16": 16, "BF16": 16, "Int8": 8, "UInt8": 8,
         "Bool": 8, "FP8": 8, "E8M0": 8, "FP4": 4, "Int4": 4}  # fmt: skip
_PRECISIONS = {"Float": "fp32", "Half": "fp16", "BFloat16": "bf16", "BF16": "bf16", "Int8": "int8", "FP8": "fp8",
               "FP4": "fp4", "Int4": "int4"}  # fmt: skip
# Lines of the list that launch no kernel: synchronization of two streams, shapes computed on the host, and jumps.
_NO_KERNELS = frozenset({"signal", "wait", "shape_call", "cjmp", "jmp"})
# The compiler's names of operations that only move or convert elements.
_COPYING = frozenset({"Move", "Tran", "Resh", "Slic", "Conc", "Repl", "Cast", "Gath", "Padd"})
_MULTIPLYING = frozenset({"Corr", "Fc"})
_LAYERS = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})  # ONNX operators
_SHIFTING = frozenset({"Slice", "Pad", "Concat", "ScatterND"})
_NORMS = ("InstanceNormalization", "GroupNormalization", "LayerNormalization", "RMSNormalization",
          "MeanVarianceNormalization", "LpNormalization")  # fmt: skip

_LINE = re.compile(
    r"Name: (?P<name>.*?), LayerType: (?P<kind>\w+), Inputs: (?P<inputs>\[.*?\]), Constants: (?P<constants>\[.*?\]), "
    r"Outputs: (?P<outputs>\[.*?\]), TacticName: (?P<tactic>.*?), StreamId: \d+, Metadata: ?(?P<metadata>.*)"
)
_JUMP = re.compile(r"LayerType: cjmp, .*JumpTargetThen: (.*?), JumpTargetElse: (.*?), Metadata:")
_TENSOR = re.compile(r"\{ Name: (.*?), Dimensions: \[([-\d,]*)\], .*?Datatype: (\w+),")
_NODE = re.compile(r"\[ONNX Layer: ([^\x1f]*)\]")  # the compiler puts a unit separator between nodes


@dataclass(frozen=True, slots=True)
class KernelTensor:
    """A tensor that a kernel reads or writes, with the compiler's name of its element type."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def size_bytes(self) -> int:
        return math.prod(self.shape) * _BITS.get(self.dtype, 32) // 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Kernel:
    """A line of the kernel list. The operation follows from the name and the ONNX nodes."""

    name: str
    kind: str
    inputs: tuple[KernelTensor, ...]  # without duplicates
    constants: tuple[KernelTensor, ...]  # weights
    outputs: tuple[KernelTensor, ...]
    nodes: tuple[str, ...]  # names of ONNX nodes
    operators: tuple[str, ...]  # ONNX operators of the nodes

    @property
    def modules(self) -> tuple[str, ...]:
        """The PyTorch modules that it implements a part of."""
        return tuple(dict.fromkeys(module for module in map(module_of_name, self.nodes) if module))

    @property
    def operations(self) -> tuple[str, ...]:
        """The compiler's operations in it, in order; empty for a kernel from a library."""
        fused = re.fullmatch(r"__myl_(\w+?)_myl\d+_\d+", self.name)
        return tuple(re.findall(r"[A-Z][a-z0-9]*", fused[1])) if fused else ()

    @property
    def bytes_read(self) -> int:
        """Bytes of its inputs, without weights."""
        return sum(tensor.size_bytes for tensor in self.inputs)

    @property
    def bytes_written(self) -> int:
        return sum(tensor.size_bytes for tensor in self.outputs)

    @property
    def bytes_weights(self) -> int:
        return sum(tensor.size_bytes for tensor in self.constants)

    @property
    def is_constant_move(self) -> bool:
        """Whether it only writes a few constants, such as a counter for split sums; such kernels are not counted."""
        return not self.inputs and self.is_copy and self.bytes_written <= 64

    @property
    def is_copy(self) -> bool:
        """Whether it only moves, pads, reorders or converts elements."""
        return bool(self.operations) and _COPYING.issuperset(self.operations)

    @property
    def is_attention(self) -> bool:
        """Whether it is fused attention: both matmuls and the softmax between them."""
        return "mha" in self.name.lower()

    @property
    def is_softmax(self) -> bool:
        """Whether it computes a softmax outside of fused attention."""
        exponentials = "Exp" in self.operations or self.kind == "softmax"
        return exponentials and "Softmax" in self.operators and not self.is_attention

    @property
    def is_norm(self) -> bool:
        """Whether it computes a part of a normalization, by its ONNX operators or the names of its nodes."""
        return any(node.rpartition("/")[2].startswith(_NORMS) for node in self.nodes) or any(
            operator in _NORMS for operator in self.operators
        )

    @property
    def is_shift(self) -> bool:
        """Whether it is a spatial shift (slices that are concatenated again) and nothing else."""
        return self.is_copy and bool(self.operators) and _SHIFTING.issuperset(self.operators)

    @property
    def fuses_shift(self) -> bool:
        """Whether a spatial shift is fused into it."""
        return not self.is_copy and {"Slice", "Concat"}.issubset(self.operators)

    @property
    def multiplies(self) -> bool:
        """Whether it is a convolution or a matmul."""
        by_name = self.kind in ("correlation", "gemm") or not _MULTIPLYING.isdisjoint(self.operations)
        return by_name or self.is_attention or self._multiplies_a_row

    @property
    def _multiplies_a_row(self) -> bool:
        """Whether it is a layer of one row, which the compiler writes as products with its weights and their sums."""
        sums_products = ("Mul", "Sum") in pairwise(self.operations)
        has_matrix = any(len(weight.shape) > 1 for weight in self.constants)
        return sums_products and has_matrix and not _LAYERS.isdisjoint(self.operators)

    @property
    def precision(self) -> str:
        """The element type of its largest input, which is the precision of a matmul; of a row's layer, of its weights.

        The layer of a row may be fused with the norm before it, whose inputs are statistics in fp32.
        """
        tensors = self.constants if self._multiplies_a_row else self.inputs or self.outputs
        if not tensors:
            return UNKNOWN
        dtype = max(tensors, key=lambda tensor: math.prod(tensor.shape)).dtype
        return _PRECISIONS.get(dtype, dtype)

    def to_json(self) -> dict[str, Any]:
        flags = ("is_copy", "is_attention", "is_softmax", "is_norm", "is_shift", "fuses_shift", "is_constant_move",
                 "multiplies")  # fmt: skip
        return {
            **asdict(self),
            "modules": list(self.modules),
            "operations": list(self.operations),
            "bytes_read": self.bytes_read,
            "bytes_written": self.bytes_written,
            "bytes_weights": self.bytes_weights,
            "precision": self.precision,
            **{flag: getattr(self, flag) for flag in flags},
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Totals:
    """Totals of a plan, without kernels that only write a few constants."""

    kernels: int
    bytes_read: int
    bytes_written: int
    bytes_weights: int
    copies: int
    shift_kernels: int  # kernels that are only a spatial shift
    fused_shifts: int
    norm_kernels: int
    fused_attentions: int
    unfused_softmaxes: int
    constant_moves: int

    @property
    def bytes_moved(self) -> int:
        """Bytes read and written, without weights."""
        return self.bytes_read + self.bytes_written


@dataclass(frozen=True)
class KernelPlan:
    """The kernels of one file for one compute capability, in execution order."""

    file: str
    compute_capabilities: tuple[int, ...] | None
    compiler: str  # TensorRT-RTX's version
    kernels: tuple[Kernel, ...]
    warnings: tuple[str, ...] = ()

    @cached_property
    def launched(self) -> tuple[Kernel, ...]:
        """The kernels without those that only write a few constants."""
        return tuple(kernel for kernel in self.kernels if not kernel.is_constant_move)

    @cached_property
    def totals(self) -> Totals:
        kernels = self.launched
        return Totals(
            kernels=len(kernels),
            bytes_read=sum(kernel.bytes_read for kernel in kernels),
            bytes_written=sum(kernel.bytes_written for kernel in kernels),
            bytes_weights=sum(kernel.bytes_weights for kernel in kernels),
            copies=sum(kernel.is_copy for kernel in kernels),
            shift_kernels=sum(kernel.is_shift for kernel in kernels),
            fused_shifts=sum(kernel.fuses_shift for kernel in kernels),
            norm_kernels=sum(kernel.is_norm for kernel in kernels),
            fused_attentions=sum(kernel.is_attention for kernel in kernels),
            unfused_softmaxes=sum(kernel.is_softmax for kernel in kernels),
            constant_moves=len(self.kernels) - len(kernels),
        )

    @cached_property
    def precisions(self) -> Mapping[str, int]:
        """Number of convolution and matmul kernels by precision."""
        return dict(Counter(kernel.precision for kernel in self.kernels if kernel.multiplies))

    @cached_property
    def modules(self) -> Mapping[str, int]:
        """Number of kernels by PyTorch module: the first if there are several, "" if there is none."""
        return dict(Counter(next(iter(kernel.modules), "") for kernel in self.launched))

    def compare(self, other: KernelPlan) -> PlanComparison:
        """Compare this plan with another. Raises UsageError if compiler or compute capability differ."""
        if self.compute_capabilities != other.compute_capabilities or self.compiler != other.compiler:
            raise UsageError(
                f"cannot compare: {self.file} was compiled for {self.target} by TensorRT-RTX {self.compiler}, "
                f"{other.file} for {other.target} by {other.compiler}; use the same --sm and version for both"
            )
        return PlanComparison(self, other)

    @property
    def target(self) -> str:
        return target_name(self.compute_capabilities)

    def to_json(self) -> dict[str, Any]:
        return {
            "proxy": PROXY,
            "file": self.file,
            "compute_capabilities": self.compute_capabilities,
            "compiler": f"TensorRT-RTX {self.compiler}",
            "totals": {**asdict(self.totals), "bytes_moved": self.totals.bytes_moved},
            "precisions": dict(self.precisions),
            "modules": dict(self.modules),
            "warnings": list(self.warnings),
            "kernels": [kernel.to_json() for kernel in self.kernels],
        }


@dataclass(frozen=True, slots=True)
class PlanComparison:
    """Two plans for one compute capability."""

    first: KernelPlan
    second: KernelPlan

    @property
    def totals(self) -> tuple[tuple[str, int, int], ...]:
        """Each total: its name, and its value in the first and in the second plan."""
        first, second = asdict(self.first.totals), asdict(self.second.totals)
        return tuple((name, first[name], second[name]) for name in first)

    @property
    def modules(self) -> tuple[tuple[str, int, int], ...]:
        """The PyTorch modules whose numbers of kernels differ."""
        first, second = self.first.modules, self.second.modules
        names = dict.fromkeys((*first, *second))
        rows = ((name, first.get(name, 0), second.get(name, 0)) for name in names)
        return tuple(row for row in rows if row[1] != row[2])

    def to_json(self) -> dict[str, Any]:
        return {
            "proxy": PROXY,
            "totals": {name: [first, second] for name, first, second in self.totals},
            "modules": {name: [first, second] for name, first, second in self.modules},
            "first": self.first.to_json(),
            "second": self.second.to_json(),
        }


def plan(path: Path, *, compute_capability: int = 86, batch: int = 1, timeout_s: float = TIMEOUT_S) -> KernelPlan:
    """Compile an ONNX file and return its kernels; `batch` is the size of a dynamic batch.

    Raises MissingError if TensorRT-RTX is not installed, BuildError if it cannot compile the graph, UsageError for an
    unknown compute capability, or for a batch other than 1 if the file has a fixed batch.
    """
    if compute_capability not in COMPUTE_CAPABILITIES:
        known = ", ".join(str(capability) for capability in COMPUTE_CAPABILITIES)
        orin = " (Jetson Orin)" if compute_capability == 87 else ""
        raise UsageError(
            f"TensorRT-RTX does not support compute capability {compute_capability}{orin}; use one of {known}. "
            "Compare graphs with --sm 86, or build on the device: --fmt trt"
        )
    batches = BatchRange(batch, batch, batch)
    compiled = compile_onnx(path, compute_capabilities=(compute_capability,), batches=batches, timeout_s=timeout_s)
    result = read_plan(compiled, path, (compute_capability,))
    if not compiled.dynamic_batch:
        if batch != 1:
            raise UsageError(f"{path} has a fixed batch, so it cannot be {batch}; remove --batch")
        return result
    return replace(result, warnings=(*result.warnings, f"the batch is dynamic; this plan is for {batch} (--batch N)"))


def read_plan(
    compiled: Compiled, model: Path, compute_capabilities: tuple[int, ...] | None, *, batch: int = 1
) -> KernelPlan:
    """Return the plan in a compiler's report; `batch` is the size of a dynamic batch."""
    warnings = _control_flow(compiled.layers)
    if compiled.misread:
        warnings.append(misreading(compiled))
    return KernelPlan(
        file=str(model),
        compute_capabilities=compute_capabilities,
        compiler=compiled.version,
        kernels=parse_layers(compiled.layers, compiled.operators, batch=batch),
        warnings=tuple(warnings),
    )


def _control_flow(text: str) -> list[str]:
    """Return a warning for loops and one for branches: the list has each of their kernels once."""
    passed, found = set(), set()
    for line in text.split("\n"):
        passed.add(line.removeprefix("Name: ").partition(", LayerType: ")[0])
        jump = _JUMP.search(line)
        if jump is not None:
            found.add("loop" if not passed.isdisjoint(jump.groups()) else "branch")
    warnings = {
        "loop": "the graph has a loop: its kernels and bytes are counted once, and run once for each iteration",
        "branch": "the graph has branches (If): the kernels and bytes of both are counted, but only one branch runs",
    }
    return [warning for name, warning in warnings.items() if name in found]


def misreading(compiled: Compiled) -> str:
    """Return the message about normalizations that the compiler computes differently from ONNX."""
    count, first = len(compiled.misread), compiled.misread[0]
    return (
        f"TensorRT-RTX {compiled.version} computes GroupNormalization with one group for each channel "
        f"separately (NVIDIA/TensorRT issue 4756), in {count} nodes, the first is {first}: its kernels and results are "
        "wrong; replace the node by InstanceNormalization on (N, 1, C*H*W)"
    )


def target_name(compute_capabilities: tuple[int, ...] | None) -> str:
    """Return compute capabilities for messages: `sm 86, 89`."""
    if compute_capabilities is None:
        return "the portable default"
    return "sm " + ", ".join(str(capability) for capability in compute_capabilities)


def parse_layers(text: str, operators: Mapping[str, str], *, batch: int = 1) -> tuple[Kernel, ...]:
    """Parse the compiler's message `Layers:`; `operators` maps node names to ONNX operators.

    Raises BuildError if the message has another form.
    """
    lines = [(line, kind[1]) for line in text.split("\n") if (kind := re.match(r"Name: .*?, LayerType: (\w+),", line))]
    if not lines:
        raise BuildError(_unknown_form("no line names a layer"))
    steps = (_kernel(line, operators, batch) for line, kind in lines if kind not in _NO_KERNELS)
    return tuple(kernel for kernel in steps if kernel is not None)


def _kernel(line: str, operators: Mapping[str, str], batch: int) -> Kernel | None:
    """Return the kernel of a line; None if the host computes a number, such as the counter of a loop."""
    found = _LINE.fullmatch(line)
    if found is None:
        raise BuildError(_unknown_form(line[:120]))
    if _is_on_host(found, batch):
        return None
    nodes = tuple(dict.fromkeys(_NODE.findall(found["metadata"])))
    return Kernel(
        name=found["name"],
        kind=found["kind"],
        inputs=_tensors(found["inputs"], batch),
        constants=_tensors(found["constants"], batch),
        outputs=_tensors(found["outputs"], batch),
        nodes=nodes,
        operators=tuple(dict.fromkeys(operators.get(node) or _operator_in(node) for node in nodes)),
    )


def _is_on_host(line: re.Match[str], batch: int) -> bool:
    """Whether a line without a kernel's name computes single numbers; copies between host and GPU stay."""
    tensors = (*_tensors(line["inputs"], batch), *_tensors(line["outputs"], batch))
    return not line["tactic"] and line["kind"] != "copy" and all(tensor.shape == (1,) for tensor in tensors)


def _operator_in(node: str) -> str:
    """Return the operator in a name `<module path>/<operator>[_n]`, for a node that the parser did not report."""
    return re.sub(r"_\d+$", "", node.rpartition("/")[2])


def _tensors(text: str, batch: int) -> tuple[KernelTensor, ...]:
    tensors = (
        KernelTensor(name, dtype, tuple(batch if dim == "-1" else int(dim) for dim in dims.split(",") if dim))
        for name, dims, dtype in _TENSOR.findall(text)
    )
    return tuple(dict.fromkeys(tensors))


def _unknown_form(reason: str) -> str:
    return (
        f"cannot parse the kernel list of this TensorRT-RTX version ({reason}); the supported version is 1.7.1.116: "
        "pip install tensorrt-rtx-cu13==1.7.1.116; if that is the version here, report the line"
    )
