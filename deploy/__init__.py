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
    from deploy.engines import load_engine
    from deploy.engines.base import Engine
    from deploy.exporting.calls import export, measure, parity, quantize, write_bundle

__all__ = [
    "Bundle",
    "Engine",
    "Record",
    "benchmark",
    "build_engine",
    "export",
    "gate",
    "load",
    "load_engine",
    "measure",
    "parity",
    "quantize",
    "sign",
    "verify",
    "write_bundle",
]

_HOME = {
    "Bundle": "deploy.bundle.bundle",
    "Engine": "deploy.engines.base",
    "Record": "deploy.bench.records",
    "benchmark": "deploy.bench.timing",
    "build_engine": "deploy.bundle.building",
    "export": "deploy.exporting.calls",
    "gate": "deploy.bench.gate",
    "load": "deploy.bundle.bundle",
    "load_engine": "deploy.engines",
    "measure": "deploy.exporting.calls",
    "parity": "deploy.exporting.calls",
    "quantize": "deploy.exporting.calls",
    "sign": "deploy.bundle.signed",
    "verify": "deploy.bundle.signed",
    "write_bundle": "deploy.exporting.calls",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'deploy' has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
