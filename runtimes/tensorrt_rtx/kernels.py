"""The compiler's final kernel list of an ONNX file: what fused, what only copies, and where each kernel came from.

TensorRT-RTX prints the list as it builds, with no GPU: one line a kernel, with the tensors that it reads and writes and
the ONNX nodes that went into it. That makes rewrites of a graph comparable where no GPU is. It is a proxy, and `PROXY`
says how far it carries.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from edgevit.errors import BuildError, UsageError
from edgevit.runtimes.base import COMPUTE_CAPABILITIES, BatchRange
from edgevit.runtimes.precision import UNKNOWN
from edgevit.runtimes.tensorrt_rtx.compiler import TIMEOUT_S, Compiled, compile_onnx, module_of

PROXY = (
    "A proxy: TensorRT-RTX compiled this with no GPU. TensorRT itself fuses otherwise; counts and bytes are no "
    "latency; int8 and fp8 stand unfused here and say nothing of speed; plans compare on one compute capability only."
)

# By the compiler's names for element types.
_BITS = {"Int64": 64, "Float": 32, "Int32": 32, "Half": 16, "BFloat16": 16, "BF16": 16, "Int8": 8, "UInt8": 8,
         "Bool": 8, "FP8": 8, "E8M0": 8, "FP4": 4, "Int4": 4}  # fmt: skip
_PRECISIONS = {"Float": "fp32", "Half": "fp16", "BFloat16": "bf16", "BF16": "bf16", "Int8": "int8", "FP8": "fp8",
               "FP4": "fp4", "Int4": "int4"}  # fmt: skip
# Lines of the list that launch nothing: two streams that wait for each other, and shapes worked out on the host.
_NO_KERNELS = frozenset({"signal", "wait", "shape_call"})
# The compiler's names for operations that move or convert elements and compute nothing.
_COPYING = frozenset({"Move", "Tran", "Resh", "Slic", "Conc", "Repl", "Cast", "Gath", "Padd"})
_MULTIPLYING = frozenset({"Corr", "Fc"})
_SHIFTING = frozenset({"Slice", "Pad", "Concat", "ScatterND"})
_NORMS = ("InstanceNormalization", "GroupNormalization", "LayerNormalization", "RMSNormalization",
          "MeanVarianceNormalization", "LpNormalization")  # fmt: skip

_LINE = re.compile(
    r"Name: (?P<name>.*?), LayerType: (?P<kind>\w+), Inputs: (?P<inputs>\[.*?\]), Constants: (?P<constants>\[.*?\]), "
    r"Outputs: (?P<outputs>\[.*?\]), TacticName: .*?, StreamId: \d+, Metadata: ?(?P<metadata>.*)"
)
_TENSOR = re.compile(r"\{ Name: (.*?), Dimensions: \[([-\d,]*)\], .*?Datatype: (\w+),")
_NODE = re.compile(r"\[ONNX Layer: ([^\x1f]*)\]")  # the compiler puts a unit separator between nodes


@dataclass(frozen=True, slots=True)
class KernelTensor:
    """A tensor that a kernel reads or writes; `dtype` as the compiler calls it."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def size_bytes(self) -> int:
        return math.prod(self.shape) * _BITS.get(self.dtype, 32) // 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Kernel:
    """One kernel as the compiler lists it. What it does is read from the compiler's name and from its ONNX nodes."""

    name: str
    kind: str
    inputs: tuple[KernelTensor, ...]  # each once, however often the kernel reads it
    constants: tuple[KernelTensor, ...]  # weights
    outputs: tuple[KernelTensor, ...]
    nodes: tuple[str, ...]  # ONNX nodes by name
    operators: tuple[str, ...]  # of the nodes

    @property
    def modules(self) -> tuple[str, ...]:
        """The PyTorch modules that it computes a part of."""
        return tuple(dict.fromkeys(module for module in map(module_of, self.nodes) if module))

    @property
    def operations(self) -> tuple[str, ...]:
        """The compiler's own operations in it, in order; none for a kernel of a library."""
        fused = re.fullmatch(r"__myl_(\w+?)_myl\d+_\d+", self.name)
        return tuple(re.findall(r"[A-Z][a-z0-9]*", fused[1])) if fused else ()

    @property
    def bytes_read(self) -> int:
        """Of its inputs, without its weights."""
        return sum(tensor.size_bytes for tensor in self.inputs)

    @property
    def bytes_written(self) -> int:
        return sum(tensor.size_bytes for tensor in self.outputs)

    @property
    def bytes_weights(self) -> int:
        return sum(tensor.size_bytes for tensor in self.constants)

    @property
    def is_constant_move(self) -> bool:
        """Whether it only puts down a few numbers, such as a counter of split sums at zero: nothing worth counting."""
        return not self.inputs and self.is_copy and self.bytes_written <= 64

    @property
    def is_copy(self) -> bool:
        """Whether it moves, pads, reorders or converts elements and computes nothing."""
        return bool(self.operations) and _COPYING.issuperset(self.operations)

    @property
    def is_attention(self) -> bool:
        """Whether it is attention in one kernel: both products and the softmax between them."""
        return "mha" in self.name.lower()

    @property
    def is_softmax(self) -> bool:
        """Whether it computes a softmax on its own, outside of fused attention."""
        exponentials = "Exp" in self.operations or self.kind == "softmax"
        return exponentials and "Softmax" in self.operators and not self.is_attention

    @property
    def is_norm(self) -> bool:
        """Whether it computes a part of a normalisation, as an operator of its own or as nodes named after one."""
        return any(node.rpartition("/")[2].startswith(_NORMS) for node in self.nodes) or any(
            operator in _NORMS for operator in self.operators
        )

    @property
    def is_shift(self) -> bool:
        """Whether a spatial shift, slices put together anew, is a kernel of its own here, fused with nothing."""
        return self.is_copy and bool(self.operators) and _SHIFTING.issuperset(self.operators)

    @property
    def fuses_shift(self) -> bool:
        """Whether a spatial shift rides in it at no kernel of its own."""
        return not self.is_copy and {"Slice", "Concat"}.issubset(self.operators)

    @property
    def multiplies(self) -> bool:
        """Whether it is a convolution or a product of matrices."""
        return self.kind in ("correlation", "gemm") or self.is_attention or not _MULTIPLYING.isdisjoint(self.operations)

    @property
    def precision(self) -> str:
        """The element type of its largest input, which names what a product runs in."""
        tensors = self.inputs or self.outputs
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
    """A plan in numbers. None of them counts the moves of a few constant bytes."""

    kernels: int
    bytes_read: int
    bytes_written: int
    bytes_weights: int
    copies: int
    shift_kernels: int  # what the spatial shifts cost in kernels of their own
    fused_shifts: int
    norm_kernels: int
    fused_attentions: int
    unfused_softmaxes: int
    constant_moves: int

    @property
    def bytes_moved(self) -> int:
        """Read and written, without weights."""
        return self.bytes_read + self.bytes_written


