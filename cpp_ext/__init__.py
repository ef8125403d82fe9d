"""Compiled kernels for pruning: channel norms and channel slices, on the CPU and on CUDA.

Importing this package imports no torch: the kernels' wrappers are loaded when first asked for.
"""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cpp_ext.loading import kernels_in_use
    from cpp_ext.norms import filter_norm, filter_norm_reference
    from cpp_ext.slices import channel_slice, channel_slice_reference

__all__ = [
    "KernelsMissing",
    "build_info",
    "channel_slice",
    "channel_slice_reference",
    "filter_norm",
    "filter_norm_reference",
    "kernels_in_use",
]

_HOMES = {
    "kernels_in_use": "loading",
    "filter_norm": "norms",
    "filter_norm_reference": "norms",
    "channel_slice": "slices",
    "channel_slice_reference": "slices",
}


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


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(f"cpp_ext.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
