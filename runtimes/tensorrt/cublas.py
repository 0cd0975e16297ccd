"""Matrix products by cuBLAS: the rate of a GPU on machines without PyTorch, such as a Jetson.

The library is called by ctypes, like the driver. Functions and constants follow NVIDIA's cuBLAS reference, version 11.2
and newer.
"""

from __future__ import annotations

import ctypes
import importlib.util
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edgevit.errors import BuildError, MissingError
from edgevit.runtimes.precision import TF32
from edgevit.runtimes.tensorrt.cuda import Device, DeviceBuffer
from edgevit.types import Array

TITLE = "cuBLAS"
VERSIONS = (13, 12, 11)  # of the library, newest first; a driver that is too old for one may have another
TOOLKIT = Path("/usr/local/cuda/lib64")
_WORKSPACE_BYTES = 32 << 20  # NVIDIA's advice for Hopper; with one of its own, a product can be captured in a graph
_SUCCESS = 0
_NOT_SUPPORTED = (8, 15)  # CUBLAS_STATUS_ARCH_MISMATCH, CUBLAS_STATUS_NOT_SUPPORTED
_TRANSPOSED, _AS_IT_IS = 1, 0  # CUBLAS_OP_T, CUBLAS_OP_N
_DEFAULT_ALGORITHM = -1  # CUBLAS_GEMM_DEFAULT

_Handle, _Pointer = ctypes.c_void_p, ctypes.c_uint64
_MATRIX = (_Pointer, ctypes.c_int, ctypes.c_int)  # address, cudaDataType, leading dimension
_CALLS: dict[str, Sequence[Any]] = {
    "cublasCreate_v2": (ctypes.POINTER(_Handle),),
    "cublasDestroy_v2": (_Handle,),
    "cublasSetStream_v2": (_Handle, _Handle),
    "cublasSetWorkspace_v2": (_Handle, _Pointer, ctypes.c_size_t),
    "cublasGemmEx": (
        *(_Handle, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_void_p),
        *(*_MATRIX, *_MATRIX, ctypes.c_void_p, *_MATRIX, ctypes.c_int, ctypes.c_int),
    ),
}


@dataclass(frozen=True, slots=True)
class _Arithmetic:
    """Types of a product: of its factors, of its result, and of the computation."""

    factors: tuple[str, int]  # NumPy's name, CUDA_R_*
    result: tuple[str, int]
    compute: int  # CUBLAS_COMPUTE_*

    def scale(self, value: int) -> Array:
        """Return a factor of the whole product, in the type that cuBLAS reads it in."""
        return np.array([value], self.result[0])


_FLOAT, _HALF, _INT8, _INT32 = ("float32", 0), ("float16", 2), ("int8", 3), ("int32", 10)
_ARITHMETIC: Mapping[str, _Arithmetic] = {
    "fp32": _Arithmetic(_FLOAT, _FLOAT, 68),  # CUBLAS_COMPUTE_32F, which is not TF32
    TF32: _Arithmetic(_FLOAT, _FLOAT, 77),  # CUBLAS_COMPUTE_32F_FAST_TF32
    "fp16": _Arithmetic(_HALF, _HALF, 64),  # CUBLAS_COMPUTE_16F: sums in fp16 are never slower than in fp32
    "int8": _Arithmetic(_INT8, _INT32, 72),  # CUBLAS_COMPUTE_32I
}


class Cublas:
    """A cuBLAS handle that works on a device's stream. To be closed before the device.

    Raises MissingError, with the reason, if no version of the library works here.
    """

    def __init__(self, device: Device) -> None:
        self._handle = _Handle()
        with ExitStack() as stack:
            self._library = _open(self._handle)
            stack.callback(self._call, "cublasDestroy_v2", self._handle)
            workspace = device.allocate(_WORKSPACE_BYTES)
            stack.callback(workspace.free)
            self._call("cublasSetStream_v2", self._handle, device.stream)
            self._call("cublasSetWorkspace_v2", self._handle, workspace.address, _WORKSPACE_BYTES)
            self._device = device
            self._stack = stack.pop_all()

    def product(self, shape: tuple[int, int, int], precision: str) -> Product | None:
        """Return the product of two random matrices of `shape`, (M, K, N); None if cuBLAS has none in `precision`."""
        arithmetic = _ARITHMETIC.get(precision)
        return None if arithmetic is None else Product(self, self._device, shape, arithmetic)

    def close(self) -> None:
        self._stack.close()

    def multiply(self, product: Product) -> bool:
        """Enqueue a product on the device's stream; return False if this GPU does not support its types."""
        rows, inner, columns = product.shape
        types = product.arithmetic
        # cuBLAS stores columns: it computes the transposed product, with the weight as (N, K), which int8 needs.
        status = self._library.cublasGemmEx(
            *(self._handle, _TRANSPOSED, _AS_IT_IS, columns, rows, inner, product.one.ctypes.data),
            *(product.weight.address, types.factors[1], inner),
            *(product.left.address, types.factors[1], inner, product.zero.ctypes.data),
            *(product.result.address, types.result[1], columns, types.compute, _DEFAULT_ALGORITHM),
        )
        if status not in (_SUCCESS, *_NOT_SUPPORTED):
            raise _error("cublasGemmEx", status)
        return bool(status == _SUCCESS)

    def _call(self, name: str, *arguments: Any) -> None:
        status = getattr(self._library, name)(*arguments)
        if status != _SUCCESS:
            raise _error(name, status)


