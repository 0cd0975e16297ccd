"""TensorRT-RTX's compiler in a child process: an ONNX file in, an engine and the compiler's own account of it out.

The compiler needs no GPU. It keeps state between builds of one process, and some graphs crash it: so each build has a
process of its own (child.py). This file is both sides: `compile_onnx` is the parent's, `main` the child's
(`python -m edgevit.runtimes.tensorrt_rtx.compiler FOLDER`).
"""

from __future__ import annotations

import importlib.util
import re
import sys
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgevit.errors import BuildError, MissingError
from edgevit.runtimes import subprocess_build as child
from edgevit.runtimes.base import BatchRange, OnPhase
from edgevit.runtimes.subprocess_build import Json
from edgevit.runtimes.tensorrt.record import ENGINE_FILE

MODULE = "tensorrt_rtx"
INSTALL = "install it (Linux, x86): pip install 'edgevit[trt-rtx]'"
TIMEOUT_S = 1800.0  # ShiftViT-B takes 10 s on one core

# What NVIDIA's words mean for the user.
_REMEDIES = (
    ("same input types|must have same type", "every tensor has its type for good: add the Cast that is missing here"),
    ("HW-specific", "name compute capabilities that have this type (fp8: 89 and 120), or ask for another --precision"),
    ("Turing", "leave 75 out of --sm, or ask for --precision fp16"),
    ("ONNX model|in the file", "export it again"),
    ("does not compile for compute capability", "name another, or install another version"),
    ("bad_alloc|out of memory|OutOfMemory", "free some memory, or build for fewer compute capabilities at once"),
    ("only the batch may be dynamic", "give every other dimension a number"),
    ("a range was asked for", "or ask for the one batch that it has"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Compiled:
    """What a build left, and what the compiler said about it.

    `layers` is its final kernel list as it prints it. `operators` has the ONNX operator of each node by name.
    `misread` names the nodes that the parser gave another meaning than ONNX does. `dynamic_batch`: the file leaves the
    batch open.
    """

    engine: bytes
    layers: str
    operators: Mapping[str, str]
    misread: tuple[str, ...]
    dynamic_batch: bool
    version: str
    build_s: float


def compile_onnx(
    model: Path,
    *,
    compute_capabilities: Sequence[int] | None,
    batches: BatchRange,
    workspace_mb: int | None = None,
    timeout_s: float = TIMEOUT_S,
) -> Compiled:
    """The engine of the ONNX file `model` for GPUs of the named compute capabilities; None: the portable default.

    A dynamic batch becomes a range, or is pinned where `batches` holds one number only. Raises MissingError where
    TensorRT-RTX is not installed, BuildError where it refuses the graph, crashes, is killed, or takes too long.
    """
    if importlib.util.find_spec(MODULE) is None:
        raise MissingError(f"TensorRT-RTX is not installed here; {INSTALL}")
    if not model.is_file():
        raise BuildError(f"no ONNX file at {model}; make one: edgevit export MODEL --fmt onnx")
    start = time.perf_counter()
    request = {
        "model": str(model.resolve()),
        "compute_capabilities": compute_capabilities,
        "batches": [batches.minimum, batches.optimum, batches.maximum],
        "workspace_mb": workspace_mb,
    }
    with tempfile.TemporaryDirectory(prefix="edgevit-rtx-") as name:
        folder = Path(name)
        report = child.run(_job(model), request, folder, timeout_s=timeout_s)
        if report["errors"]:
            raise BuildError(_refusal(model, report["errors"]))
        engine = (folder / ENGINE_FILE).read_bytes()
    return Compiled(
        engine=engine,
        layers=report["layers"],
        operators=report["operators"],
        misread=tuple(report["misread"]),
        dynamic_batch=report["dynamic_batch"],
        version=report["version"],
        build_s=time.perf_counter() - start,
    )


def module_of(node: str) -> str:
    """The PyTorch module in a node's name `<module path>/<operator>`; "" where it has none."""
    return node.rpartition("/")[0]


# The parent's side


def _job(model: Path) -> child.Job:
    return child.Job(
        module="edgevit.runtimes.tensorrt_rtx.compiler",
        builder="TensorRT-RTX",
        model=model.name,
        when_killed="free some memory, or build for fewer compute capabilities at once",
        when_crashed="a graph can do that to TensorRT-RTX: try another --opset or another version of tensorrt-rtx-cu13",
        when_broken=f"see that tensorrt-rtx-cu13 is whole: {INSTALL}",
        when_late="build for fewer compute capabilities at once, or a smaller model",
    )


def _refusal(model: Path, errors: Sequence[Json]) -> str:
    """The first error in one line: the file, the node, its PyTorch module, the reason, the remedy."""
    error = errors[0]
    node, reason = error["node"], _reason(error["reason"])
    where = ""
    if node:
        module = module_of(node)
        where = f", the node {node} ({error['operator']}" + (f", PyTorch module {module})" if module else ")")
    return f"TensorRT-RTX refuses {model.name}{where}: {reason.removeprefix(f'{node}: ')}; {_remedy(reason)}"


def _reason(text: str) -> str:
    """NVIDIA's own words without its file names, and without the complaint about the GPU that is not needed."""
    lines = [line for line in text.splitlines() if "cudaError 35" not in line and not line.startswith("Invalid Node")]
    joined = " ".join(line.strip() for line in lines)
    joined = re.sub(r"\.? In \w+ at /\S+?:\d+\)?", "", joined)
    joined = re.sub(r"^(\w+::\w+: )?Error Code \d+: (API Usage Error|Myelin|Internal Error) ?\(?", "", joined)
    joined = re.sub(r"^\[[^\]]*\] ", "", joined)
    joined = re.sub(r"Assertion failed: .*?: ", "", joined, count=1).strip(" .)")
    joined = re.sub(r'^[^"]* && "([^"]*)"$', r"\1", joined).strip(" .")  # an assertion's own words
    if joined in ("", "false") or re.search(r"Plugin not found|not found in plugin registry", joined):
        return "this operator is not supported"
    return joined


def _remedy(reason: str) -> str:
    for pattern, remedy in _REMEDIES:
        if re.search(pattern, reason):
            return remedy
    return "rewrite that part of the module, or use another runtime"


# The child's side


def main(arguments: Sequence[str]) -> int:
    """Builds what the folder's request asks for and writes the engine and a report beside it."""
    return child.serve(_work, arguments)


def _work(request: Json, folder: Path, _on_phase: OnPhase) -> Json:
    try:
        trt = importlib.import_module(MODULE)
    except ImportError as error:  # its files are there, and what they need is not
        raise MissingError(f"TensorRT-RTX does not load here ({error}); {INSTALL}") from error
    return _build(trt, request, folder / ENGINE_FILE)


def _build(trt: Any, request: Json, target: Path) -> Json:
    log = make_logger(trt, verbose=True)
    builder = trt.Builder(log)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, log)
    if not parser.parse_from_file(request["model"]):
        return {"errors": [_parser_error(parser.get_error(index)) for index in range(parser.num_errors)]}
    if not network.num_outputs:  # the parser takes any file for a model with nothing in it
        return _failed("the file is not an ONNX model, or it is damaged")
    config = builder.create_builder_config()
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    config.clear_flag(trt.BuilderFlag.TF32)  # fp32 means fp32: TF32 keeps 10 bits of 23
    if request["workspace_mb"] is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, request["workspace_mb"] << 20)
    dynamic = any(-1 in tuple(network.get_input(index).shape) for index in range(network.num_inputs))
    problem = _set_targets(trt, config, request["compute_capabilities"]) or _set_batches(
        builder, network, config, request["batches"]
    )
    if problem:
        return _failed(problem)
    engine = builder.build_serialized_network(network, config)
    if engine is None:
        reason = log.errors[-1] if log.errors else "the compiler gave no engine and no reason"
        named = [(node, operator) for node, operator in log.operators if node and node in reason]
        return _failed(reason, *max(named, key=lambda pair: len(pair[0]), default=("", "")))
    with target.open("wb") as file:
        file.write(engine)
    operators = dict(log.operators)
    return {
        "errors": [],
        "layers": log.layers,
        "operators": operators,
        "misread": [node for node in _per_channel_norms(trt, network) if operators.get(node) == "GroupNormalization"],
        "dynamic_batch": dynamic,
        "version": trt.__version__,
    }


