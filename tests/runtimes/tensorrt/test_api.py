"""Every name that our files read from TensorRT exists in every version that they are written for.

TensorRT has no types to check against. What checks here instead: a convention and a matrix.

* In our TensorRT files an object of TensorRT's is held in a variable of a name in `HOLDERS` (several of them in its
  plural), and nowhere else.
* A function is for all versions of its file, unless `@versions(...)` says for which.
* `tensorrt_api.tsv` has the names that are used, and an x for each version of the Python package that has them. It was
  read from the packages themselves: the bindings' wheels import with empty libraries in place of TensorRT's own.

A new name: add its line to the matrix, from `dir()` of the bindings of each version.
"""

from __future__ import annotations

import ast
import builtins
import csv
import ctypes
import os
import re
import subprocess
from contextlib import ExitStack
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

# A variable's name, and the class whose object it holds, or the classes that it may be of; "" is the module itself.
HOLDERS: dict[str, tuple[str, ...]] = {
    "trt": ("",),
    "builder": ("Builder",),
    "network": ("INetworkDefinition",),
    "config": ("IBuilderConfig",),
    "profile": ("IOptimizationProfile",),
    "cache": ("ITimingCache",),
    "parser": ("OnnxParser",),
    "fault": ("ParserError",),
    "layer": ("ILayer", "INormalizationLayer"),
    "tensor": ("ITensor",),
    "dtype": ("DataType",),
    "severity": ("ILogger.Severity",),
    "logger": ("ILogger",),
    "monitor": ("IProgressMonitor",),
    "serialized": ("IHostMemory",),
    "runtime": ("Runtime",),
    "engine": ("ICudaEngine",),
    "context": ("IExecutionContext",),
    "inspector": ("EngineInspector",),
}
ENUMS = {"DataType", "ILogger.Severity"}  # every value has a `name`
# Our files, and the versions that a function in them is for where nothing else is said.
LINES = {"8.6": r"cu12_8\.6", "10": r"cu1[23]_10\.", "11": r"cu1[23]_11\.", "rtx": r"rtx_"}
FILES = {
    "tensorrt/runtime.py": ("8.6", "10", "11"),
    "tensorrt/builder.py": ("8.6", "10", "11"),
    "tensorrt/worker.py": ("8.6", "10", "11"),
    "tensorrt/engine.py": ("8.6", "10", "11"),
    "tensorrt_rtx/compiler.py": ("rtx",),
    "tensorrt_rtx/runtime.py": ("rtx",),
}
# These two talk to TensorRT itself; the others pass its objects on.
TALKING = frozenset({"tensorrt/builder.py", "tensorrt/engine.py"})
# These keep to the names of HOLDERS where they can, and are held to the matrix alone.
LOOSE = frozenset({"tensorrt_rtx/compiler.py", "tensorrt_rtx/runtime.py"})


@dataclass(frozen=True)
class Use:
    """A name of TensorRT's, or the names of which it may be one, and where it is used."""

    names: tuple[str, ...]
    lines: tuple[str, ...]
    at: int


@dataclass
class Reading:
    """What a file uses, where it leaves the convention, and the names that are neither Python's nor ours."""

    uses: list[Use] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    foreign: list[str] = field(default_factory=list)

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
    return [f"line {use.at}: {words}" for use in reading.uses if (words := _lacking(use, known))]