class Product:
    """A matrix product, (M, K) times the transposed of (N, K), with its matrices on the device."""

    def __init__(self, cublas: Cublas, device: Device, shape: tuple[int, int, int], arithmetic: _Arithmetic) -> None:
        rows, inner, columns = shape
        self._cublas, self.shape, self.arithmetic = cublas, shape, arithmetic
        self.one, self.zero = arithmetic.scale(1), arithmetic.scale(0)
        generator = np.random.default_rng(0)  # a GPU takes less power, and has a higher clock, on constant matrices
        self.factors = tuple(_random(generator, (size, inner), arithmetic.factors[0]) for size in (rows, columns))
        self._buffers: list[DeviceBuffer] = []
        with ExitStack() as stack:
            stack.callback(self.free)
            self.left, self.weight = (self._buffer(device, matrix.nbytes) for matrix in self.factors)
            self.result = self._buffer(device, rows * columns * np.dtype(arithmetic.result[0]).itemsize)
            self.left.upload(self.factors[0])
            self.weight.upload(self.factors[1])
            device.synchronize()
            stack.pop_all()

    def enqueue(self) -> bool:
        """Enqueue the product on the device's stream; return False if this GPU does not support its types."""
        return self._cublas.multiply(self)

    def free(self) -> None:
        while self._buffers:
            self._buffers.pop().free()

    def _buffer(self, device: Device, size_bytes: int) -> DeviceBuffer:
        self._buffers.append(device.allocate(size_bytes))
        return self._buffers[-1]


def _random(generator: np.random.Generator, shape: tuple[int, int], dtype: str) -> Array:
    if dtype == "int8":
        return generator.integers(-127, 128, shape, np.int8)
    return generator.uniform(-1, 1, shape).astype(dtype)


def _open(handle: ctypes.c_void_p) -> Any:
    """Create a cuBLAS handle, and return its library. Raises MissingError if no version works here."""
    problem = "not found"
    for path in _candidates():
        library = _load(path)
        if library is None:
            continue
        status = library.cublasCreate_v2(ctypes.byref(handle))
        if status == _SUCCESS:
            return library
        problem = f"{path} does not start: status {status}"
    raise MissingError(
        f"{TITLE} multiplies the matrices of a GPU's limit: {problem}; install it from the CUDA toolkit, or with pip: "
        "nvidia-cublas-cu12"
    )


def _load(path: str) -> Any:
    """Load a library; None if it is absent, or older than the functions used here."""
    try:
        library = ctypes.CDLL(path)
        for name, types in _CALLS.items():
            call = getattr(library, name)
            call.argtypes, call.restype = list(types), ctypes.c_int
    except (OSError, AttributeError):
        return None
    return library


def _candidates() -> Iterator[str]:
    """Yield names and paths of cuBLAS: as the system finds it, in the CUDA toolkit, and beside Python packages."""
    names = [f"libcublas.so.{version}" for version in VERSIONS]
    yield from names
    folders = [TOOLKIT, *_package_folders("nvidia", "*/lib"), *_package_folders("torch", "lib")]
    yield from (str(folder / name) for name in names for folder in folders if (folder / name).exists())


def _package_folders(package: str, pattern: str) -> list[Path]:
    """Return the folders of a package, which is not imported, that match."""
    found = importlib.util.find_spec(package)
    places = [] if found is None else found.submodule_search_locations or []
    return [folder for place in places for folder in sorted(Path(place).glob(pattern))]


def _error(name: str, status: int) -> BuildError:
    return BuildError(f"{TITLE} failed ({name}: {status}); leave --roofline out")
