"""What stands in a bundle's manifest, and of which type: a damaged one is told by the first thing that is not so."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, TypeAlias

# The form of a JSON value: a type; None; a list of one form; a tuple of forms, any of which will do; a mapping with the
# forms of its keys, of which those that end in "?" may be missing, and "*" stands for any.
Form: TypeAlias = "type | list[Form] | tuple[Form, ...] | Mapping[str, Form] | None"
_NUMBER: Form = (int, float)
_TENSORS: Form = [{"name": str, "dtype": str, "shape": [(int, str)]}]
MANIFEST: Mapping[str, Form] = {
    "model": {
        "name": str,
        "source": (None, str),
        "weights": str,
        "preprocessing": (
            None,
            {"input_size": [int], "interpolation": str, "crop_pct": _NUMBER, "mean": [_NUMBER], "std": [_NUMBER]},
        ),
        "num_classes?": (None, int),  # of registered models
        "options": dict,
    },
    "files": [{"path": str, "size_bytes": int, "sha256": str}],
    "runtime": {"fmt": str, "engine_files": [str]},
    "precision": {"asked": str, "layers?": {"*": int}, "multiply_adds?": {"*": int}},
    "build": {"batch": int, "dynamic_batch": (None, [int]), "compute_capabilities?": (None, [int])},
    "inputs": _TENSORS,
    "outputs": _TENSORS,
    "typing?": (None, {"share?": (None, int, float)}),
}
SECTIONS = frozenset(key for key in MANIFEST if not key.endswith("?"))  # none of them may be missing
_SHOWN = 40  # letters of a wrong value, in an error


def fault(manifest: Mapping[str, Any]) -> str | None:
    """The first thing in a manifest that is not as it must be; None where all is."""
    found = _fault(manifest, MANIFEST, "")
    if found is None and ":" not in (manifest["model"]["source"] or ":"):  # a registered model knows its classes
        found = _fault(manifest["model"], {"num_classes": int}, "model")
    return found


def _fault(value: Any, form: Form, where: str) -> str | None:
    if isinstance(form, tuple):
        faults = [_fault(value, one, where) for one in form]
        return None if None in faults else faults[-1]
    if isinstance(form, Mapping):
        return _fault_of_object(value, form, where)
    if isinstance(form, list):
        if not isinstance(value, list):
            return f"{where} is {_short(value)}, no list"
        faults = [_fault(each, form[0], f"{where}[{index}]") for index, each in enumerate(value)]
        return next((fault for fault in faults if fault), None)
    kind = type(None) if form is None else form
    if isinstance(value, kind) and not isinstance(value, bool):  # which Python counts among the whole numbers
        return None
    return f"{where} is {_short(value)}, not of the type {kind.__name__}"


def _fault_of_object(value: Any, form: Mapping[str, Form], where: str) -> str | None:
    if not isinstance(value, Mapping):
        return f"{where} is {_short(value)}, no object"
    for key, part in (dict.fromkeys(value, form["*"]) if "*" in form else form).items():
        name = key.rstrip("?")
        place = f"{where}.{name}".lstrip(".")
        if name in value:
            if fault := _fault(value[name], part, place):
                return fault
        elif name == key:
            return f"{place} is missing"
    return None


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"