@dataclass(frozen=True)
class KernelPlan:
    """The kernels of one file for one compute capability, in the order in which they run."""

    file: str
    compute_capabilities: tuple[int, ...] | None
    compiler: str  # TensorRT-RTX's version
    kernels: tuple[Kernel, ...]
    warnings: tuple[str, ...] = ()

    @cached_property
    def launched(self) -> tuple[Kernel, ...]:
        """The kernels without the moves of a few constant bytes."""
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
        """Kernels that multiply, by precision."""
        return dict(Counter(kernel.precision for kernel in self.kernels if kernel.multiplies))

    @cached_property
    def modules(self) -> Mapping[str, int]:
        """Kernels by PyTorch module; one that serves several modules counts for the first, "" for none."""
        return dict(Counter(next(iter(kernel.modules), "") for kernel in self.launched))

    def compare(self, other: KernelPlan) -> PlanComparison:
        """This plan and another side by side. Raises UsageError where their numbers do not compare."""
        if self.compute_capabilities != other.compute_capabilities or self.compiler != other.compiler:
            raise UsageError(
                f"{self.file} was compiled for {self.target} by TensorRT-RTX {self.compiler} and {other.file} for "
                f"{other.target} by {other.compiler}, and such plans do not compare; make both with one --sm"
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
        """Each total by name, of the first and of the second plan."""
        first, second = asdict(self.first.totals), asdict(self.second.totals)
        return tuple((name, first[name], second[name]) for name in first)

    @property
    def modules(self) -> tuple[tuple[str, int, int], ...]:
        """The PyTorch modules whose number of kernels differs."""
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
    """The final kernels of an ONNX file, for one compute capability; a dynamic batch is taken as `batch`.

    Raises MissingError where TensorRT-RTX is not installed, BuildError where it does not compile the graph, UsageError
    for a batch other than 1 where the file's is fixed.
    """
    if compute_capability not in COMPUTE_CAPABILITIES:
        known = ", ".join(str(capability) for capability in COMPUTE_CAPABILITIES)
        raise UsageError(f"no compute capability {compute_capability} to plan for; there are {known}: --sm 86")
    batches = BatchRange(batch, batch, batch)
    compiled = compile_onnx(path, compute_capabilities=(compute_capability,), batches=batches, timeout_s=timeout_s)
    made = read_plan(compiled, path, (compute_capability,))
    if not compiled.dynamic_batch:
        if batch != 1:
            raise UsageError(f"the batch of {path} is fixed, so that it cannot be {batch}; leave --batch out")
        return made
    return replace(made, warnings=(*made.warnings, f"the batch is dynamic, and {batch} in this plan (--batch N)"))


def read_plan(
    compiled: Compiled, model: Path, compute_capabilities: tuple[int, ...] | None, *, batch: int = 1
) -> KernelPlan:
    """The plan that a build's own account tells; `batch` stands in for a dynamic batch."""
    warnings = []
    if compiled.misread:
        warnings.append(misreading(compiled))
    return KernelPlan(
        file=str(model),
        compute_capabilities=compute_capabilities,
        compiler=compiled.version,
        kernels=parse_layers(compiled.layers, compiled.operators, batch=batch),
        warnings=tuple(warnings),
    )


def misreading(compiled: Compiled) -> str:
    """What to tell of normalisations that the compiler computes otherwise than ONNX says."""
    count, first = len(compiled.misread), compiled.misread[0]
    return (
        f"TensorRT-RTX {compiled.version} computes GroupNormalization with one group channel by channel "
        f"(NVIDIA/TensorRT issue 4756), here in {count} nodes, the first {first}: its kernels are not this model's "
        "and its answers wrong; write the node as InstanceNormalization on (N, 1, C*H*W)"
    )


def target_name(compute_capabilities: tuple[int, ...] | None) -> str:
    """Compute capabilities as people write them."""
    if compute_capabilities is None:
        return "the portable default"
    return "sm " + ", ".join(str(capability) for capability in compute_capabilities)


def parse_layers(text: str, operators: Mapping[str, str], *, batch: int = 1) -> tuple[Kernel, ...]:
    """The kernels of the compiler's message `Layers:`. `operators` has the ONNX operator of each node.

    Raises BuildError where the message is not of the form that is known.
    """
    lines = [(line, kind[1]) for line in text.split("\n") if (kind := re.match(r"Name: .*?, LayerType: (\w+),", line))]
    if not lines:
        raise BuildError(_unreadable("no line of it names a layer"))
    return tuple(_kernel(line, operators, batch) for line, kind in lines if kind not in _NO_KERNELS)


def _kernel(line: str, operators: Mapping[str, str], batch: int) -> Kernel:
    found = _LINE.fullmatch(line)
    if found is None:
        raise BuildError(_unreadable(line[:120]))
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


def _operator_in(node: str) -> str:
    """The operator in a name `<module path>/<operator>[_n]`, for a node that the parser did not tell of."""
    return re.sub(r"_\d+$", "", node.rpartition("/")[2])


def _tensors(text: str, batch: int) -> tuple[KernelTensor, ...]:
    tensors = (
        KernelTensor(name, dtype, tuple(batch if dim == "-1" else int(dim) for dim in dims.split(",") if dim))
        for name, dims, dtype in _TENSOR.findall(text)
    )
    return tuple(dict.fromkeys(tensors))


def _unreadable(what: str) -> str:
    return (
        f"the kernel list of this TensorRT-RTX is not of the form that edgevit reads ({what}); "
        "install the version that it was written for: pip install tensorrt-rtx-cu13==1.7.1.116"
    )
