"""Minimal CUDA driver bindings: a device, a stream, device buffers and copies.

They call the driver's own library by ctypes, so that there is nothing to install. Functions and constants follow
NVIDIA's CUDA Driver API reference.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from types import TracebackType
from typing import Any
from uuid import UUID

import numpy as np

from edgevit.errors import BuildError, MissingError
from edgevit.types import Array

DRIVER = "libcuda.so.1"
_CAPABILITY_MAJOR, _CAPABILITY_MINOR = 75, 76  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_*
_MULTIPROCESSOR_COUNT = 16  # CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT
# How a thread waits for the GPU: CU_CTX_SCHED_*. Left to itself, CUDA decides by the number of cores and contexts.
_SPIN = 1
_WAITS = {0: "auto", _SPIN: "spin", 2: "yield", 4: "blocking"}
_WAIT_MASK = 7  # CU_CTX_SCHED_MASK
_SUCCESS = 0
_CHECK_DRIVER = "run this on a machine with one, or check the driver: nvidia-smi"
OLD_DRIVER = "update the NVIDIA driver, it is older than the CUDA libraries need"
# Statuses of a GPU that cannot be used, and what to do. CUDA_ERROR_...
_NO_GPU = {
    3: _CHECK_DRIVER,  # NOT_INITIALIZED
    34: "install the driver, this is the stub library of the CUDA toolkit",  # STUB_LIBRARY
    35: OLD_DRIVER,  # INSUFFICIENT_DRIVER
    46: "another process uses it exclusively, or it needs a reset: nvidia-smi",  # DEVICE_UNAVAILABLE
    100: _CHECK_DRIVER,  # NO_DEVICE
    101: _CHECK_DRIVER,  # INVALID_DEVICE
    802: "wait until the system has started; with NVSwitch, start nvidia-fabricmanager",  # SYSTEM_NOT_READY
    803: "reboot, the driver was updated and its kernel module was not",  # SYSTEM_DRIVER_MISMATCH
    804: "use the driver's own CUDA, this GPU has no forward compatibility",  # COMPAT_NOT_SUPPORTED_ON_DEVICE
}
_UNKNOWN = 999  # from cuInit: the driver's kernel module does not work, as after a failed suspend
_RELOAD = "reload the driver's kernel modules, or reboot"

_Pointer = ctypes.c_uint64  # CUdeviceptr
_Handle = ctypes.c_void_p  # CUcontext, CUstream
# Argument types of every function used here; all return CUresult. Without them, ctypes truncates pointers to 32 bits.
_CALLS: dict[str, Sequence[Any]] = {
    "cuInit": (ctypes.c_uint,),
    "cuGetErrorString": (ctypes.c_int, ctypes.POINTER(ctypes.c_char_p)),
    "cuDriverGetVersion": (ctypes.POINTER(ctypes.c_int),),
    "cuDeviceGet": (ctypes.POINTER(ctypes.c_int), ctypes.c_int),
    "cuDeviceGetName": (ctypes.c_char_p, ctypes.c_int, ctypes.c_int),
    "cuDeviceGetAttribute": (ctypes.POINTER(ctypes.c_int), ctypes.c_int, ctypes.c_int),
    "cuDeviceTotalMem_v2": (ctypes.POINTER(ctypes.c_size_t), ctypes.c_int),
    "cuDeviceGetUuid": (ctypes.c_void_p, ctypes.c_int),
    "cuDevicePrimaryCtxSetFlags_v2": (ctypes.c_int, ctypes.c_uint),
    "cuDevicePrimaryCtxGetState": (ctypes.c_int, ctypes.POINTER(ctypes.c_uint), ctypes.POINTER(ctypes.c_int)),
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
    "cuMemcpyDtoDAsync_v2": (_Pointer, _Pointer, ctypes.c_size_t, _Handle),
}


def has_gpu() -> bool:
    """Whether this machine has a usable GPU. Creates no CUDA context."""
    try:
        driver = _load_driver()
    except MissingError:
        return False
    found = ctypes.c_int()
    return bool(driver.cuInit(0) == _SUCCESS and driver.cuDeviceGet(ctypes.byref(found), 0) == _SUCCESS)


def driver_version() -> str | None:
    """Return the CUDA version that the driver supports, such as "12.2"; None without a driver."""
    version = ctypes.c_int()
    try:
        status = _load_driver().cuDriverGetVersion(ctypes.byref(version))
    except MissingError:
        return None
    return f"{version.value // 1000}.{version.value % 1000 // 10}" if status == _SUCCESS else None


class Device:
    """A GPU and one stream on it, in the primary context, which the CUDA runtime and TensorRT use too.

    A thread that waits for the GPU spins, which has the lowest latency and takes a core; trtexec does the same.
    Raises MissingError if there is no driver or no GPU. Use it in a `with` block, or close it.
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
        # A context that is in use already may refuse: `cpu_wait` tells how it waits.
        self._driver.cuDevicePrimaryCtxSetFlags_v2(self._handle, _SPIN)
        self.call("cuDevicePrimaryCtxRetain", ctypes.byref(self._context), self._handle)
        self.activate()
        self.call("cuStreamCreate", ctypes.byref(self._stream), 0)

    @property
    def stream(self) -> int:
        """The stream's handle, as TensorRT expects it."""
        return self._stream.value or 0

    def call(self, name: str, *arguments: Any, types: Sequence[Any] | None = None) -> None:
        """Call the driver's function `name`; `types` are its argument types, for functions not listed in this file.

        Raises MissingError if it finds no GPU, BuildError with the driver's message if it fails otherwise.
        """
        function = getattr(self._driver, name)
        if types is not None and not function.argtypes:  # set once: this runs in every inference
            function.argtypes, function.restype = list(types), ctypes.c_int
        status = function(*arguments)
        if status == _SUCCESS:
            return
        text = ctypes.c_char_p()
        self._driver.cuGetErrorString(status, ctypes.byref(text))
        reason = f"{(text.value or b'unknown error').decode()} ({name}: {status})"
        remedy = _RELOAD if (name, status) == ("cuInit", _UNKNOWN) else _NO_GPU.get(status)
        if remedy is not None:
            raise MissingError(f"no usable NVIDIA GPU: {reason}; {remedy}")
        raise BuildError(f"CUDA error: {reason}; check with nvidia-smi that no other process fills the GPU's memory")

    def attribute(self, number: int) -> int:
        """Return the device attribute with the number of a CU_DEVICE_ATTRIBUTE_* constant."""
        value = ctypes.c_int()
        self.call("cuDeviceGetAttribute", ctypes.byref(value), number, self._handle)
        return value.value

    @property
    def multiprocessors(self) -> int:
        """The number of streaming multiprocessors."""
        return self.attribute(_MULTIPROCESSOR_COUNT)

    @property
    def cpu_wait(self) -> str:
        """How a thread waits for the GPU: "spin", "yield", "blocking", or "auto", in which case CUDA decides."""
        flags, active = ctypes.c_uint(), ctypes.c_int()
        self.call("cuDevicePrimaryCtxGetState", self._handle, ctypes.byref(flags), ctypes.byref(active))
        return _WAITS.get(flags.value & _WAIT_MASK, "unknown")

    @property
    def memory_bytes(self) -> int:
        """The device's total memory in bytes."""
        size = ctypes.c_size_t()
        self.call("cuDeviceTotalMem_v2", ctypes.byref(size), self._handle)
        return size.value

    @property
    def uuid(self) -> str:
        """The device's UUID; empty if it has none, as some Jetsons."""
        content = ctypes.create_string_buffer(16)
        self.call("cuDeviceGetUuid", content, self._handle)
        return str(UUID(bytes=content.raw)) if any(content.raw) else ""

    def activate(self) -> None:
        """Make this device current in the calling thread."""
        self.call("cuCtxSetCurrent", self._context)

    def allocate(self, size_bytes: int) -> DeviceBuffer:
        """Return an uninitialized buffer on the device. Raises BuildError if there is not enough device memory."""
        return DeviceBuffer(self, size_bytes)

    def synchronize(self) -> None:
        """Wait for all work on the stream. Raises BuildError if any of it failed."""
        self.call("cuStreamSynchronize", self._stream)

    def close(self) -> None:
        """Release the stream and the context. Free all buffers before."""
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
    """Bytes on the device. Copies run on the device's stream: synchronize before you read their result."""

    def __init__(self, device: Device, size_bytes: int) -> None:
        self._device = device
        self.size_bytes = size_bytes
        pointer = _Pointer()
        device.call("cuMemAlloc_v2", ctypes.byref(pointer), max(size_bytes, 1))
        self.address = pointer.value

    def upload(self, array: Array) -> None:
        """Copy a C-contiguous array to the start of the buffer; keep the array until the stream is synchronized."""
        self._check(array)
        self._device.call("cuMemcpyHtoDAsync_v2", self.address, array.ctypes.data, array.nbytes, self._device.stream)

    def download(self, array: Array) -> None:
        """Copy the start of the buffer into a C-contiguous array; it is filled once the stream is synchronized."""
        self._check(array)
        self._device.call("cuMemcpyDtoHAsync_v2", array.ctypes.data, self.address, array.nbytes, self._device.stream)

    def copy_from(self, source: DeviceBuffer) -> None:
        """Copy all of a buffer of at most this size, within the device."""
        if source.size_bytes > self.size_bytes:
            raise BuildError(
                f"a buffer of {self.size_bytes} bytes cannot hold {source.size_bytes}; load the engine again"
            )
        stream = self._device.stream
        self._device.call("cuMemcpyDtoDAsync_v2", self.address, source.address, source.size_bytes, stream)

    def free(self) -> None:
        if self.address:
            self._device.call("cuMemFree_v2", self.address)
        self.address = 0

    def _check(self, array: Array) -> None:
        if not array.flags.c_contiguous or array.nbytes > self.size_bytes:
            shape = f"{array.dtype}{list(np.shape(array))}"
            raise BuildError(f"a buffer of {self.size_bytes} bytes cannot hold {shape}; load the engine again")


def _load_driver() -> ctypes.CDLL:
    try:
        driver = ctypes.CDLL(DRIVER)
    except OSError as error:
        raise MissingError(
            f"no NVIDIA driver ({DRIVER} not found); run this on a machine with an NVIDIA GPU"
        ) from error
    for name, types in _CALLS.items():
        call = getattr(driver, name)
        call.argtypes, call.restype = list(types), ctypes.c_int
    return driver
