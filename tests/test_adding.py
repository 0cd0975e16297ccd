"""A model, a runtime, a pass and a command are added to a copy of the sources as docs/adding.md describes.

Each is one new file and one entry; the copy then lists, exports and runs them with no other change.
"""

from __future__ import annotations

import filecmp
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
FOLDERS = ("edgevit", "export", "runtimes", "latency")

MODEL = '''
"""A toy model."""

from torch import nn

from edgevit.images import Preprocessing
from edgevit.models.spec import ModelSpec, PaperFigures


def toy(num_classes: int = 4, width: int = 8) -> nn.Module:
    conv, head = nn.Conv2d(3, width, 4, stride=4), nn.Linear(width, num_classes)
    return nn.Sequential(conv, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), head)


SPECS = (
    ModelSpec(
        name="toynet",
        family="toys",
        factory=toy,
        num_classes=4,
        preprocessing=Preprocessing(input_size=(3, 32, 32)),
        paper=PaperFigures(source="none"),
    ),
)
'''

RUNTIME = '''
"""A toy runtime, which computes with ONNX Runtime."""

import shutil

from edgevit.runtimes.base import Artifact, Engine, Runtime
from edgevit.runtimes.precision import ExecutedPrecision
from edgevit.types import TensorSpec


class ToyRuntime(Runtime):
    fmt = "toyrt"
    module = "onnxruntime"

    def build(self, model, folder, options):
        self.require_precision(options.precision)
        return Artifact(fmt=self.fmt, files=(shutil.copyfile(model, folder / "model.toy"),), build_s=0.0)

    def open(self, artifact, options):
        return ToyEngine(self.load(), artifact)


def spec(port):
    return TensorSpec(port.name, "float32", tuple(port.shape))


class ToyEngine(Engine):
    fmt = "toyrt"

    def __init__(self, ort, artifact):
        self._session = ort.InferenceSession(artifact.read_bytes(), providers=["CPUExecutionProvider"])
        self.inputs = tuple(map(spec, self._session.get_inputs()))
        self.outputs = tuple(map(spec, self._session.get_outputs()))

    def _infer(self, feeds):
        names = [spec.name for spec in self.outputs]
        return dict(zip(names, self._session.run(names, dict(feeds)), strict=True))

    def executed_precision(self):
        return ExecutedPrecision()
'''

FORMAT = """
    Format(
        name="toyrt",
        title="Toy Runtime",
        aliases=("toy",),
        runtime="edgevit.runtimes.toyrt:ToyRuntime",
        packages=("toy-runtime", "onnxruntime"),
        extra="toyrt",
        precisions=("fp32", "int8"),
        opset=20,
        group_norm="instance",
        int8=Int8Scheme(activations="uint8"),
    ),
"""

PASS = '''
"""Name the graph."""


def name_graph(model):
    model.graph.name = "toy_graph"
'''

COMMAND = '''
"""`edgevit hello`: greet."""

from edgevit.cli.parser import Command


def add_arguments(parser):
    parser.add_argument("name")


def run(arguments, console):
    print("hello", arguments.name)
    return 0


COMMAND = Command(name="hello", help="greet", add_arguments=add_arguments, run=run)
'''

NEW_FILES = {
    "edgevit/models/toynet.py": MODEL,
    "runtimes/toyrt.py": RUNTIME,
    "export/passes/name_graph.py": PASS,
    "edgevit/cli/hello.py": COMMAND,
}
# One entry each; a pass is imported above the tuple that it is added to.
ENTRIES = {
    "edgevit/models/registry.py": [("ARCHITECTURES = (\n", '    "toynet",\n')],
    "edgevit/formats.py": [("FORMATS: tuple[Format, ...] = (\n", FORMAT)],
    "export/passes/__init__.py": [
        ("import onnx_ir as ir\n", "from edgevit.export.passes.name_graph import name_graph\n"),
        ("PASSES: tuple[Pass, ...] = (\n", "    name_graph,\n"),
    ],
    "edgevit/cli/main.py": [("COMMANDS = (\n", '    "hello",\n')],
}


@pytest.fixture(scope="module")
def extended(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the sources with the additions."""
    copy = tmp_path_factory.mktemp("extended")
    for folder in FOLDERS:
        shutil.copytree(
            ROOT / folder, copy / folder, symlinks=True, ignore=shutil.ignore_patterns("__pycache__", "data")
        )
    (copy / "edgevit" / "data").symlink_to(ROOT / "edgevit" / "data")
    for name, text in NEW_FILES.items():
        (copy / name).write_text(text.lstrip())
    for name, edits in ENTRIES.items():
        text = (copy / name).read_text()
        for anchor, addition in edits:
            assert text.count(anchor) == 1, f"{name} has no place for {addition}"
            text = text.replace(anchor, anchor + addition)
        (copy / name).write_text(text)
    return copy


def edgevit(folder: Path, *words: str | Path) -> str:
    """Run a command line with the copy and return its standard output."""
    done = subprocess.run(
        [sys.executable, "-m", "edgevit", *map(str, words)],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(folder)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_each_addition_is_one_file_and_one_entry(extended: Path) -> None:
    changed, new = set(), set()
    for folder in FOLDERS:
        for file in (extended / folder).rglob("*.py"):
            name = file.relative_to(extended).as_posix()
            if not (ROOT / name).exists():
                new.add(name)
            elif not filecmp.cmp(file, ROOT / name, shallow=False):
                changed.add(name)
    assert new == set(NEW_FILES)
    assert changed == set(ENTRIES)


def test_the_command_runs(extended: Path) -> None:
    assert edgevit(extended, "hello", "world") == "hello world\n"


def test_the_model_is_listed(extended: Path) -> None:
    listed: dict[str, Any] = json.loads(edgevit(extended, "list", "--family", "toys", "--json", "-"))
    assert [model["name"] for model in listed["models"]] == ["toynet"]


def test_doctor_and_environments_know_the_runtime(extended: Path) -> None:
    report: dict[str, Any] = json.loads(edgevit(extended, "doctor", "--json", "-"))
    assert report["runtimes"]["toyrt"] == report["runtimes"]["ort"]
    assert report["environment"]["packages"]["toy_runtime"] == report["runtimes"]["ort"]


def test_the_model_is_exported_with_the_pass_and_run_by_the_runtime(extended: Path, tmp_path: Path) -> None:
    edgevit(extended, "export", "toynet", "--fmt", "toy", "--no-latency", "--out", tmp_path)
    bundle = tmp_path / "toynet-fp32-toyrt"
    manifest = json.loads((bundle / "manifest.json").read_text())
    assert manifest["runtime"]["name"] == "Toy Runtime"
    assert "name_graph" in [step["name"] for step in manifest["exporter"]["passes"]]
    assert manifest["parity"]["passed"]
    edgevit(extended, "run", bundle, ROOT / "edgevit" / "data" / "photos" / "chelsea.png")


def test_the_runtime_gets_int8_graphs_by_its_scheme(extended: Path, tmp_path: Path) -> None:
    calib = ROOT / "edgevit" / "data" / "photos"
    edgevit(extended, "export", "toynet", "--fmt", "toy", "--int8", "--calib", calib, "--no-latency", "--out", tmp_path)
    assert b"QuantizeLinear" in (tmp_path / "toynet-int8-toyrt" / "model.toy").read_bytes()
