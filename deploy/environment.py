"""Describe the machine and the package versions that a figure was measured with."""

from __future__ import annotations

import os
import platform
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

from deploy.engines.cores import cpu_quota, usable_cores


def machine_info() -> dict[str, Any]:
    """Return this machine's CPU model, usable cores, platform and Python version; never a host or user name.

    Where the platform tells: how int8 products are summed, the cores that this process may use by number, how many a
    container's limit leaves it, how the clock is governed, and the load.
    """
    affinity = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None
    told = {
        "int8_sums": int8_sums(),
        "affinity": affinity,
        "cpu_quota": cpu_quota(),
        "governor": _governor(),
        "load": load_average(),
    }
    return {
        "cpu": _cpu_model(),
        "cores": usable_cores(),
        "platform": platform.system(),
        "architecture": platform.machine(),
        "python": platform.python_version(),
        **{name: value for name, value in told.items() if value is not None},
    }


def int8_sums(cpuinfo: Path = Path("/proc/cpuinfo")) -> Literal["exact", "saturating"] | None:
    """Return what this processor's sums of products of uint8 by int8 are; None where the system does not say.

    An x86 processor without VNNI adds two products in 16 bits, where large ones saturate: ONNX Runtime and OpenVINO
    then answer a little differently from the file, and from other processors.
    """
    try:
        text = cpuinfo.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    flags = next((line.split() for line in text.splitlines() if line.startswith("flags")), None)
    if flags is None:  # not an x86 processor
        return None
    return "exact" if {"avx512_vnni", "avx_vnni", "amx_int8"} & set(flags) else "saturating"


def load_average() -> float | None:
    """Return the average number of processes that wanted to run, over the last minute; None where nobody counts."""
    try:
        return round(os.getloadavg()[0], 2)
    except (OSError, AttributeError):  # Windows has none
        return None


def clock_mhz(root: Path = Path("/")) -> float | None:
    """Return the clock of the cores that this process may use now, in MHz, on average; None where nobody tells."""
    cores = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1)
    try:
        files = [root / f"sys/devices/system/cpu/cpu{core}/cpufreq/scaling_cur_freq" for core in cores]
        clocks = [int(file.read_text("ascii")) / 1e3 for file in files]
    except (OSError, ValueError):
        # A virtual machine governs no clock and names it all the same.
        try:
            lines = (root / "proc/cpuinfo").read_text(encoding="utf-8").splitlines()
            named = [float(line.split(":", 1)[1]) for line in lines if line.startswith("cpu MHz")]
        except (OSError, ValueError, IndexError):
            return None
        clocks = [clock for core, clock in enumerate(named) if core in cores] or named
    return round(sum(clocks) / len(clocks), 1) if clocks else None


def _governor() -> str | None:
    try:
        return Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor").read_text("ascii").strip()
    except (OSError, UnicodeDecodeError):
        return None


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
