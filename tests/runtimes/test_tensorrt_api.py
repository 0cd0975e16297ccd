"""Every name that our files read from TensorRT exists in every version that they are written for.

TensorRT has no types to check against. What checks here instead: a convention and a matrix.

* In our TensorRT files an object of TensorRT's is held in a variable of a name in `HOLDERS`, and nowhere else.
* A function is for all versions of its file, unless `@versions(...)` says for which.
* `tensorrt_api.tsv` has the names that are used, and an x for each version of the Python package that has them. It was
  read from the packages themselves: the bindings' wheels import with empty libraries in place of TensorRT's own.

A new name: add its line to the matrix, from `dir()` of the bindings of each version.
"""

from __future__ import annotations

import ast
import builtins
import ctypes
import csv
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from types import ModuleType, TracebackType
from typing import Any

import numpy as np
import pytest

import edgevit

RUNTIMES = Path(edgevit.__file__).parent / "runtimes"
MATRIX = Path(__file__).with_name("tensorrt_api.tsv")

# A variable's name, and the class whose object it holds; "" is the module itself.
HOLDERS = {
    "trt": "",
    "builder": "Builder",
    "network": "INetworkDefinition",
    "config": "IBuilderConfig",
    "profile": "IOptimizationProfile",
    "cache": "ITimingCache",
    "parser": "OnnxParser",
    "fault": "ParserError",
    "layer": "ILayer",
    "tensor": "ITensor",
    "dtype": "DataType",
    "severity": "ILogger.Severity",
    "logger": "ILogger",
    "monitor": "IProgressMonitor",
    "serialized": "IHostMemory",
    "runtime": "Runtime",
    "engine": "ICudaEngine",
    "context": "IExecutionContext",
    "inspector": "EngineInspector",
}
ENUMS = {"DataType", "ILogger.Severity"}  # every value has a `name`
# Our files, and the versions that a function in them is for where nothing else is said.
LINES = {"8.6": r"cu12_8\.6", "10": r"cu1[23]_10\.", "11": r"cu1[23]_11\.", "rtx": r"rtx_"}
FILES = {
    "tensorrt.py": ("8.6", "10", "11"),
    "tensorrt_builder.py": ("8.6", "10", "11"),
    "tensorrt_rtx.py": ("rtx",),
    "rtx_compiler.py": ("rtx",),
}


@dataclass(frozen=True)
class Use:
    """A name of TensorRT's, and where it is used."""

    name: str
    lines: tuple[str, ...]
    at: int


@dataclass
class Reading:
    """What a file uses, and where it leaves the convention."""

    uses: list[Use] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)

    def fault(self, node: ast.expr | ast.stmt, words: str) -> None:
        self.faults.append(f"line {node.lineno}: {words}")


# The matrix


def matrix() -> dict[str, dict[str, bool]]:
    """name -> version -> whether that version has it."""
    with MATRIX.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    return {row.pop("name"): {version: mark == "x" for version, mark in row.items()} for row in rows}


def missing(reading: Reading, known: dict[str, dict[str, bool]]) -> list[str]:
    """The uses that some version lacks, in words."""
    found = []
    for use in reading.uses:
        versions = known.get(use.name)
        if versions is None:
            found.append(f"line {use.at}: {use.name} is not in the matrix")
            continue
        wanted = [v for v in versions if any(re.match(LINES[line], v) for line in use.lines)]
        lacking = [version for version in wanted if not versions[version]]
        if lacking or not wanted:
            found.append(f"line {use.at}: {use.name} is not in {', '.join(lacking) or 'any version'}")
    return found


# The reader


def read(source: str, lines: tuple[str, ...]) -> Reading:
    """Everything that a source file uses of TensorRT's, and each place where the reader cannot follow."""
    tree = ast.parse(source)
    reading = Reading()
    parents = {child: parent for parent in ast.walk(tree) for child in ast.iter_child_nodes(parent)}
    reader = _Reader(tree, parents, lines, reading)
    for node in ast.walk(tree):
        reader.look(node)
    return reading


