"""Capture a PyTorch module as a clean, typed ONNX graph.

This package and the function `edgevit.export` share a name, and Python binds the package to it as soon as something
here is imported. So the package can be called too, and is the function then.
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any


class _CallablePackage(ModuleType):
    def __call__(self, *arguments: Any, **options: Any) -> Any:
        return sys.modules["edgevit"].export_model(*arguments, **options)


sys.modules[__name__].__class__ = _CallablePackage
