"""Describe the machine and the package versions that a figure was measured with."""

from __future__ import annotations

import os
import platform
from importlib import metadata
from pathlib import Path
from typing import Any


def machine_info() -> dict[str, Any]:
    """Return this machine's CPU model, usable cores, platform and Python version; never a host or user name."""
    return {
        "cpu": _cpu_model(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "platform": platform.system(),
        "architecture": platform.machine(),
        "python": platform.python_version(),
    }


def versions_info() -> dict[str, str]:
    """Return the versions of the packages that run engines, read without importing them."""
    packages = ("niwaki-vision", "numpy", "pillow", "onnxruntime", "openvino", "tensorrt-rtx-cu13", "torch")
    found: dict[str, str] = {}
    for package in packages:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    named = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return named[0] if named else platform.processor() or "unknown"