class _Reader:
    def __init__(
        self, tree: ast.Module, parents: dict[ast.AST, ast.AST], lines: tuple[str, ...], reading: Reading
    ) -> None:
        self._parents, self._lines, self._reading = parents, lines, reading
        functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
        self._own = {node.name: node for node in functions}
        self._modules = _imported(tree)
        self._defined = _defined(tree)

    def look(self, node: ast.AST) -> None:
        if isinstance(node, ast.Attribute) and not isinstance(self._parents[node], ast.Attribute):
            self._chain(node)
        elif isinstance(node, ast.Call):
            self._call(node)
        elif isinstance(node, ast.ClassDef):
            self._class(node)
        elif isinstance(node, ast.Assign):
            for target in node.targets:
                self._kept(target, node.value)
        elif isinstance(node, (ast.For, ast.comprehension)):
            self._kept(node.target, node.iter)
        elif isinstance(node, ast.NamedExpr):
            self._kept(node.target, node.value)

    def _use(self, node: ast.expr | ast.stmt, name: str) -> None:
        self._reading.uses.append(Use(name, self._lines_of(node), node.lineno))

    def _lines_of(self, node: ast.AST) -> tuple[str, ...]:
        """The versions of the innermost function around a node that names any."""
        here: ast.AST | None = node
        while here is not None:
            if isinstance(here, ast.FunctionDef) and (named := _named_lines(here)):
                return named
            here = self._parents.get(here)
        return self._lines

    def _chain(self, node: ast.Attribute) -> None:
        root, names = _unroll(node)
        holder = _holder(root, names)
        if holder is None:
            self._foreign(node, root, names)
            return
        cls, rest = holder
        if not rest:
            return
        if cls == "":
            if rest[0].startswith("__"):
                return  # Python's own, such as __version__
            for end in range(1, len(rest) + 1):
                self._use(node, ".".join(rest[:end]))
            return
        if rest == ["name"] and cls in ENUMS:
            return
        if rest[0] in self._methods_of(cls):
            return
        self._use(node, f"{cls}.{rest[0]}")
        if len(rest) > 1:
            self._reading.fault(node, f"{'.'.join(rest)}: hold {rest[0]} in a variable named in HOLDERS first")

    def _methods_of(self, cls: str) -> set[str]:
        """The methods that our own subclasses of one of TensorRT's classes add to it."""
        added = set()
        for node in self._parents:
            if isinstance(node, ast.ClassDef) and cls in _bases(node):
                added |= {part.name for part in node.body if isinstance(part, ast.FunctionDef)}
        return added

    def _foreign(self, node: ast.Attribute, root: ast.expr, names: list[str]) -> None:
        """An attribute of something that is not TensorRT's: it must be Python's or ours."""
        if isinstance(root, ast.Call) and _holder_of_call(root):
            self._reading.fault(node, f".{names[0]} is read off an answer of TensorRT's: give the answer a name first")
        elif isinstance(root, ast.Name) and root.id in self._modules:
            if not hasattr(self._modules[root.id], names[0]):
                self._reading.fault(node, f"{root.id}.{names[0]} does not exist")
        else:
            for name in names:
                if name not in _python_names() and name not in self._defined and name not in _our_names():
                    self._reading.fault(node, f".{name} is neither Python's nor ours: hold TensorRT's objects in HOLDERS")

    def _call(self, node: ast.Call) -> None:
        if isinstance(node.func, ast.Name) and node.func.id in ("getattr", "hasattr", "setattr", "vars"):
            if node.args and _rooted_in_holder(node.args[0]):
                self._reading.fault(node, f"{node.func.id} on an object of TensorRT's hides a name")
        if isinstance(node.func, ast.Name) and node.func.id in self._own:
            self._own_call(node, self._own[node.func.id])
        if _holder_of_call(node):
            self._tensorrt_call(node)

    def _own_call(self, node: ast.Call, function: ast.FunctionDef) -> None:
        """An object keeps its name from one of our functions to the next, and no function is called too early."""
        parameters = [argument.arg for argument in function.args.args]
        for parameter, argument in zip(parameters, node.args):
            if isinstance(argument, ast.Name) and argument.id in HOLDERS and parameter != argument.id:
                self._reading.fault(node, f"{function.name} takes {argument.id} under the name {parameter}")
        for keyword in node.keywords:
            if isinstance(keyword.value, ast.Name) and keyword.value.id in HOLDERS and keyword.arg != keyword.value.id:
                self._reading.fault(node, f"{function.name} takes {keyword.value.id} under the name {keyword.arg}")
        named = _named_lines(function)
        if named and not set(self._lines_of(node)) <= set(named) and not self._conditional(node):
            self._reading.fault(node, f"{function.name} is for {', '.join(named)} alone: call it behind an if")

    def _conditional(self, node: ast.AST) -> bool:
        while not isinstance(node, ast.FunctionDef):
            parent = self._parents.get(node)
            if isinstance(parent, (ast.If, ast.IfExp)) and node is not parent.test:
                return True
            if parent is None:
                return False
            node = parent
        return False

    def _tensorrt_call(self, node: ast.Call) -> None:
        """Enumerations have other numbers in other versions: their values are names."""
        _, names = _unroll(node.func)
        for argument in (*node.args, *(keyword.value for keyword in node.keywords)):
            number = isinstance(argument, ast.Constant) and type(argument.value) is int
            if number and (names[-1], argument.value) not in ALLOWED_NUMBERS:
                self._reading.fault(node, f"{names[-1]}({argument.value}): a number where a name belongs")

    def _kept(self, target: ast.expr, value: ast.expr) -> None:
        """What TensorRT answers is kept in a variable of HOLDERS, or is turned into Python's own first."""
        if not _answers(value):
            return
        for part in target.elts if isinstance(target, ast.Tuple) else [target]:
            name = part.attr.lstrip("_") if isinstance(part, ast.Attribute) else getattr(part, "id", "")
            if name not in HOLDERS and name not in PLAIN:
                self._reading.fault(value, f"{name or 'something'} holds an answer of TensorRT's: name it after HOLDERS")

    def _class(self, node: ast.ClassDef) -> None:
        """What a subclass of TensorRT's overrides exists there."""
        for base in _bases(node):
            for part in node.body:
                if isinstance(part, ast.FunctionDef) and part.name in OVERRIDDEN.get(base, ()):
                    self._use(part, f"{base}.{part.name}")
            given = {part.name for part in node.body if isinstance(part, ast.FunctionDef)}
            if lacking := set(OVERRIDDEN.get(base, {"?"})) - given:
                self._reading.fault(node, f"{base} needs {', '.join(sorted(lacking))}")


