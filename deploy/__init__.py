"""Turn a trained network into engines, measure them and judge the measurement.

``import deploy`` imports nothing heavy: each name below is fetched when it is first used, and the runtime
path (``bundle``, ``preprocess``, ``engines``, ``bench``, ``gating``) needs neither torch nor onnx.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from deploy.bench import Record, benchmark
    from deploy.building import build_engine
    from deploy.bundle import Bundle, load
    from deploy.engines.base import Engine
    from deploy.gating import gate
    from deploy.signing import sign, verify

__all__ = ["Bundle", "Engine", "Record", "benchmark", "build_engine", "gate", "load", "sign", "verify"]

_HOME = {
    "Bundle": "deploy.bundle",
    "Engine": "deploy.engines.base",
    "Record": "deploy.bench",
    "benchmark": "deploy.bench",
    "build_engine": "deploy.building",
    "gate": "deploy.gating",
    "load": "deploy.bundle",
    "sign": "deploy.signing",
    "verify": "deploy.signing",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'deploy' has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
