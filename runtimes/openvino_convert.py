"""Convert ONNX files to OpenVINO's IR files, and read the reasons in OpenVINO's errors."""

from __future__ import annotations

import io
import itertools
import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from edgevit.errors import BuildError
from edgevit.files import MODEL_FILE, link_or_copy, require_space, weights_file
from edgevit.runtimes.weight_references import write_references

# Lines of OpenVINO's report of a failed conversion.
_FAILED_OPERATOR = re.compile(r"-- ([\w.]+)-\d+ with a message:")
_UNKNOWN_OPERATORS = re.compile(r"-- No conversion rule found for operations: (.+)")


def convert(ov: Any, model: Path, xml: Path, *, scratch: Path) -> None:
    """Convert an ONNX file to `xml` and the .bin file next to it, and check that both are complete.

    `scratch` is an empty folder for temporary files; on the file system of `model`, the conversion takes less memory.
    Raises BuildError with OpenVINO's reason if it does not take the graph, OSError if the disk is full.
    """
    size_bytes = sum(path.stat().st_size for path in (model, weights_file(model)) if path.exists())
    try:
        with preserve_root_logger():
            converted = _convert_model(ov, model, scratch)
    except Exception as error:  # RuntimeError and several classes of OpenVINO's own
        require_space(scratch, size_bytes)
        raise BuildError(f"OpenVINO cannot convert {model.name}: {error_reason(error)}") from error
    converted.set_friendly_name("edgevit")  # a graph with mapped weights loses its name
    for port in converted.inputs:  # one may also have the name of a tensor that is the same, as after Identity
        port.get_tensor().set_names({port.get_node().get_friendly_name()})
    try:
        # By default OpenVINO would silently compress fp32 weights to fp16.
        ov.save_model(converted, xml, compress_to_fp16=False)
    except Exception as error:
        require_space(xml.parent, size_bytes)
        raise BuildError(f"OpenVINO cannot write {xml.name}: {error_reason(error)}") from error
    try:  # OpenVINO's writer reports no error if the disk is full
        ov.Core().read_model(str(xml), str(xml.with_suffix(".bin")))
    except Exception as error:
        require_space(xml.parent, size_bytes)
        raise BuildError(f"OpenVINO wrote {xml.name} incompletely: {error_reason(error)}") from error


def _convert_model(ov: Any, model: Path, scratch: Path) -> Any:
    """Convert an ONNX file. OpenVINO maps its large weights into memory; from bytes it would hold them three times."""
    references = scratch / MODEL_FILE
    if weights_file(model).exists():  # above 2 GB: both files under names without commas
        for source, target in ((model, references), (weights_file(model), scratch / weights_file(model).name)):
            link_or_copy(source, target)
        return ov.convert_model(references)
    if "," not in str(references) and write_references(model, references):  # commas would separate files
        return ov.convert_model(references)
    return ov.convert_model(io.BytesIO(model.read_bytes()))


@contextmanager
def preserve_root_logger() -> Iterator[None]:
    """Restore the root logger: `convert_model` lets it log errors only, and leaves it so if the conversion fails."""
    root = logging.getLogger()
    level, filters, handlers = root.level, list(root.filters), list(root.handlers)
    try:
        yield
    finally:
        root.setLevel(level)
        root.filters[:], root.handlers[:] = filters, handlers


def error_reason(error: Exception) -> str:
    """Return the reasons in an OpenVINO error in one line, such as "Pad: Unsupported padding mode: [wrap]".

    A failed conversion lists the reason for each operator in the middle of its message; other errors end with it.
    """
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    reasons = []
    for index, line in enumerate(lines):
        if failed := _FAILED_OPERATOR.match(line):
            details = itertools.takewhile(lambda text: not text.startswith(("--", "Summary:")), lines[index + 1 :])
            reasons.append(": ".join([failed[1], *list(details)[-1:]]))
        elif unknown := _UNKNOWN_OPERATORS.match(line):
            names = dict.fromkeys(re.sub(r"-\d+$", "", name) for name in unknown[1].split(", "))
            reasons.append(f"unsupported operators: {', '.join(names)}")
    if reasons:
        return "; ".join(dict.fromkeys(reasons))
    return lines[-1] if lines else type(error).__name__
