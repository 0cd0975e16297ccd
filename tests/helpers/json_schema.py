"""Check a JSON value against a JSON Schema: the few keywords that edgevit's own schemas use."""

from __future__ import annotations

from typing import Any

Schema = dict[str, Any]

_TYPES: dict[str, type | tuple[type, ...]] = {
    "object": dict,
    "array": list,
    "string": str,
    "number": (int, float),
    "integer": int,
    "boolean": bool,
    "null": type(None),
}
_KNOWN = {
    *("$schema", "$id", "$defs", "$ref", "title", "description", "type", "enum", "const", "anyOf"),
    *("required", "properties", "additionalProperties", "items", "minItems"),
}


def violations(
    value: Any, schema: dict[str, Any], *, root: dict[str, Any] | None = None, place: str = "$"
) -> list[str]:
    """Return what a value violates; empty if it is valid. A keyword that this function does not know is an error."""
    root = root or schema
    assert not (unknown := set(schema) - _KNOWN), unknown
    if "$ref" in schema:
        schema = root["$defs"][schema["$ref"].removeprefix("#/$defs/")]
    if "anyOf" in schema:
        tries = [violations(value, each, root=root, place=place) for each in schema["anyOf"]]
        return [] if [] in tries else [f"{place}: fits none of {len(tries)}: {tries[-1][:1]}"]
    if "const" in schema and value != schema["const"]:
        return [f"{place}: {value!r} is not {schema['const']!r}"]
    if "enum" in schema and value not in schema["enum"]:
        return [f"{place}: {value!r} is not one of {schema['enum']}"]
    if "type" in schema and not _has_type(value, schema["type"]):
        return [f"{place}: {type(value).__name__} is not {schema['type']}"]
    return [*_object(value, schema, root, place), *_array(value, schema, root, place)]


def _has_type(value: Any, names: str | list[str]) -> bool:
    listed = [names] if isinstance(names, str) else names
    if isinstance(value, bool):
        return "boolean" in listed
    return any(isinstance(value, _TYPES[name]) for name in listed)


def _object(value: Any, schema: dict[str, Any], root: dict[str, Any], place: str) -> list[str]:
    if not isinstance(value, dict):
        return []
    known, others = schema.get("properties", {}), schema.get("additionalProperties", True)
    found = [f"{place}.{name} is missing" for name in schema.get("required", ()) if name not in value]
    for name, each in value.items():
        part = known.get(name, others)
        if part is False:
            found.append(f"{place}.{name} is not in the schema")
        elif part is not True:
            found += violations(each, part, root=root, place=f"{place}.{name}")
    return found


def _array(value: Any, schema: dict[str, Any], root: dict[str, Any], place: str) -> list[str]:
    if not isinstance(value, list):
        return []
    found = [f"{place} is too short"] if len(value) < schema.get("minItems", 0) else []
    for index, each in enumerate(value if "items" in schema else ()):
        found += violations(each, schema["items"], root=root, place=f"{place}[{index}]")
    return found