def make_logger(trt: Any, *, verbose: bool) -> Any:
    """A TensorRT logger that keeps errors, the kernel list and the operators of nodes, and prints nothing.

    The first logger of a process is the only one that TensorRT uses.
    """

    class Log(trt.ILogger):  # type: ignore[misc]  # the package has no types
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.errors: list[str] = []
            self.operators: list[tuple[str, str]] = []
            self.layers = ""

        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.ERROR, trt.ILogger.INTERNAL_ERROR):
                self.errors.append(message)
            elif not verbose:
                return
            elif message.startswith("Layers:"):
                self.layers = message
            elif parsed := re.fullmatch(r"Parsing node: (.*) \[(\w+)\]", message):
                self.operators.append((parsed[1], parsed[2]))

    return Log()


def _parser_error(error: Any) -> Json:
    return {"reason": error.desc(), "node": error.node_name(), "operator": error.node_operator()}


def _failed(reason: str, node: str = "", operator: str = "") -> Json:
    return {"errors": [{"reason": reason, "node": node, "operator": operator}]}


def _set_targets(trt: Any, config: Any, capabilities: Sequence[int] | None) -> str:
    """Names the GPUs to compile for; the reason where that cannot be done, else ""."""
    if capabilities is None:
        return ""
    config.num_compute_capabilities = len(capabilities)
    for index, capability in enumerate(capabilities):
        target = getattr(trt.ComputeCapability, f"SM{capability}", None)
        if target is None or not config.set_compute_capability(target, index):
            return f"tensorrt-rtx-cu13 {trt.__version__} does not compile for compute capability {capability}"
    return ""


