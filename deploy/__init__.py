"""Turn a trained network into engines, measure them and judge the measurement.

``import deploy`` imports nothing heavy: each name below is fetched when it is first used. What runs a bundle (the
folders ``onnx``, ``processing``, ``engines``, ``bench`` and ``bundle``) needs neither torch nor the package onnx.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from deploy.bench.gate import gate
    from deploy.bench.records import Record
    from deploy.bench.timing import benchmark
    from deploy.bundle.building import build_engine
    from deploy.bundle.bundle import Bundle, load
    from deploy.bundle.signed import sign, verify
    from deploy.engines.base import Engine

__all__ = ["Bundle", "Engine", "Record", "benchmark", "build_engine", "gate", "load", "sign", "verify"]

_HOME = {
    "Bundle": "deploy.bundle.bundle",
    "Engine": "deploy.engines.base",
    "Record": "deploy.bench.records",
    "benchmark": "deploy.bench.timing",
    "build_engine": "deploy.bundle.building",
    "gate": "deploy.bench.gate",
    "load": "deploy.bundle.bundle",
    "sign": "deploy.bundle.signed",
    "verify": "deploy.bundle.signed",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'deploy' has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