def _lacking(use: Use, known: dict[str, dict[str, bool]]) -> str:
    name = next((name for name in use.names if name in known), None)
    if name is None:
        return f"{use.names[0]} is not in the matrix"
    wanted = [version for version in known[name] if any(re.match(LINES[line], version) for line in use.lines)]
    lacking = [version for version in wanted if not known[name][version]]
    return f"{name} is not in {', '.join(lacking) or 'any version'}" if lacking or not wanted else ""


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

    def _use(self, node: ast.expr | ast.stmt, *names: str) -> None:
        self._reading.uses.append(Use(names, self._lines_of(node), node.lineno))

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
        classes, rest = holder
        if not rest or rest[0].startswith("__"):
            return  # Python's own, such as __version__
        if classes == ("",):
            for end in range(1, len(rest) + 1):
                self._use(node, ".".join(rest[:end]))
            return
        if (rest == ["name"] and set(classes) <= ENUMS) or rest[0] in _added_methods(classes):
            return
        self._use(node, *(f"{cls}.{rest[0]}" for cls in classes))
        if len(rest) > 1:
            self._reading.fault(node, f"{'.'.join(rest)}: hold {rest[0]} in a variable named in HOLDERS first")

    def _foreign(self, node: ast.Attribute, root: ast.expr, names: list[str]) -> None:
        """An attribute of something that is not TensorRT's: it must be Python's or ours."""
        if isinstance(root, ast.Call) and _holder_of_call(root):
            self._reading.fault(node, f".{names[0]} is read off an answer of TensorRT's: give the answer a name first")
            return
        if isinstance(root, ast.Name) and root.id in self._modules:
            thing = self._modules[root.id]
            for name in names:
                if not hasattr(thing, name):
                    self._reading.fault(node, f"{root.id}.{name} does not exist")
                    return
                thing = getattr(thing, name)
            return
        for name in names:
            if name not in _python_names() and name not in self._defined and name not in _our_names():
                self._reading.foreign.append(name)
                self._reading.fault(node, f".{name} is neither Python's nor ours: hold TensorRT's objects in HOLDERS")

    def _call(self, node: ast.Call) -> None:
        hides = isinstance(node.func, ast.Name) and node.func.id in ("getattr", "hasattr", "setattr", "vars")
        if hides and node.args and _holder(*_unroll(node.args[0])) is not None:
            self._reading.fault(node, "getattr and its like hide a name of TensorRT's")
        if isinstance(node.func, ast.Name) and node.func.id in self._own:
            self._own_call(node, self._own[node.func.id])
        if _holder_of_call(node):
            self._tensorrt_call(node)

    def _own_call(self, node: ast.Call, function: ast.FunctionDef) -> None:
        """An object keeps its name from one of our functions to the next, and no function is called too early."""
        parameters = [argument.arg for argument in function.args.args]
        for parameter, argument in zip(parameters, node.args, strict=False):
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
            if not isinstance(argument, ast.Constant) or type(argument.value) is not int:
                continue
            if (names[-1], argument.value) not in ALLOWED_NUMBERS:
                self._reading.fault(node, f"{names[-1]}({argument.value}): a number where a name belongs")

    def _kept(self, target: ast.expr, value: ast.expr) -> None:
        """What TensorRT answers is kept in a variable of HOLDERS, or in one that holds nothing of TensorRT's."""
        several = isinstance(value, (ast.GeneratorExp, ast.ListComp)) or isinstance(self._parents[target], ast.For)
        one_of = value.id.removesuffix("s") if isinstance(value, ast.Name) and value.id.endswith("s") else ""
        walks = isinstance(self._parents[target], (ast.For, ast.comprehension))
        if one_of in HOLDERS and walks and getattr(target, "id", "") != one_of:
            self._reading.fault(value, f"{ast.unparse(target)} holds one of {one_of}s: name it after HOLDERS")
        if not _answers(value) or _is_tensorrts(target):
            return
        for part in target.elts if isinstance(target, ast.Tuple) else [target]:
            name = part.attr.lstrip("_") if isinstance(part, ast.Attribute) else getattr(part, "id", "")
            one = name.removesuffix("s") if several else name
            if one not in HOLDERS and name not in PLAIN:
                self._reading.fault(
                    value, f"{name or 'something'} holds an answer of TensorRT's: name it after HOLDERS"
                )

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


def _holder(root: ast.expr, names: list[str]) -> tuple[tuple[str, ...], list[str]] | None:
    """The classes of the object that a chain starts from, and what is read from it; None for what is not TensorRT's."""
    if not isinstance(root, ast.Name):
        return None
    if root.id in HOLDERS:
        return HOLDERS[root.id], names
    if root.id == "self" and names and names[0].startswith("_") and names[0].lstrip("_") in HOLDERS:
        return HOLDERS[names[0].lstrip("_")], names[1:]
    return None


def _is_tensorrts(target: ast.expr) -> bool:
    """Whether an assignment goes to an attribute of one of TensorRT's objects."""
    holder = _holder(*_unroll(target)) if isinstance(target, ast.Attribute) else None
    return holder is not None and bool(holder[1])


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
                names[alias.asname or alias.name.partition(".")[0]] = __import__(alias.name)
        elif isinstance(node, ast.ImportFrom) and node.module in ("edgevit.runtimes", "edgevit.runtimes.tensorrt"):
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
def _added_methods(classes: tuple[str, ...]) -> frozenset[str]:
    """The methods that our own subclasses of TensorRT's classes add to them."""
    trees = [ast.parse((RUNTIMES / name).read_text("utf-8")) for name in FILES if (RUNTIMES / name).exists()]
    derived = [node for tree in trees for node in ast.walk(tree) if isinstance(node, ast.ClassDef)]
    ours = [node for node in derived if set(classes) & set(_bases(node))]
    return frozenset(part.name for node in ours for part in node.body if isinstance(part, ast.FunctionDef))


@cache
def _our_names() -> frozenset[str]:
    """Names defined in our own files that a runtime is built on."""
    files = [*RUNTIMES.glob("*.py"), *RUNTIMES.glob("tensorrt*/*.py"), *RUNTIMES.parent.glob("*.py")]
    others = [file for file in files if file.name not in TALKING | LOOSE]
    return frozenset().union(*(_defined(ast.parse(file.read_text("utf-8"))) for file in others))


