"""Matrix products by cuBLAS, with a fake library that multiplies in this process's memory."""

from __future__ import annotations

import ctypes
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from edgevit.errors import BuildError, MissingError
from edgevit.runtimes.tensorrt import cublas, cuda
from edgevit.runtimes.tensorrt.cublas import Cublas
from edgevit.types import Array

SHAPE = (3, 8, 4)  # M, K, N
TYPES = {0: np.float32, 2: np.float16, 3: np.int8, 10: np.int32}


class Library:
    """cuBLAS, as its reference describes it: matrices of columns."""

    def __init__(self) -> None:
        self.statuses: dict[str, int] = {}  # of functions that fail
        self.handles = 0
        self.stream = self.workspace = 0
        self.compute: list[int] = []

    def answer(self, name: str, arguments: tuple[Any, ...]) -> int:
        if status := self.statuses.get(name, 0):
            return status
        if name == "cublasCreate_v2":
            self.handles += 1
        elif name == "cublasDestroy_v2":
            self.handles -= 1
        elif name == "cublasSetStream_v2":
            self.stream, self.workspace = arguments[1], 0  # which resets the workspace
        elif name == "cublasSetWorkspace_v2":
            self.workspace = arguments[2]
        else:
            self._multiply(*arguments[1:])
        return 0

    def _multiply(
        self, first_is_transposed: int, second_is_transposed: int, m: int, n: int, k: int, *rest: Any
    ) -> None:
        alpha, a, a_type, lda, b, b_type, ldb, beta, c, c_type, ldc, compute, algorithm = rest
        assert (first_is_transposed, second_is_transposed, algorithm) == (1, 0, -1)
        first = _columns(a, a_type, rows=lda, columns=m)[:k].astype(np.float64)
        second = _columns(b, b_type, rows=ldb, columns=n)[:k].astype(np.float64)
        scale = np.ctypeslib.as_array((ctypes.c_uint8 * 4).from_address(alpha))[: np.dtype(TYPES[c_type]).itemsize]
        assert scale.view(TYPES[c_type])[0] == 1
        assert not np.ctypeslib.as_array((ctypes.c_uint8 * 2).from_address(beta)).any()
        _columns(c, c_type, rows=ldc, columns=n)[:m] = first.T @ second
        self.compute.append(compute)


def _columns(address: int, kind: int, *, rows: int, columns: int) -> Array:
    """Return the matrix of columns at an address."""
    size = rows * columns * np.dtype(TYPES[kind]).itemsize
    content = np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(address))
    return content.view(TYPES[kind]).reshape(columns, rows).T


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch) -> Library:
    fake = Library()
    functions = {
        name: ctypes.CFUNCTYPE(ctypes.c_int, *types)(lambda *arguments, name=name: fake.answer(name, arguments))
        for name, types in cublas._CALLS.items()
    }
    monkeypatch.setattr(cublas, "_load", lambda path: SimpleNamespace(**functions) if path.endswith(".12") else None)
    return fake


@pytest.mark.parametrize(("precision", "compute"), [("fp32", 68), ("tf32", 77), ("fp16", 64), ("int8", 72)])
def test_a_product_is_that_of_its_matrices(
    library: Library, fake_device: cuda.Device, precision: str, compute: int
) -> None:
    handle = Cublas(fake_device)
    assert library.stream == fake_device.stream and library.workspace == 32 << 20
    product = handle.product(SHAPE, precision)
    assert product is not None and product.enqueue()
    left, weight = (matrix.astype(np.float64) for matrix in product.factors)
    result = np.empty((SHAPE[0], SHAPE[2]), product.arithmetic.result[0])
    product.result.download(result)
    np.testing.assert_allclose(result, left @ weight.T, rtol=2e-3, atol=2e-3)
    assert library.compute == [compute]
    product.free()
    product.free()  # a second time does nothing
    handle.close()
    assert library.handles == 0


def test_a_precision_that_cublas_does_not_have_is_none(library: Library, fake_device: cuda.Device) -> None:
    handle = Cublas(fake_device)
    assert handle.product(SHAPE, "unknown") is None
    for status, supported in ((8, False), (15, False), (0, True)):  # as old GPUs answer to int8
        library.statuses["cublasGemmEx"] = status
        product = handle.product(SHAPE, "int8")
        assert product is not None and product.enqueue() is supported
        product.free()
    library.statuses["cublasGemmEx"] = 13
    product = handle.product(SHAPE, "int8")
    assert product is not None
    with pytest.raises(BuildError, match="cublasGemmEx: 13"):
        product.enqueue()
    product.free()
    handle.close()


def test_a_library_that_does_not_start_is_a_missing_error_and_leaves_nothing(
    library: Library, fake_device: cuda.Device
) -> None:
    library.statuses["cublasCreate_v2"] = 1
    with pytest.raises(MissingError, match=r"libcublas.so.12 does not start: status 1; install it"):
        Cublas(fake_device)
    library.statuses = {"cublasSetWorkspace_v2": 7}
    with pytest.raises(BuildError, match="cublasSetWorkspace_v2: 7"):
        Cublas(fake_device)
    assert library.handles == 0


def test_a_missing_library_is_a_missing_error(fake_device: cuda.Device, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cublas, "_candidates", lambda: iter(["/nowhere/libcublas.so.12"]))
    with pytest.raises(MissingError, match="cuBLAS multiplies .* not found; install it"):
        Cublas(fake_device)


def test_the_library_is_looked_for_in_the_toolkit_and_in_nvidias_packages(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    toolkit, nvidia, pytorch = tmp_path / "toolkit", tmp_path / "nvidia" / "cublas" / "lib", tmp_path / "torch" / "lib"
    for folder in (toolkit, nvidia, pytorch):
        folder.mkdir(parents=True)
        (folder / "libcublas.so.12").touch()
    (tmp_path / "torch" / "__init__.py").write_text("raise SystemExit")  # it is not imported
    monkeypatch.setattr("sys.path", [str(tmp_path)])
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    monkeypatch.setattr(cublas, "TOOLKIT", toolkit)
    found = list(cublas._candidates())
    assert found[:3] == ["libcublas.so.13", "libcublas.so.12", "libcublas.so.11"]  # as the system finds them
    assert found[3:] == [str(folder / "libcublas.so.12") for folder in (toolkit, nvidia, pytorch)]
