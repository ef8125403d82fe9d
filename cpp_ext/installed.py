"""Which compiled kernels this installation holds; imports no torch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


class KernelsMissing(RuntimeError):  # noqa: N818 - read as the sentence it says
    """The compiled kernels are not installed, or do not load; the message says how to get them."""


def build_info() -> dict[str, Any]:
    """What this installation holds, without importing torch.

    Returns:
        `cpu` and `cuda`: whether the modules `_C` and `_C_cuda` are there (not whether they load); `build`:
        what the build said (torch version, compilers, architectures, `why`), or None where nothing was built.
    """
    package = Path(__file__).parent
    report = package / "_build.json"
    return {
        "cpu": any(package.glob("_C.*so")),
        "cuda": any(package.glob("_C_cuda.*so")),
        "build": json.loads(report.read_text()) if report.is_file() else None,
    }
