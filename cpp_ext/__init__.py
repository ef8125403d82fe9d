"""Compiled kernels for pruning: channel norms, channel slices and a global threshold, on the CPU and on CUDA.

Importing this package imports no torch: the kernels' wrappers are loaded when first asked for.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from cpp_ext.installed import KernelsMissing, build_info

if TYPE_CHECKING:
    from cpp_ext.loading import instruction_set, kernels_in_use
    from cpp_ext.norms import (
        Slots,
        channel_norms,
        channel_norms_reference,
        filter_norm,
        filter_norm_reference,
        multi_filter_norm,
        multi_filter_norm_reference,
    )
    from cpp_ext.select import keep_largest_products, keep_largest_products_reference
    from cpp_ext.slices import (
        channel_slice,
        channel_slice_reference,
        masked_fill_channels,
        masked_fill_channels_reference,
        multi_channel_slice,
        multi_channel_slice_reference,
    )

__all__ = [
    "KernelsMissing",
    "Slots",
    "build_info",
    "channel_norms",
    "channel_norms_reference",
    "channel_slice",
    "channel_slice_reference",
    "filter_norm",
    "filter_norm_reference",
    "instruction_set",
    "keep_largest_products",
    "keep_largest_products_reference",
    "kernels_in_use",
    "masked_fill_channels",
    "masked_fill_channels_reference",
    "multi_channel_slice",
    "multi_channel_slice_reference",
    "multi_filter_norm",
    "multi_filter_norm_reference",
]

_HOMES = {
    "Slots": "norms",
    "channel_norms": "norms",
    "channel_norms_reference": "norms",
    "channel_slice": "slices",
    "channel_slice_reference": "slices",
    "filter_norm": "norms",
    "filter_norm_reference": "norms",
    "instruction_set": "loading",
    "keep_largest_products": "select",
    "keep_largest_products_reference": "select",
    "kernels_in_use": "loading",
    "masked_fill_channels": "slices",
    "masked_fill_channels_reference": "slices",
    "multi_channel_slice": "slices",
    "multi_channel_slice_reference": "slices",
    "multi_filter_norm": "norms",
    "multi_filter_norm_reference": "norms",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(f"cpp_ext.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
