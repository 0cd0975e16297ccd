"""Call a user's factory: `package.module:factory` or `file.py:factory`."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import inspect
import os
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import nn

from edgevit.errors import EdgevitError, ExportError, UsageError
from edgevit.files import class_and_first_line, first_line

MODEL_FORMS = "a registered name, timm:NAME, hf:NAME, package.module:factory or file.py:factory"


def call_factory(name: str, arguments: Mapping[str, Any]) -> nn.Module:
    """Return what the factory `name` makes, in its own mode.

    Raises UsageError if there is no such factory, if it does not take the arguments, or if it returns no nn.Module;
    ExportError if its code fails.
    """
    with _restore_cwd():
        factory = _find_factory(name)
        _require_arguments(factory, name, arguments)
        return _call(factory, name, arguments)


def _find_factory(name: str) -> Callable[..., Any]:
    place, _, attribute = name.rpartition(":")
    if not place.strip(". "):
        raise UsageError(f"MODEL is {MODEL_FORMS}, not {name!r}")
    if not attribute:
        raise UsageError(factories_in(Path(place)) if place.endswith(".py") else f"MODEL is {MODEL_FORMS}")
    module = _import_file(Path(place)) if place.endswith(".py") else _import_module(place)
    factory = getattr(module, attribute, None)
    if not callable(factory):
        public = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        raise UsageError(f"{place} has no function {attribute!r}; it has {', '.join(public) or 'none'}")
    return factory


def factories_in(path: Path) -> str:
    """Return the error for a file without a factory; its functions are read without running it."""
    message = f"name the function that returns the model: {path}:FUNCTION"
    try:
        tree = ast.parse(path.read_bytes())
    except (OSError, SyntaxError, ValueError):
        return message
    names = [node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.ClassDef)]
    return f"{message}; {path.name} has {', '.join(names) or 'none'}"


def _import_file(path: Path) -> Any:
    if not path.is_file():
        raise UsageError(f"no file {path}; MODEL is {MODEL_FORMS}")
    name = path.stem if path.stem not in sys.modules else f"_users_{path.stem}"  # a file may be called torch.py
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise UsageError(f"{path} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and pickle look a module up by name
    sys.path.insert(0, str(path.parent.resolve()))  # imports of its neighbors work as when it runs as a script
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:  # user code may raise anything, or exit
        raise ExportError(f"importing {path} failed: {_reason(error, path)}") from error
    return module


def _import_module(place: str) -> Any:
    sys.path.insert(0, "")  # the current folder, as with `python -m`
    try:
        return importlib.import_module(place)
    except ModuleNotFoundError as error:
        raise UsageError(
            f"no Python module {place!r} ({first_line(error)}); for a file write file.py:factory"
        ) from error
    except (Exception, SystemExit) as error:  # user code may raise anything, or exit
        raise ExportError(f"importing {place} failed: {class_and_first_line(error)}") from error


def _require_arguments(factory: Callable[..., Any], name: str, arguments: Mapping[str, Any]) -> None:
    try:
        inspect.signature(factory).bind(**arguments)
    except TypeError as error:
        raise UsageError(f"{name}: {error}; give its arguments as --arg NAME=VALUE") from error
    except ValueError:  # a callable without a signature
        return


def _call(factory: Callable[..., Any], name: str, arguments: Mapping[str, Any]) -> nn.Module:
    try:
        module = factory(**arguments)
    except EdgevitError:
        raise
    except (Exception, SystemExit) as error:  # user code may raise anything, or exit
        raise ExportError(f"{name}() failed: {_reason(error, _source_file(factory))}") from error
    if not isinstance(module, nn.Module):
        raise UsageError(f"{name}() returned a {type(module).__name__}, not a torch.nn.Module")
    return module


def _source_file(factory: Callable[..., Any]) -> Path | None:
    try:
        return Path(inspect.getsourcefile(factory) or "")
    except TypeError:
        return None


def _reason(error: BaseException, path: Path | None) -> str:
    """Return an exception of the user's code in one line, with the last line of `path` that it passed through."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if path and Path(frame.filename) == path]
    place = f" ({frames[-1].filename}:{frames[-1].lineno}: {frames[-1].line})" if frames else ""
    return f"{class_and_first_line(error)}{place}"


@contextmanager
def _restore_cwd() -> Iterator[None]:
    """Restore the current folder on exit: a user's script may change it, and other relative paths depend on it."""
    folder = Path.cwd()
    try:
        yield
    finally:
        os.chdir(folder)
