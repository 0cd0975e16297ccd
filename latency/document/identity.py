"""Identity of a machine and of an engine as rows of text. A quantity that the system does not report has no row."""

from __future__ import annotations

import re

from edgevit.cpu import VNNI, int8_instructions
from edgevit.latency.candidate import PYTORCH_MODEL
from edgevit.latency.document.content import Entry, Session
from edgevit.latency.document.figures import figure
from edgevit.latency.environment import Environment
from edgevit.runtimes.base import CUDA_GRAPH, GPU, GPU_MULTIPROCESSORS, GPU_UUID, THREADS_REQUESTED

Rows = tuple[tuple[str, str], ...]

_X86 = ("x86_64", "amd64", "i686")
# Details of a report that have rows of their own here.
_CONDITIONS = {
    "cpu_wait": "waits for the GPU by",
    "host_memory": "host memory",
    CUDA_GRAPH: "CUDA graph",
    THREADS_REQUESTED: "threads requested",
    PYTORCH_MODEL: "PyTorch model",
}


def machine_rows(session: Session) -> Rows:
    """Return the identity of the machine of a run."""
    environment = session.first.environment
    gpu = next((entry.report.details for entry in session.entries if entry.report.uses_gpu), {})
    return _known(
        ("board", environment.board),
        ("processor", environment.cpu),
        ("architecture", environment.architecture),
        ("instructions", ", ".join(environment.isa)),
        ("int8 products", _int8(environment)),
        ("cores", _cores(environment)),
        ("GPU", gpu.get(GPU)),
        ("GPU multiprocessors (SM)", gpu.get(GPU_MULTIPROCESSORS)),
        ("GPU UUID", gpu.get(GPU_UUID)),
        ("NVIDIA GPUs and driver", "; ".join(dict.fromkeys(environment.gpus))),
        ("RAM", f"{figure(environment.memory_total_mb / 1024)} GiB" if environment.memory_total_mb else None),
        ("L4T", _l4t(environment.jetson)),
        ("JetPack", environment.jetpack),
        ("system", environment.os),
        ("kernel", environment.kernel),
        ("container", environment.container),
        ("Python", environment.python),
        ("packages", ", ".join(f"{name} {version}" for name, version in environment.packages.items())),
    )


def setting_rows(session: Session) -> Rows:
    """Return the settings that decide a latency, and whether the clocks are locked."""
    environment = session.first.environment
    return (
        *((setting.name, f"{setting.state}: {setting.evidence}") for setting in session.settings),
        *_known(("power mode", environment.power_mode)),
    )


def engine_rows(entry: Entry) -> Rows:
    """Return the identity of an engine: its bundle, its hashes, and the precision that was read back."""
    report, product = entry.report, entry.product
    details = report.details
    shapes = "; ".join(f"{name} {'x'.join(map(str, shape))}" for name, shape in report.input_shapes.items())
    rows = _known(
        ("precision read back", entry.precision),
        ("engine SHA-256", details.get("engine_sha256")),
        ("ONNX SHA-256", details.get("onnx_sha256")),
        ("inputs", shapes),
        *((title, details.get(name)) for name, title in _CONDITIONS.items()),
    )
    if product is None:
        is_bundle = "engine_sha256" in details
        return (("bundle", "not given to this report" if is_bundle else "none: measured for comparison"), *rows)
    return (
        *_known(
            ("bundle", product.name),
            ("model", product.model),
            ("weights", product.weights),
            ("runtime at the build", product.runtime),
            ("requested precision", product.requested),
            ("layers", product.executed),
        ),
        *rows,
        *_known(("edgevit at the export", product.edgevit_version)),
    )


def _known(*rows: tuple[str, str | None]) -> Rows:
    return tuple((name, value) for name, value in rows if value)


def _int8(environment: Environment) -> str | None:
    instructions = int8_instructions(environment.isa)
    if instructions == "unknown":
        return None
    if environment.architecture.lower() not in _X86:
        return instructions
    return f"{instructions} ({'VNNI' if any(name in environment.isa for name in VNNI) else 'no VNNI'})"


def _cores(environment: Environment) -> str | None:
    if environment.logical_cores is None:
        return None
    physical = "" if environment.physical_cores is None else f" ({environment.physical_cores} physical)"
    usable = "" if environment.affinity is None else f", {len(environment.affinity)} usable"
    limit = "" if environment.cpu_limit is None else f", limited to the time of {environment.cpu_limit:g}"
    return f"{environment.logical_cores}{physical}{usable}{limit}"


def _l4t(release: str | None) -> str | None:
    """Return the release in short, such as "36.4.3"; as the system words it if that is not understood."""
    found = re.search(r"R(\d+) .*REVISION: ([\d.]+)", release or "")
    return f"{found[1]}.{found[2]}" if found else release