@cache
def _python_names() -> frozenset[str]:
    """Names that Python's and NumPy's own objects have."""
    kinds: list[Any] = [str, bytes, bytearray, int, float, dict, list, tuple, set, frozenset, slice, Path, re.Match]
    kinds += [OSError, BaseException(), TracebackType, ModuleType, ExitStack, np.ndarray, np.dtype, ctypes.c_void_p]
    kinds += [os.stat_result, subprocess.CompletedProcess([], 0), builtins]
    return frozenset(name for kind in kinds for name in dir(kind))


# The tests


def sources() -> list[tuple[str, tuple[str, ...]]]:
    return [(name, lines) for name, lines in FILES.items() if (RUNTIMES / name).exists()]


@pytest.mark.parametrize(("name", "lines"), sources())
def test_every_name_exists_in_every_version_that_its_function_is_for(name: str, lines: tuple[str, ...]) -> None:
    reading, known = read((RUNTIMES / name).read_text("utf-8"), lines), matrix()
    assert missing(reading, known) == []
    if name in LOOSE:
        members = {member.rpartition(".")[2] for member, has in known.items() if has["rtx_1.7.1.116"]}
        ours = frozenset().union(*(_defined(ast.parse((RUNTIMES / loose).read_text("utf-8"))) for loose in LOOSE))
        assert [found for found in reading.foreign if found not in members | ours] == []
    else:
        assert reading.faults == []
        assert len(reading.uses) >= 20 or name not in TALKING


def test_the_matrix_has_every_line_and_knows_what_came_and_went() -> None:
    known = matrix()
    for line, pattern in LINES.items():
        assert any(re.match(pattern, version) for version in known["Builder"]), line

    def lacks(name: str) -> set[str]:
        return {version.partition(".")[0] for version, has in known[name].items() if not has}

    assert lacks("Builder.create_network") == set()
    assert lacks("BuilderFlag.FP16") == {"cu13_11", "rtx_1"}
    assert lacks("IProgressMonitor") == {"cu12_8"}


BAD = {
    "a misspelt method": (
        "def f(builder):\n    builder.create_netwrk(0)",
        "Builder.create_netwrk is not in the matrix",
    ),
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
    "getattr": ("def f(trt):\n    getattr(trt, 'BuilderFlag')", "hide a name of TensorRT's"),
    "one of several under another name": (
        "def f(network):\n    tensors = (network.get_input(i) for i in range(2))\n    [x.shape for x in tensors]",
        "x holds one of tensors",
    ),
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
    reading = read(source, FILES["tensorrt/runtime.py"])
    told = [*reading.faults, *missing(reading, matrix())]
    assert any(words in line for line in told), told


GOOD = {
    "guarded by an if": (
        "@versions('8.6')\ndef g(trt):\n    trt.BuilderFlag.FP16\ndef f(trt, line):\n    if line:\n        g(trt)"
    ),
    "guarded by the other's guard": (
        "@versions('8.6')\ndef g(trt):\n    trt.BuilderFlag.FP16\n@versions('8.6')\ndef f(trt):\n    g(trt)"
    ),
    "in all versions": "def f(trt, logger):\n    builder = trt.Builder(logger)\n    builder.create_builder_config()",
}


@pytest.mark.parametrize("source", GOOD.values(), ids=GOOD.keys())
def test_what_keeps_to_the_convention_passes(source: str) -> None:
    reading = read(source, FILES["tensorrt/runtime.py"])
    assert (reading.faults, missing(reading, matrix())) == ([], [])


def test_a_guard_that_names_the_wrong_versions_is_found() -> None:
    source = (RUNTIMES / "tensorrt/builder.py").read_text("utf-8")
    reading = read(source.replace('@versions("8.6")', '@versions("11")'), FILES["tensorrt/builder.py"])
    assert any("BuilderFlag.FP16 is not in cu13_11" in words for words in missing(reading, matrix()))


@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("tensorrt/builder.py", "create_builder_config"),
        ("tensorrt/builder.py", "build_serialized_network"),
        ("tensorrt/builder.py", "STRONGLY_TYPED"),
        ("tensorrt/builder.py", "phase_start"),
        ("tensorrt/builder.py", "set_memory_pool_limit"),
        ("tensorrt/builder.py", "FP16"),
        ("tensorrt/engine.py", "execute_async_v3"),
        ("tensorrt/engine.py", "get_engine_information"),
        ("tensorrt/engine.py", "TensorIOMode"),
    ],
)
def test_one_wrong_letter_in_our_own_files_is_found(file: str, name: str) -> None:
    source = (RUNTIMES / file).read_text("utf-8")
    assert name in source
    reading = read(source.replace(name, f"{name}s"), FILES[file])
    assert [*reading.faults, *missing(reading, matrix())] != []