# Index 0 is the first profile; 0 is no enumeration there.
ALLOWED_NUMBERS = {("get_tensor_profile_shape", 0)}
# What TensorRT calls in the classes that we derive from its own.
OVERRIDDEN = {"ILogger": {"log"}, "IProgressMonitor": {"phase_start", "step_complete", "phase_finish"}}
# Variables that hold numbers, text and bytes from TensorRT.
PLAIN = {"shape", "name", "text", "names", "bounds", "index"}


def _unroll(node: ast.expr) -> tuple[ast.expr, list[str]]:
    """`a.b.c` as a and [b, c]."""
    names: list[str] = []
    while isinstance(node, ast.Attribute):
        names.insert(0, node.attr)
        node = node.value
    return node, names


def _holder(root: ast.expr, names: list[str]) -> tuple[str, list[str]] | None:
    """The class of the object that a chain starts from, and what is read from it; None for what is not TensorRT's."""
    if not isinstance(root, ast.Name):
        return None
    if root.id in HOLDERS:
        return HOLDERS[root.id], names
    if root.id == "self" and names and names[0].startswith("_") and names[0].lstrip("_") in HOLDERS:
        return HOLDERS[names[0].lstrip("_")], names[1:]
    return None


def _rooted_in_holder(node: ast.expr) -> bool:
    return _holder(*_unroll(node)) is not None


def _holder_of_call(node: ast.Call) -> bool:
    """Whether a call goes to TensorRT."""
    holder = _holder(*_unroll(node.func)) if isinstance(node.func, ast.Attribute) else None
    return holder is not None and bool(holder[1])


