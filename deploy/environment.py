"""Describe the machine and the package versions that a figure was measured with."""

from __future__ import annotations

import platform
from importlib import metadata
from pathlib import Path
from typing import Any

from deploy.engines.cores import cpu_quota, usable_cores


def machine_info() -> dict[str, Any]:
    """Return this machine's CPU model, usable cores, platform and Python version; never a host or user name."""
    quota = cpu_quota()
    limited = {} if quota is None else {"cpu_quota": quota}
    return {
        "cpu": _cpu_model(),
        "cores": usable_cores(),
        **limited,
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