def _set_batches(builder: Any, network: Any, config: Any, batches: Sequence[int]) -> str:
    """Gives the dynamic batch its range, or pins it; the reason where that cannot be done, else ""."""
    profile, ranged = builder.create_optimization_profile(), False
    for tensor in (network.get_input(index) for index in range(network.num_inputs)):
        shape = tuple(tensor.shape)
        if -1 in shape[1:]:
            return f"the input {tensor.name} has the shape {list(shape)} in the file, and only the batch may be dynamic"
        if -1 not in shape:
            continue
        if batches[0] == batches[2]:
            tensor.shape = (batches[0], *shape[1:])
            continue
        profile.set_shape(tensor.name, *((batch, *shape[1:]) for batch in batches))
        ranged = True
    if batches[0] != batches[2] and not ranged:
        return "the batch is fixed in the file, and a range was asked for: export with --dynamic-batch"
    if ranged and config.add_optimization_profile(profile) < 0:
        return f"the batches {batches} make no optimization profile"
    return ""


def _per_channel_norms(trt: Any, network: Any) -> Iterable[str]:
    """The names of normalisations of several channels that keep one mean a channel.

    That is right for an InstanceNormalization. The parser makes one of each GroupNormalization with a single group
    too, by leaving the channels out of the axes (NVIDIA/TensorRT issue 4756), and says nothing.
    """
    for layer in (network.get_layer(index) for index in range(network.num_layers)):
        if layer.type == trt.LayerType.NORMALIZATION:
            layer.__class__ = trt.INormalizationLayer  # how TensorRT's Python casts a layer to its kind
            over_channels = layer.axes & 0b10
            if layer.num_groups == 1 and not over_channels and layer.get_input(0).shape[1] != 1:
                yield layer.name


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
