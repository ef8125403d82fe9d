"""Engines that ONNX Runtime executes on the CPU."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from deploy.engines.base import Engine, TensorSpec, first_line, precision_of
from deploy.errors import DeployError

_DTYPES = {
    "tensor(float)": "float32",
    "tensor(float16)": "float16",
    "tensor(double)": "float64",
    "tensor(int64)": "int64",
    "tensor(int32)": "int32",
    "tensor(int8)": "int8",
    "tensor(uint8)": "uint8",
    "tensor(bool)": "bool",
}


class OnnxRuntimeEngine(Engine):
    """An ONNX file on ONNX Runtime's CPU provider, every graph optimisation on.

    Args:
        path: an ONNX file.
        threads: how many threads one run may use; 0 lets ONNX Runtime choose.

    Raises:
        DeployError: the file is missing, is not an ONNX model, or uses an operator the runtime lacks.
    """

    runtime = "onnxruntime"

    def __init__(self, path: Path, *, threads: int = 1) -> None:
        import onnxruntime as ort

        if not path.is_file():
            raise DeployError(f"There is no ONNX file at {path}; check the path or export the model first.")
        if threads < 0:
            raise DeployError(f"threads is {threads}; give 0 (let the runtime choose) or more.")
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
        options.log_severity_level = 3
        try:
            session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # ONNX Runtime's exceptions share no public base class
            raise DeployError(
                f"ONNX Runtime {ort.__version__} cannot load {path} ({first_line(error)}); export it again."
            ) from error
        self.name = path.name.removesuffix(".onnx")
        self.path = path
        self.precision = precision_of(path, session.get_modelmeta().custom_metadata_map)
        self.inputs = {node.name: _spec(node.type, node.shape) for node in session.get_inputs()}
        self.outputs = {node.name: _spec(node.type, node.shape) for node in session.get_outputs()}
        self._session: ort.InferenceSession | None = session

    def _run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        if self._session is None:
            raise DeployError(f"{self.name} is closed; load it again before running it.")
        names = list(self.outputs)
        try:
            values = self._session.run(names, dict(feeds))
        except Exception as error:  # ONNX Runtime's exceptions share no public base class
            raise DeployError(f"ONNX Runtime could not run {self.name} ({first_line(error)}).") from error
        return dict(zip(names, values, strict=True))

    def close(self) -> None:
        self._session = None


def load(path: Path, *, threads: int = 1) -> OnnxRuntimeEngine:
    """Load ``path`` with ONNX Runtime; see :class:`OnnxRuntimeEngine`."""
    return OnnxRuntimeEngine(path, threads=threads)


def _spec(kind: str, shape: list[int | str | None]) -> TensorSpec:
    if kind not in _DTYPES:
        raise DeployError(f"The model has an input or output of type {kind}; export it with one of {sorted(_DTYPES)}.")
    return TensorSpec(_DTYPES[kind], tuple(d if isinstance(d, int) else None for d in shape))
