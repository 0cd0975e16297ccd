"""fp16: a typed graph in which each operator has one precision and Casts stand at the borders between them.

TensorRT 11 and TensorRT-RTX know no precision flag: what runs in fp16 is what the graph types as fp16, and the same
graph serves TensorRT 10 with STRONGLY_TYPED. So this decides node by node, by what each tensor reaches on calibration
images and by what each node is for. In fp32 stay

* what comes near fp16's largest number, 65504, or holds nothing but numbers below its smallest normal one, 6.1e-5,
  and the readers of constants that fp16 cannot hold, an epsilon of 1e-8 above all;
* exponentials, the sums over them and the division by those: the performer's phi spans more decades than fp16 has;
* the statistics of norms that are written out, down to the division.

Norms and Softmax that stand in the graph as one operator are typed fp16: engines keep the statistics inside them in
fp32 by themselves, and a Cast at their side would part them from the kernel that they fuse with. Attention (scale on q,
product, Softmax, product) has no Cast within for the same reason, as long as its numbers allow it.

Why not a library: onnxconverter-common and ONNX Runtime's converter, its descendant, block operators by name, measure
nothing and squeeze constants into range. ModelOpt's AutoCast measures magnitudes and looks at each node by itself: by
default all 412 nodes of vitae_t become fp16, exponentials and epsilon too (and it pins its own onnx, onnxruntime).
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

from edgevit.export.graph import OnnxGraph
from edgevit.export.ir_helpers import constant
from edgevit.export.quantization.calibration import Load, measure_reach
from edgevit.export.quantization.dtypes import (
    InterfaceType,
    computes,
    is_float,
    retype,
    to_half,
)
from edgevit.export.quantization.fp16_rules import LARGEST, SMALLEST_NORMAL, Scene, decide
from edgevit.types import Feeds

__all__ = ["KeptNode", "PrecisionPlan", "WeightRange", "to_fp16"]


@dataclass(frozen=True, slots=True, kw_only=True)
class KeptNode:
    """A node that stays in fp32. Its name is `<PyTorch module path>/<operator>`."""

    name: str
    operator: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightRange:
    """A weight of which fp16 cannot hold all values as they are."""

    name: str
    values: int
    beyond: int  # finite values beyond 65504
    denormal: int  # values below the smallest normal number, which lose bits
    lost: int  # of these, the values that become 0
    stays_fp32: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class PrecisionPlan:
    """What of a graph is not fp16, and why."""

    nodes: int  # that compute with floating-point numbers, kept ones included
    kept: tuple[KeptNode, ...]
    weights: tuple[WeightRange, ...]  # only those that fp16 cannot hold as they are
    casts: int  # in the typed graph

    @property
    def summary(self) -> str:
        return f"{len(self.kept)} of {self.nodes} nodes in fp32, {self.casts} Casts"

    @property
    def modules(self) -> tuple[str, ...]:
        """The PyTorch modules with a node in fp32."""
        return tuple(dict.fromkeys(node.name.rpartition("/")[0] for node in self.kept))

    @property
    def fraction(self) -> None:
        """The fraction of MACs in fp16 is not known: a plan counts nodes."""
        return None

    def notes(self) -> list[str]:
        """Return what the export report says about the conversion: nothing for fp16."""
        return []

    def to_json(self) -> dict[str, Any]:
        return {"summary": self.summary, **asdict(self)}


def to_fp16(
    graph: OnnxGraph, feeds: Sequence[Feeds], *, load: Load, io: InterfaceType = "fp32"
) -> tuple[OnnxGraph, PrecisionPlan]:
    """The graph typed for fp16, and the plan it was typed by. `graph` has passed `check`, so that every type is known.

    `load` makes a graph ready to run in fp32; `feeds` are calibration inputs, photos rather than noise. Inputs and
    outputs stay fp32 unless `io` says otherwise. Raises UsageError without feeds, ExportError where the graph's answer
    to one of them is not finite.
    """
    start = time.perf_counter()
    model = graph.model.clone()
    common_passes.NameFixPass()(model)  # a file from elsewhere may have nodes without names
    common_passes.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    reach = measure_reach(OnnxGraph(model), feeds, load=load)
    kept = decide(Scene(model, {name: found.magnitude for name, found in reach.items()}, io))
    weights = tuple(_weight_ranges(model, kept.keys()))
    nodes = sum(computes(node) for node in model.graph.all_nodes())
    retype(model, kept.keys(), io)
    plan = PrecisionPlan(
        nodes=nodes,
        kept=tuple(KeptNode(name=str(node.name), operator=node.op_type, reason=why) for node, why in kept.items()),
        weights=weights,
        casts=sum(node.op_type == "Cast" for node in model.graph.all_nodes()),
    )
    return graph.with_model("to_fp16", model, elapsed_s=time.perf_counter() - start, note=plan.summary), plan


def _weight_ranges(model: ir.Model, kept: AbstractSet[ir.Node]) -> Iterator[WeightRange]:
    for name, value in model.graph.initializers.items():
        array = constant(value) if is_float(value) else None
        if array is None:
            continue
        magnitude = np.abs(array[np.isfinite(array) & (array != 0)])
        beyond, denormal = int((magnitude > LARGEST).sum()), int((magnitude < SMALLEST_NORMAL).sum())
        if beyond or denormal:
            yield WeightRange(
                name=name,
                values=array.size,
                beyond=beyond,
                denormal=denormal,
                lost=int((to_half(magnitude) == 0).sum()),
                stays_fp32=all(use.node in kept for use in value.uses()),
            )
