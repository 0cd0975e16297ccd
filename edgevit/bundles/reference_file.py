"""Read an untrusted reference.npz: reference inputs and PyTorch's outputs for them."""

from __future__ import annotations

import math
import zipfile
from pathlib import Path
from typing import IO

import numpy as np

from edgevit.errors import BundleError
from edgevit.files import first_line, os_reason
from edgevit.types import Array, Reference
from edgevit.untrusted import InvalidError, open_regular

MAX_BYTES = 2 << 30  # of all arrays together
MAX_ARRAYS = 1000
MAX_NAME = 4096  # characters
_SIDES = ("input", "output", "float32_error")


def read_references(path: Path) -> tuple[Reference, ...]:
    """Read the references that `store.write_references` wrote, in their order.

    Raises BundleError if the file cannot be read, or holds anything but numeric arrays (rows, ...) with the keys
    `kind/input|output/name`, the same number of rows, at least one, for each kind; and, optionally, one number for an
    output with the key `kind/float32_error/name`.
    """
    try:
        with open(open_regular(path), "rb") as file, zipfile.ZipFile(file) as archive:  # noqa: PTH123  # a descriptor
            return _references(_read_arrays(archive))
    except OSError as error:
        raise BundleError(f"cannot read {path}: {os_reason(error)}") from error
    except Exception as error:  # zipfile and zlib raise many kinds for damaged files
        raise BundleError(f"{path} is damaged: {first_line(error)}; export the bundle again") from error


def _read_arrays(archive: zipfile.ZipFile) -> dict[str, Array]:
    members = archive.infolist()
    if not 1 <= len(members) <= MAX_ARRAYS or sum(member.file_size for member in members) > MAX_BYTES:
        raise InvalidError(f"it needs 1 to {MAX_ARRAYS} arrays of together at most {MAX_BYTES >> 30} GiB")
    arrays = {}
    for member in members:
        key = member.filename.removesuffix(".npy")
        if len(key) > MAX_NAME or key in arrays:
            raise InvalidError("an array has a name that is too long, or occurs twice")
        with archive.open(member) as file:
            arrays[key] = _read_array(file, member.file_size)
    return arrays


def _read_array(file: IO[bytes], size_bytes: int) -> Array:
    """Read an array in NumPy's format; unlike `np.load`, allocate nothing before its size is known to fit the file."""
    version = np.lib.format.read_magic(file)
    read_header = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    if version not in read_header:
        raise InvalidError(f"an array has the format version {version}")
    shape, fortran_order, dtype = read_header[version](file)
    if dtype.kind not in "biuf" or len(shape) > 32 or min(shape, default=0) < 0:
        raise InvalidError(f"an array has the type {dtype} and shape {list(shape)[:8]}; expected numbers (rows, ...)")
    count = math.prod(shape)
    if count * dtype.itemsize > size_bytes:
        raise InvalidError("an array is shorter than its shape")
    content = file.read()
    if len(content) != count * dtype.itemsize:
        raise InvalidError("an array is not as long as its shape")
    return np.frombuffer(content, dtype).reshape(shape, order="F" if fortran_order else "C").copy()


def _references(arrays: dict[str, Array]) -> tuple[Reference, ...]:
    kinds: dict[str, dict[str, dict[str, Array]]] = {}
    for key, array in arrays.items():
        kind, _, rest = key.partition("/")
        side, _, name = rest.partition("/")
        if side not in _SIDES or not kind or not name:
            raise InvalidError(f"an array is named {key[:40]!r}, expected kind/{'|'.join(_SIDES)}/name")
        kinds.setdefault(kind, {side: {} for side in _SIDES})[side][name] = array
    for kind, sides in kinds.items():
        arrays_with_rows = [*sides["input"].values(), *sides["output"].values()]
        rows = {len(array) if array.ndim else 0 for array in arrays_with_rows}
        if len(rows) != 1 or 0 in rows or not sides["input"] or not sides["output"]:
            raise InvalidError(f"the arrays of {kind[:40]!r} need inputs and outputs of the same number of rows")
    return tuple(
        Reference(
            kind=kind,
            inputs=sides["input"],
            outputs=sides["output"],
            float32_error={name: _error(array, name) for name, array in sides["float32_error"].items()},
        )
        for kind, sides in kinds.items()
    )


def _error(array: Array, name: str) -> float:
    if array.ndim != 0 or not 0 <= (value := float(array)) < math.inf:
        raise InvalidError(f"the float32 error of {name[:40]!r} is not a number from 0")
    return value
