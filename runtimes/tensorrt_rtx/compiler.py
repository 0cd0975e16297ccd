"""Compile in a subprocess and collect the compiler's report.

The compiler needs no GPU. It keeps state between builds in one process, and some graphs crash it, so each build runs in
a subprocess of its own (subprocess_build.py). `compile_onnx` is the parent's side, `main` the subprocess's
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
from typing import Any, cast

from edgevit.errors import BuildError, MissingError
from edgevit.files import first_line
from edgevit.node_names import module_of_name
from edgevit.runtimes import subprocess_build
from edgevit.runtimes.base import BatchRange, OnPhase
from edgevit.runtimes.subprocess_build import Json
from edgevit.runtimes.tensorrt import api
from edgevit.runtimes.tensorrt.log import parsed_node
from edgevit.runtimes.tensorrt.record import ENGINE_FILE
from edgevit.runtimes.tensorrt.versions import TensorRtModule, TensorRtModuleRtx

MODULE = "tensorrt_rtx"
INSTALL = "install it (Linux, x86): pip install 'edgevit[trt-rtx]'"
TIMEOUT_S = 1800.0  # ShiftViT-B takes 10 s on one core

# Patterns in NVIDIA's messages, and what the user can do.
_REMEDIES = (
    ("same input types|must have same type", "types are not converted implicitly: add a Cast in front of this node"),
    ("HW-specific", "set --sm to compute capabilities with this type (fp8: 89 and 120), or use another --precision"),
    ("Turing", "remove 75 from --sm, or use --precision fp16"),
    ("ONNX model|in the file", "export it again"),
    ("does not compile for compute capability", "use another --sm, or install another version"),
    ("bad_alloc|out of memory|OutOfMemory", "free some memory, or build for fewer compute capabilities at once"),
    ("only the batch may be dynamic", "export with fixed sizes for the other dimensions"),
    ("the graph has a fixed batch", "or remove the range"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Compiled:
    """A compiled engine and the compiler's report.

    `layers` is the final kernel list as printed. `operators` maps node names to ONNX operators. `misread` names the
    nodes that the parser interprets differently from ONNX. `dynamic_batch` tells whether the file's batch is dynamic.
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
    """Compile the ONNX file `model` for GPUs of some compute capabilities; None is the compiler's portable default.

    A dynamic batch becomes a range, or is fixed if `batches` has one size only. Raises MissingError if TensorRT-RTX is
    not installed, BuildError if it rejects the graph, crashes, is killed, or takes too long.
    """
    if importlib.util.find_spec(MODULE) is None:
        raise MissingError(f"TensorRT-RTX is not installed here; {INSTALL}")
    if not model.is_file():
        raise BuildError(f"no ONNX file at {model}; create one: edgevit export MODEL --fmt onnx")
    start = time.perf_counter()
    request = {
        "model": str(model.resolve()),
        "compute_capabilities": compute_capabilities,
        "batches": [batches.minimum, batches.optimum, batches.maximum],
        "workspace_mb": workspace_mb,
    }
    with tempfile.TemporaryDirectory(prefix="edgevit-rtx-") as name:
        folder = Path(name)
        report = subprocess_build.run(_job(model), request, folder, timeout_s=timeout_s)
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


# The parent's side


def _job(model: Path) -> subprocess_build.Job:
    return subprocess_build.Job(
        module="edgevit.runtimes.tensorrt_rtx.compiler",
        builder="TensorRT-RTX",
        model=model.name,
        when_killed="free some memory, or build for fewer compute capabilities at once",
        when_crashed="some graphs crash TensorRT-RTX: try another --opset or another version of tensorrt-rtx-cu13",
        when_broken=f"reinstall tensorrt-rtx-cu13: {INSTALL}",
        when_late="build for fewer compute capabilities at once, or use a smaller model",
    )


def _refusal(model: Path, errors: Sequence[Json]) -> str:
    """Return the first error in one line: the file, the node, its PyTorch module, the reason, the remedy."""
    error = errors[0]
    node, reason = error["node"], _reason(error["reason"])
    place = ""
    if node:
        module = module_of_name(node)
        place = f", node {node} ({error['operator']}" + (f", PyTorch module {module})" if module else ")")
    return f"TensorRT-RTX rejects {model.name}{place}: {reason.removeprefix(f'{node}: ')}; {_remedy(reason)}"


def _reason(text: str) -> str:
    """Return NVIDIA's message without its file names and without the error about the GPU, which is not needed."""
    lines = [line for line in text.splitlines() if "cudaError 35" not in line and not line.startswith("Invalid Node")]
    joined = " ".join(line.strip() for line in lines)
    joined = re.sub(r"\.? In \w+ at /\S+?:\d+\)?", "", joined)
    joined = re.sub(r"^(\w+::\w+: )?Error Code \d+: (API Usage Error|Myelin|Internal Error) ?\(?", "", joined)
    joined = re.sub(r"^\[[^\]]*\] ", "", joined)
    joined = re.sub(r"Assertion failed: .*?: ", "", joined, count=1).strip(" .)")
    joined = re.sub(r'^[^"]* && "([^"]*)"$', r"\1", joined).strip(" .")  # the text of an assertion
    if joined in ("", "false") or re.search(r"Plugin not found|not found in plugin registry", joined):
        return "this operator is not supported"
    return joined


def _remedy(reason: str) -> str:
    for pattern, remedy in _REMEDIES:
        if re.search(pattern, reason):
            return remedy
    return "rewrite that part of the module, or use another --fmt"


# The subprocess's side


def main(arguments: Sequence[str]) -> int:
    """Serve the request in the folder that `arguments` name."""
    return subprocess_build.serve(_work, arguments)


