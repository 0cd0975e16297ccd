"""The few calls of CUDA's driver that an engine needs: a device, a stream, buffers on the device, copies to and fro.

Through ctypes and the driver's own library, which is wherever a GPU is: nothing to install. Calls and constants by
NVIDIA's CUDA Driver API reference.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from types import TracebackType
from typing import Any

import numpy as np

from edgevit.errors import BuildError, MissingError
from edgevit.types import Array

DRIVER = "libcuda.so.1"
_CAPABILITY_MAJOR, _CAPABILITY_MINOR = 75, 76  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_*
_SUCCESS = 0
# Not initialised, a stub in the driver's place, driver too old, no device, no such device, a driver that is not the
# kernel's own, one that does not fit the GPU.
_ABSENT = frozenset({3, 34, 35, 100, 101, 803, 804})

_Pointer = ctypes.c_uint64  # CUdeviceptr
_Handle = ctypes.c_void_p  # CUcontext, CUstream
# Argument types of every call used here; all return CUresult. With no types, ctypes would cut pointers to 32 bits.
_CALLS: dict[str, Sequence[Any]] = {
    "cuInit": (ctypes.c_uint,),
    "cuGetErrorString": (ctypes.c_int, ctypes.POINTER(ctypes.c_char_p)),
    "cuDeviceGet": (ctypes.POINTER(ctypes.c_int), ctypes.c_int),
    "cuDeviceGetName": (ctypes.c_char_p, ctypes.c_int, ctypes.c_int),
    "cuDeviceGetAttribute": (ctypes.POINTER(ctypes.c_int), ctypes.c_int, ctypes.c_int),
    "cuDevicePrimaryCtxRetain": (ctypes.POINTER(_Handle), ctypes.c_int),
    "cuDevicePrimaryCtxRelease_v2": (ctypes.c_int,),
    "cuCtxSetCurrent": (_Handle,),
    "cuStreamCreate": (ctypes.POINTER(_Handle), ctypes.c_uint),
    "cuStreamSynchronize": (_Handle,),
    "cuStreamDestroy_v2": (_Handle,),
    "cuMemAlloc_v2": (ctypes.POINTER(_Pointer), ctypes.c_size_t),
    "cuMemFree_v2": (_Pointer,),
    "cuMemcpyHtoDAsync_v2": (_Pointer, ctypes.c_void_p, ctypes.c_size_t, _Handle),
    "cuMemcpyDtoHAsync_v2": (ctypes.c_void_p, _Pointer, ctypes.c_size_t, _Handle),
}


def has_gpu() -> bool:
    """Whether there is a GPU here; nothing is set up on it."""
    try:
        driver = _load_driver()
    except MissingError:
        return False
    found = ctypes.c_int()
    return bool(driver.cuInit(0) == _SUCCESS and driver.cuDeviceGet(ctypes.byref(found), 0) == _SUCCESS)


class Device:
    """A GPU and one stream on it. It shares the context in which CUDA's runtime, and so TensorRT, works.

    Raises MissingError where there is no driver or no GPU. Use it in a `with` block, or close it.
    """

    def __init__(self, index: int = 0) -> None:
        self._driver = _load_driver()
        self._context, self._stream = _Handle(), _Handle()
        self._handle = ctypes.c_int()
        name = ctypes.create_string_buffer(256)
        self.call("cuInit", 0)
        self.call("cuDeviceGet", ctypes.byref(self._handle), index)
        self.call("cuDeviceGetName", name, len(name), self._handle)
        self.name = name.value.decode()
        self.compute_capability = 10 * self.attribute(_CAPABILITY_MAJOR) + self.attribute(_CAPABILITY_MINOR)
        self.call("cuDevicePrimaryCtxRetain", ctypes.byref(self._context), self._handle)
        self.activate()
        self.call("cuStreamCreate", ctypes.byref(self._stream), 0)

    @property
    def stream(self) -> int:
        """The stream's handle, as TensorRT takes it."""
        return self._stream.value or 0

    def call(self, name: str, *arguments: Any, types: Sequence[Any] | None = None) -> None:
        """Calls the driver's function `name`; `types` are those of its arguments, for one that this file does not use.

        Raises MissingError where it finds no GPU, BuildError with the driver's own words where it fails otherwise.
        """
        function = getattr(self._driver, name)
        if types is not None and not function.argtypes:  # once: this stands in the path of an inference
            function.argtypes, function.restype = list(types), ctypes.c_int
        status = function(*arguments)
        if status == _SUCCESS:
            return
        text = ctypes.c_char_p()
        self._driver.cuGetErrorString(status, ctypes.byref(text))
        reason = f"{(text.value or b'unknown error').decode()} ({name}: {status})"
        if status in _ABSENT:
            raise MissingError(f"no NVIDIA GPU can be used here: {reason}; run this on a machine that has one")
        raise BuildError(f"the GPU failed: {reason}; see that nothing else fills its memory: nvidia-smi")

    def attribute(self, number: int) -> int:
        """What the driver tells of the device under CU_DEVICE_ATTRIBUTE_*'s number."""
        value = ctypes.c_int()
        self.call("cuDeviceGetAttribute", ctypes.byref(value), number, self._handle)
        return value.value

    def activate(self) -> None:
        """Makes this device the calling thread's own: CUDA keeps that a thread."""
        self.call("cuCtxSetCurrent", self._context)

    def allocate(self, size_bytes: int) -> DeviceBuffer:
        """A buffer on the device, uninitialised. Raises BuildError where the device's memory does not hold it."""
        return DeviceBuffer(self, size_bytes)

    def synchronize(self) -> None:
        """Waits for all that was put on the stream. Raises BuildError where any of it failed."""
        self.call("cuStreamSynchronize", self._stream)

    def close(self) -> None:
        """Gives the stream and the context back; buffers must be freed before."""
        if self._context:
            self.activate()
            if self._stream:
                self.call("cuStreamDestroy_v2", self._stream)
            self.call("cuDevicePrimaryCtxRelease_v2", self._handle)
        self._context, self._stream = _Handle(), _Handle()

    def __enter__(self) -> Device:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class DeviceBuffer:
    """Bytes on the device. Copies are put on the device's stream: synchronise before reading what they bring."""

    def __init__(self, device: Device, size_bytes: int) -> None:
        self._device = device
        self.size_bytes = size_bytes
        pointer = _Pointer()
        device.call("cuMemAlloc_v2", ctypes.byref(pointer), max(size_bytes, 1))
        self.address = pointer.value

    def upload(self, array: Array) -> None:
        """Copies `array`, C-contiguous, to the start of the buffer; it must live until the stream has run."""
        self._check(array)
        self._device.call("cuMemcpyHtoDAsync_v2", self.address, array.ctypes.data, array.nbytes, self._device.stream)

    def download(self, array: Array) -> None:
        """Fills `array`, C-contiguous, from the start of the buffer; it holds the bytes once the stream has run."""
        self._check(array)
        self._device.call("cuMemcpyDtoHAsync_v2", array.ctypes.data, self.address, array.nbytes, self._device.stream)

    def free(self) -> None:
        if self.address:
            self._device.call("cuMemFree_v2", self.address)
        self.address = 0

    def _check(self, array: Array) -> None:
        if not array.flags.c_contiguous or array.nbytes > self.size_bytes:
            shape = f"{array.dtype}{list(np.shape(array))}"
            raise BuildError(f"a buffer of {self.size_bytes} bytes does not hold {shape} in one piece; open it again")


def _load_driver() -> ctypes.CDLL:
    try:
        driver = ctypes.CDLL(DRIVER)
    except OSError as error:
        raise MissingError(
            f"no NVIDIA driver here ({DRIVER} is absent), so no GPU to run on; run this on a machine that has one"
        ) from error
    for name, types in _CALLS.items():
        call = getattr(driver, name)
        call.argtypes, call.restype = list(types), ctypes.c_int
    return driver
