"""Load an engine, whichever runtime executes it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path
from types import MappingProxyType

from deploy.engines.base import Engine, TensorSpec
from deploy.errors import DeployError

__all__ = ["ENGINES", "Engine", "TensorSpec", "load_engine"]

Loader = Callable[[Path, int, str | None], Engine]


def _loader(module: str, function: str = "load") -> Loader:
    def load(path: Path, threads: int, sha256: str | None) -> Engine:
        # A runtime is imported only when a file needs it: each is an optional package.
        return getattr(import_module(f"deploy.engines.{module}"), function)(path, threads=threads, sha256=sha256)

    return load


ENGINES: Mapping[str, Loader] = MappingProxyType(
    {
        "onnxruntime": _loader("onnxruntime.engine"),
        "onnxruntime_cuda": _loader("onnxruntime.engine", "load_cuda"),
        "onnxruntime_tensorrt": _loader("onnxruntime.engine", "load_tensorrt"),
        "openvino": _loader("openvino"),
        "tensorrt": _loader("tensorrt.engine"),
        "tensorrt_rtx": _loader("tensorrt.engine"),
    }
)
_RUNTIME_OF = {".onnx": "onnxruntime", ".engine": "tensorrt"}


def load_engine(path: str | Path, *, threads: int = 1, runtime: str | None = None, sha256: str | None = None) -> Engine:
    """Load the model file at ``path``.

    Args:
        path: an ONNX file, or an engine of TensorRT or TensorRT-RTX.
        threads: how many threads one run may use on a CPU; 0 takes as many as cores may be used here.
        runtime: a key of ``ENGINES``; by default the file's ending decides (``.onnx``: ONNX Runtime).
        sha256: the hash that the file's bytes must have.

    Raises:
        DeployError: the runtime is unknown, or the file is missing or cannot be used.
        MissingDependency: the runtime's package is not installed.
    """
    path = Path(path)
    chosen = _RUNTIME_OF.get(path.suffix) if runtime is None else runtime
    if chosen is None:
        raise DeployError(
            f"{path.name} does not say which runtime loads it "
            f"(endings known: {', '.join(sorted(_RUNTIME_OF))}); name the runtime."
        )
    if chosen not in ENGINES:
        raise DeployError(f"There is no runtime {chosen!r}; choose one of {', '.join(sorted(ENGINES))}.")
    return ENGINES[chosen](path, threads, sha256)