def _answers(value: ast.expr) -> bool:
    """Whether a value is what TensorRT answered: a call's result or an attribute, also out of a comprehension."""
    if isinstance(value, (ast.GeneratorExp, ast.ListComp)):
        return _answers(value.elt)
    if isinstance(value, ast.IfExp):
        return _answers(value.body) or _answers(value.orelse)
    if isinstance(value, ast.Call):
        return _holder_of_call(value)
    return isinstance(value, ast.Attribute) and (holder := _holder(*_unroll(value))) is not None and len(holder[1]) > 0


def _bases(node: ast.ClassDef) -> list[str]:
    chains = (_unroll(base) for base in node.bases)
    return [".".join(names) for root, names in chains if isinstance(root, ast.Name) and root.id == "trt" and names]


def _named_lines(function: ast.FunctionDef) -> tuple[str, ...]:
    for decorator in function.decorator_list:
        if isinstance(decorator, ast.Call) and isinstance(decorator.func, ast.Name) and decorator.func.id == "versions":
            return tuple(str(ast.literal_eval(argument)) for argument in decorator.args)
    return ()


def _imported(tree: ast.Module) -> dict[str, Any]:
    names: dict[str, Any] = {}
    for node in tree.body:
        if isinstance(node, ast.Import):
            for alias in node.names:
                names[alias.asname or alias.name] = __import__(alias.name)
        elif isinstance(node, ast.ImportFrom) and node.module == "edgevit.runtimes":
            module = __import__(node.module, fromlist=[alias.name for alias in node.names])
            names |= {alias.asname or alias.name: getattr(module, alias.name) for alias in node.names}
    return names


def _defined(tree: ast.AST) -> set[str]:
    """Names that a file itself defines: functions, classes, fields, attributes of self."""
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            found.add(node.name)
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            found.add(node.target.id)
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            if isinstance(node.value, ast.Name) and node.value.id == "self":
                found.add(node.attr)
        elif isinstance(node, ast.Assign):
            found |= {target.id for target in node.targets if isinstance(target, ast.Name)}
    return found


@cache
def _our_names() -> frozenset[str]:
    """Names defined in our own files that a runtime is built on."""
    files = [*RUNTIMES.glob("*.py"), *RUNTIMES.parent.glob("*.py")]
    others = [file for file in files if not file.name.startswith("tensorrt") and file.name != "rtx_compiler.py"]
    plan = RUNTIMES / "tensorrt_plan.py"
    return frozenset().union(*(_defined(ast.parse(file.read_text("utf-8"))) for file in (*others, plan)))


@cache
def _python_names() -> frozenset[str]:
    """Names that Python's and NumPy's own objects have."""
    kinds: list[Any] = [str, bytes, bytearray, int, float, dict, list, tuple, set, frozenset, slice, Path, re.Match]
    kinds += [Exception, BaseException(), TracebackType, ModuleType, np.ndarray, np.dtype, ctypes.c_void_p, builtins]
    return frozenset(name for kind in kinds for name in dir(kind)) | {"__cause__"}


# The tests


def sources() -> Iterator[tuple[str, tuple[str, ...]]]:
    return ((name, lines) for name, lines in FILES.items() if (RUNTIMES / name).exists())


@pytest.mark.parametrize(("name", "lines"), sources())
def test_every_name_exists_in_every_version_that_its_function_is_for(name: str, lines: tuple[str, ...]) -> None:
    reading = read((RUNTIMES / name).read_text("utf-8"), lines)
    assert reading.faults == []
    assert missing(reading, matrix()) == []
    assert len(reading.uses) > 30


def test_the_matrix_has_the_names_that_are_used_and_no_others() -> None:
    used = {
        use.name for name, lines in sources() for use in read((RUNTIMES / name).read_text("utf-8"), lines).uses
    }
    assert set(matrix()) == used


def test_the_matrix_has_every_line_and_knows_what_came_and_went() -> None:
    known = matrix()
    assert [line for line in LINES if not any(re.match(LINES[line], v) for v in known["Builder"])] == []
    # Gone in 11, come in 10.
    assert [version for version, has in known["BuilderFlag.FP16"].items() if not has and "_11." not in version] == [
        version for version in known["BuilderFlag.FP16"] if version.startswith("rtx")
    ]
    assert [version for version, has in known["IProgressMonitor"].items() if not has] == ["cu12_8.6.1"]


