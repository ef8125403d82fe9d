"""Wrap the few CUDA calls that an engine needs (a stream, memory, copies), through NVIDIA's Python bindings."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import numpy as np

from deploy.engines.base import Closeable
from deploy.errors import DeployError, MissingDependency


class Cuda(Closeable):
    """One stream on the current GPU, and the device memory allocated through it.

    Args:
        api: ``cuda.bindings.runtime`` or an object with its functions; by default it is imported.

    Raises:
        MissingDependency: the bindings are not installed, or find no usable GPU.
    """

    def __init__(self, api: Any = None) -> None:
        self._api = _bindings() if api is None else api
        self._blocks: dict[int, int] = {}
        self._stream: Any = None
        error, count = self._api.cudaGetDeviceCount()
        if int(error) or not count:
            raise MissingDependency(
                "A TensorRT engine runs on an NVIDIA GPU and there is none that can be used here "
                f"({_name(error) if int(error) else '0 devices'}); load the ONNX file it was built from instead."
            )
        (self._stream,) = self._call("cudaStreamCreate")

    @property
    def stream(self) -> int:
        """The stream's handle."""
        return int(self._stream)

    @property
    def target(self) -> str:
        """The compute capability of the current GPU, such as ``sm86``."""
        (device,) = self._call("cudaGetDevice")
        names = self._api.cudaDeviceAttr
        (major,) = self._call("cudaDeviceGetAttribute", names.cudaDevAttrComputeCapabilityMajor, device)
        (minor,) = self._call("cudaDeviceGetAttribute", names.cudaDevAttrComputeCapabilityMinor, device)
        return f"sm{major}{minor}"

    def allocate(self, size: int) -> int:
        """Allocate ``size`` bytes of device memory, at least one, and return their address."""
        (address,) = self._call("cudaMalloc", max(size, 1))
        self._blocks[int(address)] = size
        return int(address)

    def free(self, address: int) -> None:
        """Free memory from ``allocate``."""
        if self._blocks.pop(address, None) is not None:
            self._call("cudaFree", address)

    def upload(self, address: int, array: np.ndarray) -> None:
        """Enqueue a copy of a contiguous array to the device; the array must live until ``synchronize``."""
        kind = self._api.cudaMemcpyKind.cudaMemcpyHostToDevice
        self._call("cudaMemcpyAsync", address, array.ctypes.data, array.nbytes, kind, self._stream)

    def download(self, address: int, array: np.ndarray) -> None:
        """Enqueue a copy from the device into a contiguous array, which is filled after ``synchronize``."""
        kind = self._api.cudaMemcpyKind.cudaMemcpyDeviceToHost
        self._call("cudaMemcpyAsync", array.ctypes.data, address, array.nbytes, kind, self._stream)

    def synchronize(self) -> None:
        """Wait until everything in the stream is done."""
        self._call("cudaStreamSynchronize", self._stream)

    def close(self) -> None:
        """Free the memory and the stream; closing twice is harmless."""
        for address in list(self._blocks):
            self.free(address)
        if self._stream is not None:
            self._call("cudaStreamDestroy", self._stream)
            self._stream = None

    def _call(self, function: str, *arguments: Any) -> tuple[Any, ...]:
        error, *values = getattr(self._api, function)(*arguments)
        if int(error):
            raise DeployError(
                f"CUDA's {function} failed ({_name(error)}); check the GPU with nvidia-smi and its free memory."
            )
        return tuple(values)


def _bindings() -> Any:
    try:
        return import_module("cuda.bindings.runtime")
    except ImportError as error:
        raise MissingDependency(
            "Running a TensorRT engine needs the package cuda-bindings, which cannot be imported here; get it with "
            "`pip install 'niwaki-vision[tensorrt]'` or `pip install 'niwaki-vision[tensorrt-rtx]'`."
        ) from error


def _name(error: Any) -> str:
    return str(getattr(error, "name", error))
