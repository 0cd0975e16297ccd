"""The house rules that no linter knows: imports point one way, and a device needs neither torch nor onnx."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import ON_CPU

ROOT = Path(__file__).parent.parent
# Lower floors first; a file may import from its own floor and below.
FLOORS = [
    {"errors", "tensors", "hashes"},
    {"images", "labelled", "checkpoints", "published"},
    {"models"},
    {"export"},
    {"runtimes"},
    {"latency"},
    {"engines", "accuracy", "device", "subject", "evidence", "progress", "verdict"},
    {"report", "plan_report", "lint_report"},
    {"recipe", "lower_precision", "made", "against_fp32", "publish", "pipeline"},
    {"cli", "__init__", "__main__"},
]
FLOOR = {name: height for height, names in enumerate(FLOORS) for name in names}
HEAVY = {"torch", "onnx", "onnx_ir", "onnxscript", "onnxsim", "safetensors"}
SOURCES = sorted(
    path for folder in ("edgevit", "export", "runtimes", "latency") for path in (ROOT / folder).rglob("*.py")
    if not (folder == "edgevit" and path.relative_to(ROOT).parts[1] in ("export", "runtimes", "latency"))
)  # fmt: skip


def place(path: Path) -> str:
    """The part of the house that a file belongs to."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return parts[1] if parts[0] == "edgevit" else parts[0]


def imports(path: Path, *, inside_functions: bool) -> Iterator[str]:
    """The modules that a file imports as it is imported, or at any time; not those for the type checker alone."""
    tree = ast.parse(path.read_text())
    nodes = ast.walk(tree) if inside_functions else iter(tree.body)
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_one_way(path: Path) -> None:
    for name in imports(path, inside_functions=False):
        parts = name.split(".")
        if parts[0] == "edgevit" and len(parts) > 1 and parts[1] in FLOOR:
            assert FLOOR[parts[1]] <= FLOOR[place(path)], f"{place(path)} imports {name}"


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_file_has_its_floor(path: Path) -> None:
    assert place(path) in FLOOR


def test_a_device_needs_neither_torch_nor_onnx(bundles_on_a_device: str) -> None:
    """verify, run and latency with every heavy package made unimportable."""
    done = subprocess.run(
        [sys.executable, "-c", bundles_on_a_device], capture_output=True, text=True, check=False, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr + done.stdout


@pytest.fixture
def bundles_on_a_device(made) -> str:  # type: ignore[no-untyped-def]  # noqa: ANN001
    paths = [str(made(fmt).path) for fmt in ON_CPU]
    photo = str(ROOT / "edgevit" / "data" / "photos" / "chelsea.png")
    return f"""
import sys
class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {HEAVY}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Missing())
from edgevit.cli import main
for path in {paths}:
    assert main(["verify", path]) == 0
    assert main(["run", path, {photo!r}]) == 0
    assert main(["latency", path, "--duration", "0.1"]) == 0
    assert main(["latency", path, "--against", "torch"]) == 3
assert main(["export", "shiftvit_t", "--fmt", "ort"]) == 3
assert main(["list"]) == 3
"""
