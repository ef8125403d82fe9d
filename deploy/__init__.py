"""Turn a trained network into engines, measure them and judge the measurement.

``import deploy`` imports nothing heavy: each name below is fetched when it is first used, and the runtime
path (``bundle``, ``preprocess``, ``engines``, ``bench``, ``gating``) needs neither torch nor onnx.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from deploy.bench.gate import gate
    from deploy.bench.timing import Record, benchmark
    from deploy.bundle.building import build_engine
    from deploy.bundle.bundle import Bundle, load
    from deploy.bundle.signing import sign, verify
    from deploy.engines.base import Engine

__all__ = ["Bundle", "Engine", "Record", "benchmark", "build_engine", "gate", "load", "sign", "verify"]

_HOME = {
    "Bundle": "deploy.bundle.bundle",
    "Engine": "deploy.engines.base",
    "Record": "deploy.bench.timing",
    "benchmark": "deploy.bench.timing",
    "build_engine": "deploy.bundle.building",
    "gate": "deploy.bench.gate",
    "load": "deploy.bundle.bundle",
    "sign": "deploy.bundle.signing",
    "verify": "deploy.bundle.signing",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'deploy' has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
