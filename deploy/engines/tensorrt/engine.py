"""Run engines of TensorRT 10 and 11 and of TensorRT-RTX on this machine's GPU."""

from __future__ import annotations

import itertools
import json
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from deploy.engines.base import Engine, TensorSpec, check_threads
from deploy.engines.sidecar import check_compatible, read_engine
from deploy.engines.tensorrt.building import PRODUCTS, import_api, last_error, make_logger
from deploy.engines.tensorrt.cuda import Cuda
from deploy.errors import DeployError

_DTYPES = {
    "FLOAT": "float32",
    "HALF": "float16",
    "INT64": "int64",
    "INT32": "int32",
    "INT8": "int8",
    "UINT8": "uint8",
    "BOOL": "bool",
}


class TensorRtEngine(Engine):
    """An engine file on the current GPU; threads take turns, and each run is one pass through one CUDA stream.

    Args:
        path: the engine; it is checked against its sidecar before anything is loaded.
        threads: has no effect on a GPU; invalid values are refused as everywhere.
        api: the API object; by default the package that the sidecar names is imported.
        cuda: ``cuda.bindings.runtime`` or an object with its functions; by default it is imported.
        sha256: the hash that the sidecar must name.

    Raises:
        DeployError: the engine is outdated, foreign, truncated or altered, or the runtime cannot load it.
        MissingDependency: the runtime, the CUDA bindings or a GPU is missing.
    """

    def __init__(
        self, path: Path, *, threads: int = 1, api: Any = None, cuda: Any = None, sha256: str | None = None
    ) -> None:
        check_threads(threads)
        sidecar, content = read_engine(path, sha256)
        self.name = path.name.removesuffix(".engine")
        self.path = path
        self.runtime = sidecar.runtime
        self.precision = sidecar.precision
        self.profile = sidecar.profile
        self._lock = threading.Lock()
        self._context: Any = None
        self._memory: dict[str, tuple[int, int]] = {}
        self._device = Cuda(cuda)
        try:
            trt = import_api(sidecar.runtime) if api is None else api
            here, version = self._device.target, trt.__version__
            check_compatible(path, sidecar, runtime=sidecar.runtime, version=version, target=here)
            self._open(trt, path, content)
        except DeployError:
            self.close()
            raise

    def _open(self, trt: Any, path: Path, content: bytes) -> None:
        self._trt, self._log = trt, make_logger(trt)
        product = f"{PRODUCTS[self.runtime]} {trt.__version__}"
        self._runtime = trt.Runtime(self._log)
        self._engine = self._runtime.deserialize_cuda_engine(content)
        # TensorRT refuses by returning None and writing a line to the log, never by an exception.
        if self._engine is None:
            raise DeployError(
                f"{product} cannot load {path.name} ({last_error(self._log)}); build it again on this machine."
            )
        context = self._engine.create_execution_context()
        if context is None:
            raise DeployError(f"{product} has no memory to run {path.name} in ({last_error(self._log)}); free some.")
        names = [self._engine.get_tensor_name(i) for i in range(self._engine.num_io_tensors)]
        given = {name for name in names if self._engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT}
        self.inputs = {name: self._spec(name) for name in names if name in given}
        self.outputs = {name: self._spec(name) for name in names if name not in given}
        self._context = context

    def _run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        with self._lock:
            return self._execute(self._open_context(), feeds)

    def run_apart(self, feeds: Mapping[str, np.ndarray]) -> tuple[float, float, float]:
        """Run once and return the milliseconds of copying in, of the network and of copying out.

        Raises:
            DeployError: the feeds do not fit, or the engine is closed.
        """
        self._check(feeds)
        marks = [time.perf_counter()]

        def wait() -> None:
            self._device.synchronize()
            marks.append(time.perf_counter())

        with self._lock:
            self._execute(self._open_context(), feeds, between=wait)
        copied_in, ran, copied_out = (1e3 * (end - start) for start, end in itertools.pairwise(marks))
        return copied_in, ran, copied_out

    def layers(self) -> list[dict[str, Any]]:
        """Return what the engine inspector tells of each layer, in order: names, shapes, types, chosen kernels.

        Raises:
            DeployError: the engine is closed.
        """
        with self._lock:
            self._open_context()
            inspector = self._engine.create_engine_inspector()
            text = inspector.get_engine_information(self._trt.LayerInformationFormat.JSON)
        # In an engine without details a layer is a bare name.
        return [one if isinstance(one, dict) else {"Name": one} for one in json.loads(text)["Layers"]]

    def layer_times(self, feeds: Mapping[str, np.ndarray], *, runs: int = 10) -> dict[str, float]:
        """Return the median milliseconds of each layer over ``runs`` runs on ``feeds``, in the order of execution.

        Raises:
            DeployError: the feeds do not fit, ``runs`` is under 1, or the engine is closed.
        """
        if runs < 1:
            raise DeployError(f"runs is {runs}; give 1 or more.")
        self._check(feeds)
        profiler = _profiler(self._trt)
        with self._lock:
            self._open_context()
            # A context of its own, for a profiled one waits after every layer from then on.
            context = self._engine.create_execution_context()
            if context is None:
                raise DeployError(f"{self.name} has no memory for a profiled run ({last_error(self._log)}); free some.")
            context.profiler = profiler
            for _ in range(runs):
                self._execute(context, feeds)
        return {name: float(np.median(times)) for name, times in profiler.times.items()}

    def close(self) -> None:
        with self._lock:
            self._context = self._engine = self._runtime = None
            self._memory.clear()
            self._device.close()

    def _open_context(self) -> Any:
        if self._context is None:
            raise DeployError(f"{self.name} is closed; load it again before running it.")
        return self._context

    def _execute(
        self, context: Any, feeds: Mapping[str, np.ndarray], between: Callable[[], None] | None = None
    ) -> dict[str, np.ndarray]:
        """Enqueue the copies in, the network and the copies out, calling ``between`` after each; wait for them."""
        arrays = {name: np.ascontiguousarray(feeds[name]) for name in self.inputs}
        for name, array in arrays.items():
            least, _, most = (tuple(dims) for dims in self._engine.get_tensor_profile_shape(name, 0))
            if not least[0] <= array.shape[0] <= most[0]:
                raise DeployError(
                    f"{self.name} takes batches of {least[0]} to {most[0]} in {name!r} but was given "
                    f"{array.shape[0]}; split the batch, or build with another profile."
                )
            if not context.set_input_shape(name, array.shape):
                raise DeployError(f"{self.name} refuses {list(array.shape)} for {name!r} ({last_error(self._log)}).")
            self._device.upload(self._address(name, array.nbytes), array)
        if between is not None:
            between()
        results = {
            name: np.empty(tuple(context.get_tensor_shape(name)), self.outputs[name].dtype) for name in self.outputs
        }
        for name, array in results.items():
            self._address(name, array.nbytes)
        for name, (address, _) in self._memory.items():
            context.set_tensor_address(name, address)
        if not context.execute_async_v3(self._device.stream):
            raise DeployError(f"{PRODUCTS[self.runtime]} could not run {self.name} ({last_error(self._log)}).")
        if between is not None:
            between()
        for name, array in results.items():
            self._device.download(self._memory[name][0], array)
        self._device.synchronize()
        if between is not None:
            between()
        return results

    def _address(self, name: str, size: int) -> int:
        """Return the device address of ``size`` bytes for tensor ``name``; its memory only grows."""
        address, capacity = self._memory.get(name, (0, -1))
        if capacity < size:
            if capacity >= 0:
                self._device.free(address)
            address = self._device.allocate(size)
            self._memory[name] = (address, size)
        return address

    def _spec(self, name: str) -> TensorSpec:
        kind = self._engine.get_tensor_dtype(name).name
        if kind not in _DTYPES:
            raise DeployError(
                f"{self.name} has the tensor {name!r} of type {kind}, which NumPy lacks; export with float32."
            )
        shape = tuple(self._engine.get_tensor_shape(name))
        return TensorSpec(_DTYPES[kind], tuple(None if size == -1 else int(size) for size in shape))


def load(path: Path, *, threads: int = 1, sha256: str | None = None) -> TensorRtEngine:
    """Load the engine at ``path``; see ``TensorRtEngine``."""
    return TensorRtEngine(path, threads=threads, sha256=sha256)


def _profiler(trt: Any) -> Any:
    class Profiler(trt.IProfiler):
        def __init__(self) -> None:
            super().__init__()
            self.times: dict[str, list[float]] = {}

        def report_layer_time(self, layer_name: str, ms: float) -> None:
            self.times.setdefault(layer_name, []).append(ms)

    return Profiler()
