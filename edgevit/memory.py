"""Too little memory: limits on the address space, and the messages of libraries that ran into them."""

from __future__ import annotations

import re
import resource

from edgevit.errors import MissingError

ANY_COMMAND_MB = 256  # NumPy with OpenBLAS, which ends the process if it gets no memory
PYTORCH_MB = 768  # an import of PyTorch, which throws in its static initializers
EXPORT_MB = 1280  # PyTorch, ONNX, a runtime and a small model

# Messages of the dynamic linker, Python, PyTorch, C++ and protobuf.
OUT_OF_MEMORY = re.compile(
    r"failed to map segment|can(?:'t|not) (?:be )?allocate|bad_alloc|MemoryError|not enough memory|out of memory",
    re.IGNORECASE,
)


def require_address_space(minimum_mb: int, *, user: str) -> None:
    """Raise MissingError if the address space is limited to less than `minimum_mb` (`ulimit -v`)."""
    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    if limit != resource.RLIM_INFINITY and limit >> 20 < minimum_mb:
        raise MissingError(
            f"out of memory: the address space is limited to {limit >> 20} MB, "
            f"and {user} needs at least {minimum_mb} MB; raise the limit (ulimit -v)"
        )