BAD = {
    "a misspelt method": ("def f(builder):\n    builder.create_netwrk(0)", "Builder.create_netwrk is not in the matrix"),
    "a misspelt enumeration": ("def f(trt):\n    trt.BuilderFlags.FP16", "BuilderFlags is not in the matrix"),
    "a method of another class": ("def f(network):\n    network.set_flag(1)", "INetworkDefinition.set_flag is not in"),
    "a name that 11 has no more": ("def f(trt):\n    trt.BuilderFlag.FP16", "BuilderFlag.FP16 is not in cu13_11"),
    "a name that 8.6 has not yet": ("def f(trt):\n    trt.IProgressMonitor", "IProgressMonitor is not in cu12_8.6.1"),
    "the same in a function for 10": (
        "@versions('10')\ndef f(trt):\n    trt.ParserError\n    trt.BuilderFlag.FP17",
        "BuilderFlag.FP17 is not in the matrix",
    ),
    "an object in a variable of another name": (
        "def f(trt, logger):\n    b = trt.Builder(logger)\n    b.create_network(0)",
        "b holds an answer of TensorRT's",
    ),
    "an object in a parameter of another name": (
        "def f(builder):\n    g(builder)\ndef g(thing):\n    pass",
        "g takes builder under the name thing",
    ),
    "a name nobody has": ("def f(thing):\n    thing.frobnicate()", ".frobnicate is neither Python's nor ours"),
    "an answer that has no name": (
        "def f(engine):\n    engine.create_execution_context().execute_async_v4(0)",
        "read off an answer of TensorRT's",
    ),
    "getattr": ("def f(trt):\n    getattr(trt, 'BuilderFlag')", "getattr on an object of TensorRT's hides a name"),
    "a number for an enumeration": ("def f(config):\n    config.set_flag(1)", "a number where a name belongs"),
    "a call without its guard": (
        "@versions('8.6')\ndef g(trt):\n    pass\ndef f(trt):\n    g(trt)",
        "g is for 8.6 alone: call it behind an if",
    ),
    "a subclass that lacks a method": (
        "def f(trt):\n    class M(trt.ILogger):\n        def lg(self, severity, msg): pass",
        "ILogger needs log",
    ),
}


@pytest.mark.parametrize(("source", "words"), BAD.values(), ids=BAD.keys())
def test_what_does_not_exist_or_cannot_be_followed_is_told(source: str, words: str) -> None:
    reading = read(source, FILES["tensorrt.py"])
    told = [*reading.faults, *missing(reading, matrix())]
    assert any(words in line for line in told), told


GOOD = {
    "guarded by an if": (
        "@versions('8.6')\ndef g(trt):\n    trt.BuilderFlag.FP16\ndef f(trt, line):\n    if line == '8.6':\n        g(trt)"
    ),
    "guarded by the other's guard": (
        "@versions('8.6')\ndef g(trt):\n    trt.BuilderFlag.FP16\n@versions('8.6')\ndef f(trt):\n    g(trt)"
    ),
    "in all versions": "def f(trt, logger):\n    builder = trt.Builder(logger)\n    builder.create_builder_config()",
}


@pytest.mark.parametrize("source", GOOD.values(), ids=GOOD.keys())
def test_what_keeps_to_the_convention_passes(source: str) -> None:
    reading = read(source, FILES["tensorrt.py"])
    assert (reading.faults, missing(reading, matrix())) == ([], [])


@pytest.mark.parametrize("name", ["create_builder_config", "build_serialized_network", "STRONGLY_TYPED", "phase_start"])
def test_one_wrong_letter_in_our_own_file_is_found(name: str) -> None:
    source = (RUNTIMES / "tensorrt.py").read_text("utf-8")
    assert name in source
    reading = read(source.replace(name, f"{name}s"), FILES["tensorrt.py"])
    assert [*reading.faults, *missing(reading, matrix())] != []
