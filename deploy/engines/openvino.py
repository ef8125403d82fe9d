"""Run ONNX files with OpenVINO on the CPU."""

from __future__ import annotations

import io
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from deploy.engines.base import Engine, TensorSpec, check_threads, first_line, precision_of
from deploy.engines.unreported import unreported
from deploy.errors import DeployError, MissingDependency
from deploy.onnx.soundness import check_inputs
from deploy.onnx.wire import read_model


class OpenVinoEngine(Engine):
    """An ONNX file on OpenVINO's CPU device, tuned for the latency of one request.

    Args:
        path: an ONNX file.
        threads: how many threads one run may use; 0 takes as many as cores may be used.
        sha256: the hash that the file must have.
        profile: whether OpenVINO counts what each layer takes.

    Raises:
        DeployError: the file is missing or OpenVINO cannot compile it.
        MissingDependency: OpenVINO is not installed.
    """

    runtime = "openvino"

    def __init__(self, path: Path, *, threads: int = 1, sha256: str | None = None, profile: bool = False) -> None:
        try:
            with unreported():
                import openvino as ov
        except ImportError as error:
            raise MissingDependency(
                "The package openvino cannot be imported here; get it with `uv sync --extra openvino` or "
                "`pip install 'niwaki-vision[openvino]'`."
            ) from error
        # OpenVINO would try other formats on a file that is no ONNX, and complain on standard error.
        data, wire = read_model(path, sha256)
        check_inputs(path, data)
        threads = check_threads(threads)
        # By default OpenVINO computes in bf16 where the CPU has it, whatever the file says.
        options = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32"}
        options["INFERENCE_NUM_THREADS"] = str(threads)
        if profile:
            options["PERF_COUNT"] = "YES"
        try:
            core = ov.Core()
            # Tensors in another file are found from the path alone.
            model = core.read_model(path if wire.outside else io.BytesIO(data))
            self.precision = precision_of(path, data, _metadata(model))
            # Compiling adds the names of inner tensors to inputs and outputs, such as those beside a cast.
            taken, names = ([port.get_any_name() for port in ports] for ports in (model.inputs, model.outputs))
            compiled = core.compile_model(model, "CPU", options)
        except RuntimeError as error:
            raise DeployError(f"OpenVINO cannot load {path} ({first_line(error)}); export it again.") from error
        self.name = path.name.removesuffix(".onnx")
        self.path = path
        self.inputs = {name: _spec(port) for name, port in zip(taken, compiled.inputs, strict=True)}
        self.outputs = {name: _spec(port) for name, port in zip(names, compiled.outputs, strict=True)}
        self._lock = threading.Lock()
        self._compiled: Any = compiled
        self._request: Any = compiled.create_infer_request()

    def _run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        # A busy request refuses a second run, so threads take turns.
        with self._lock:
            if self._request is None:
                raise DeployError(f"{self.name} is closed; load it again before running it.")
            try:
                values = self._request.infer(dict(feeds), share_inputs=True, share_outputs=False)
            except RuntimeError as error:
                raise DeployError(f"OpenVINO could not run {self.name} ({first_line(error)}).") from error
            return {name: values[name] for name in self.outputs}

    def layer_counts(self) -> list[Any]:
        """Return OpenVINO's own counts of the last run, one for each layer, where it was asked to profile."""
        with self._lock:
            if self._request is None:
                raise DeployError(f"{self.name} is closed; load it again before running it.")
            return list(self._request.get_profiling_info())

    def layer_shapes(self) -> dict[str, tuple[list[tuple[int, ...]], list[tuple[int, ...]]]]:
        """Return the shapes that each layer of the compiled network reads and makes, where they are fixed, by name."""
        shapes = {}
        for layer in self._compiled.get_runtime_model().get_ordered_ops():
            ends = [[port.get_partial_shape() for port in ports] for ports in (layer.inputs(), layer.outputs())]
            reads, makes = ([tuple(s.to_shape()) for s in end if s.is_static] for end in ends)
            shapes[layer.get_friendly_name()] = (reads, makes)
        return shapes

    def close(self) -> None:
        with self._lock:
            self._request = self._compiled = None


def load(path: Path, *, threads: int = 1, sha256: str | None = None) -> OpenVinoEngine:
    """Load ``path`` with OpenVINO; see ``OpenVinoEngine``."""
    return OpenVinoEngine(path, threads=threads, sha256=sha256)


def _spec(port: Any) -> TensorSpec:
    shape = tuple(d.get_length() if d.is_static else None for d in port.get_partial_shape())
    return TensorSpec(np.dtype(port.get_element_type().to_dtype()).name, shape)


def _metadata(model: Any) -> dict[str, str]:
    if not model.has_rt_info(["framework"]):
        return {}
    return {key: str(value) for key, value in model.get_rt_info(["framework"]).value.items()}