def _work(request: Json, folder: Path, _on_phase: OnPhase) -> Json:
    try:
        trt = cast(TensorRtModuleRtx, importlib.import_module(MODULE))
    except ImportError as error:  # installed, but a library it needs is missing
        raise MissingError(f"cannot import TensorRT-RTX ({first_line(error)}); {INSTALL}") from error
    return _build(trt, request, folder / ENGINE_FILE)


def _build(trt: TensorRtModuleRtx, request: Json, target: Path) -> Json:
    log = make_logger(trt)
    builder = trt.Builder(log)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, log)
    if not parser.parse_from_file(request["model"]):
        parsing = log.operators[-1] if log.operators else ("", "")
        errors = (cast(api.ParserError10, parser.get_error(index)) for index in range(parser.num_errors))
        return {"errors": [_parser_error(error, parsing) for error in errors]}
    if not network.num_outputs:  # the parser reads any file as an empty model
        return _error("the file is not an ONNX model, or it is damaged")
    config = builder.create_builder_config()
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    config.clear_flag(trt.BuilderFlag.TF32)  # TF32 multiplies fp32 with a 10-bit mantissa
    if request["workspace_mb"] is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, request["workspace_mb"] << 20)
    dynamic = any(-1 in tuple(network.get_input(index).shape) for index in range(network.num_inputs))
    problem = _set_targets(trt, cast(api.IBuilderConfigRtx, config), request["compute_capabilities"]) or _set_batches(
        builder, network, config, request["batches"]
    )
    if problem:
        return _error(problem)
    engine = builder.build_serialized_network(network, config)
    if engine is None:
        reason = log.errors[-1] if log.errors else "the compiler returned no engine and no reason"
        named = [(node, operator) for node, operator in log.operators if node and node in reason]
        return _error(reason, *max(named, key=lambda pair: len(pair[0]), default=("", "")))
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


def make_logger(trt: TensorRtModule) -> Any:
    """Return a logger that keeps errors, the kernel list and the operators of nodes, and prints nothing.

    TensorRT uses the first logger of a process only.
    """

    class Log(trt.ILogger):  # type: ignore[misc,name-defined]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.errors: list[str] = []
            self.operators: list[tuple[str, str]] = []
            self.layers = ""

        def log(self, severity: api.Enumerator, message: str) -> None:
            if severity in (trt.ILogger.ERROR, trt.ILogger.INTERNAL_ERROR):
                self.errors.append(message)
            elif message.startswith("Layers:"):
                self.layers = message
            elif (parsed := parsed_node(message)) is not None:
                self.operators.append(parsed)

    return Log()


def _parser_error(error: api.ParserError10, parsing: tuple[str, str]) -> Json:
    """Return an error of the parser; it may not name its node, which then is the one that was being parsed."""
    node, operator = (error.node_name(), error.node_operator()) if error.node_name() else parsing
    return {"reason": error.desc(), "node": node, "operator": operator}


def _error(reason: str, node: str = "", operator: str = "") -> Json:
    return {"errors": [{"reason": reason, "node": node, "operator": operator}]}


def _set_targets(trt: TensorRtModuleRtx, config: api.IBuilderConfigRtx, capabilities: Sequence[int] | None) -> str:
    """Set the GPUs to compile for. Return the reason if that fails, else ""."""
    if capabilities is None:
        return ""
    config.num_compute_capabilities = len(capabilities)
    for index, capability in enumerate(capabilities):
        target = getattr(trt.ComputeCapability, f"SM{capability}", None)
        if target is None or not config.set_compute_capability(target, index):
            return f"tensorrt-rtx-cu13 {trt.__version__} does not compile for compute capability {capability}"
    return ""


def _set_batches(
    builder: api.Builder, network: api.INetworkDefinition, config: api.IBuilderConfig, batches: Sequence[int]
) -> str:
    """Set the range of a dynamic batch, or fix it. Return the reason if that fails, else ""."""
    profile, ranged = builder.create_optimization_profile(), False
    for tensor in (network.get_input(index) for index in range(network.num_inputs)):
        shape = tuple(tensor.shape)
        if -1 in shape[1:]:
            return f"the input {tensor.name} has the shape {list(shape)}, and only the batch may be dynamic"
        if -1 not in shape:
            continue
        if batches[0] == batches[2]:
            tensor.shape = (batches[0], *shape[1:])
            continue
        profile.set_shape(tensor.name, *((batch, *shape[1:]) for batch in batches))
        ranged = True
    if batches[0] != batches[2] and not ranged:
        return "the graph has a fixed batch, and a range was requested: export with --dynamic-batch"
    if ranged and config.add_optimization_profile(profile) < 0:
        return f"the batches {batches} are not a valid optimization profile"
    return ""


def _per_channel_norms(trt: TensorRtModuleRtx, network: api.INetworkDefinition) -> Iterable[str]:
    """Yield the names of normalization layers over several channels with one mean per channel.

    That is right for InstanceNormalization. The parser also makes such a layer of a GroupNormalization with one group:
    it leaves the channels out of the axes, without a warning (NVIDIA/TensorRT issue 4756).
    """
    for layer in (network.get_layer(index) for index in range(network.num_layers)):
        if layer.type == trt.LayerType.NORMALIZATION:
            layer.__class__ = trt.INormalizationLayer  # the cast to a subclass in TensorRT's Python API
            norm = cast(api.INormalizationLayer, layer)
            over_channels, source = norm.axes & 0b10, norm.get_input(0)
            if norm.num_groups == 1 and not over_channels and source is not None and source.shape[1] != 1:
                yield layer.name


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
