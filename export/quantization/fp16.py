"""Convert a graph to mixed fp16/fp32: each operator has one precision, with Casts between them.

TensorRT 11 and TensorRT-RTX have no precision flag: each operator runs in the type that it has in the graph.
TensorRT 10 does the same with STRONGLY_TYPED. So the precision of each node is chosen here, from the range of its
tensors on calibration inputs and from its role (`fp16_rules`). These stay in fp32:

* nodes with tensors near fp16's largest number, 65504, or entirely below its smallest normal number, 6.1e-5, and
  readers of constants that fp16 cannot hold, such as an epsilon of 1e-8;
* products written out as multiplications and a sum, since matmuls add up in fp32;
* exponentials, the sums over them and the division by those sums: the performer's phi spans more decades than fp16;
* a softmax over all pixels of a large map for a few tokens, and the matmul that pools the pixels with its weights;
* the last layers before boxes and scores are decoded, and the decoding (`predictions`);
* the statistics of norms that are written out as separate nodes, up to the division.

Norms and Softmax that are one operator become fp16: engines compute their statistics in fp32 anyway, and a Cast next
to them would prevent fusion. For the same reason attention (scaled q, matmul, Softmax, matmul) has no Cast inside,
if its values allow it.

Other converters: onnxconverter-common and ONNX Runtime's converter exclude operators by name, measure nothing and clip
constants to the range. ModelOpt's AutoCast measures magnitudes, but decides each node separately: by default all 412
nodes of vitae_t become fp16, exponentials and epsilon included (and it pins its own onnx and onnxruntime).
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
import onnx_ir.passes.common as common_passes

from edgevit.errors import PrecisionError
from edgevit.export.graph import OnnxGraph
from edgevit.export.ir_helpers import constant, require_modules
from edgevit.export.macs import node_macs
from edgevit.export.quantization.calibration import LoadGraph, collect_ranges
from edgevit.export.quantization.dtypes import computes, is_float, retype, to_half
from edgevit.export.quantization.fp16_rules import FP16_MAX, FP16_MIN_NORMAL, Fp16Context, find_fp32_nodes
from edgevit.node_names import module_of_name
from edgevit.types import Feeds

_LAYERS = frozenset({"Attention", "Conv", "ConvTranspose", "Gemm", "MatMul"})  # the operators whose MACs are counted


@dataclass(frozen=True, slots=True, kw_only=True)
class KeptNode:
    """A node that stays in fp32. `name` is `<PyTorch module path>/<operator>`."""

    name: str
    operator: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightRange:
    """A weight with values that fp16 cannot hold exactly enough."""

    name: str
    values: int  # number of all values
    beyond: int  # number of finite values beyond 65504
    denormal: int  # number of nonzero values below fp16's smallest normal number, which lose bits
    lost: int  # number of these that become 0
    stays_fp32: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class PrecisionPlan:
    """The nodes that stay in fp32, and why."""

    nodes: int  # number of floating-point nodes, kept ones included
    kept: tuple[KeptNode, ...]
    weights: tuple[WeightRange, ...]  # only those with values that fp16 cannot hold
    casts: int  # number of Cast nodes in the converted graph
    fraction: float | None  # of the MACs, in fp16, 0 to 1; None if the graph has none

    @property
    def summary(self) -> str:
        return f"{len(self.kept)} of {self.nodes} nodes in fp32, {self.casts} Casts"

    @property
    def modules(self) -> tuple[str, ...]:
        """The PyTorch modules with a node in fp32."""
        return tuple(dict.fromkeys(module_of_name(node.name) for node in self.kept))

    def require_fp16(self) -> None:
        """Raise PrecisionError if all convolutions and matmuls stay in fp32."""
        if self.fraction == 0:
            first = next(node for node in self.kept if node.operator in _LAYERS)
            raise PrecisionError(
                f"no layer can run in fp16: {self.summary}, the first layer is {first.name} ({first.reason}); "
                "export with --precision fp32"
            )

    def notes(self) -> list[str]:
        """Return the notes for the export report: none for fp16."""
        return []

    def to_json(self) -> dict[str, Any]:
        fields = asdict(self)
        return {"summary": self.summary, "share": fields.pop("fraction"), **fields}


def to_fp16(
    graph: OnnxGraph,
    feeds: Sequence[Feeds],
    *,
    load: LoadGraph,
    keep_float: Sequence[str] = (),
) -> tuple[OnnxGraph, PrecisionPlan]:
    """Return the mixed-precision graph and its plan. All types have to be known: call `check` on the graph before.

    The inputs and outputs of the graph stay in fp32. `load` prepares a graph to run in fp32. `feeds` are calibration
    inputs: photos, since noise has other ranges. `keep_float` names PyTorch modules whose nodes stay in fp32. Raises
    UsageError without feeds or for an unknown module, ExportError if an output of the fp32 graph is not finite.
    """
    start = time.perf_counter()
    model = graph.model.clone()
    require_modules(model, keep_float)
    common_passes.NameFixPass()(model)  # a file from elsewhere may have nodes without names
    common_passes.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    ranges = collect_ranges(OnnxGraph(model), feeds, load=load)
    magnitudes = {name: found.magnitude for name, found in ranges.items()}
    kept = find_fp32_nodes(Fp16Context(model, magnitudes, keep_float))
    fraction = _fp16_fraction(model, kept.keys())
    weights = tuple(_weight_ranges(model, kept.keys()))
    nodes = sum(computes(node) for node in model.graph.all_nodes())
    retype(model, kept.keys())
    plan = PrecisionPlan(
        nodes=nodes,
        kept=tuple(
            KeptNode(name=str(node.name), operator=node.op_type, reason=reason) for node, reason in kept.items()
        ),
        weights=weights,
        casts=sum(node.op_type == "Cast" for node in model.graph.all_nodes()),
        fraction=fraction,
    )
    return graph.with_model("to_fp16", model, elapsed_s=time.perf_counter() - start, note=plan.summary), plan


def _fp16_fraction(model: ir.Model, kept: AbstractSet[ir.Node]) -> float | None:
    """Return the fraction of MACs in fp16; None without MACs."""
    macs = {node: node_macs(node) for node in model.graph}
    total = sum(macs.values())
    return 1 - sum(macs[node] for node in macs if node in kept) / total if total else None


def _weight_ranges(model: ir.Model, kept: AbstractSet[ir.Node]) -> Iterator[WeightRange]:
    for name, value in model.graph.initializers.items():
        array = constant(value) if is_float(value) else None
        if array is None:
            continue
        magnitude = np.abs(array[np.isfinite(array) & (array != 0)])
        beyond, denormal = int((magnitude > FP16_MAX).sum()), int((magnitude < FP16_MIN_NORMAL).sum())
        if beyond or denormal:
            yield WeightRange(
                name=name,
                values=array.size,
                beyond=beyond,
                denormal=denormal,
                lost=int((to_half(magnitude) == 0).sum()),
                stays_fp32=all(use.node in kept for use in value.uses()),
            )
