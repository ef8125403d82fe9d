"""The kernels as typed functions, each beside the slow, obvious reference that says what it computes.

All are for inference: gradients do not flow through them, the results never require any. The environment
variable `NIWAKI_KERNELS=reference`, read at each call, puts the references in the kernels' place; nothing
else does.
"""

from __future__ import annotations

import functools
import importlib
import os
from typing import Literal

import torch
from torch import Tensor

from cpp_ext import KernelsMissing, build_info

NORM_DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
_HOW = (
    "install torch, setuptools and g++, then run `pip install --no-build-isolation --no-binary niwaki "
    "--force-reinstall --no-deps niwaki` (in a checkout: `python setup.py build_ext --inplace`), or set "
    "NIWAKI_KERNELS=reference for the slow ones in Python"
)


def filter_norm(x: Tensor, p: int = 1, dim: int = 0) -> Tensor:
    """The p-norm of each channel: of `x` over all dimensions but `dim`.

    Args:
        x: [..., channels at `dim`, ...], float32, float64, float16 or bfloat16, in any memory layout.
        p: 1 or 2.
        dim: the channels' dimension, counted from the end when negative.

    Returns:
        [channels], float64 for a float64 `x`, else float32. Sums are in float32 within blocks of 1024
        elements at most and in float64 beyond (all in float64 for a float64 `x`), in an order that depends on
        shape and memory layout alone; a channel without elements has norm 0.

    Raises:
        ValueError: another p or dtype.
        IndexError: no such dimension.
        KernelsMissing: no kernels for x's device.
    """
    if kernels_in_use(x.device) == "reference":
        return filter_norm_reference(x, p, dim)
    _check_filter_norm(x, p, dim)
    return torch.ops.niwaki.filter_norm(x.detach(), p, dim)


def channel_slice(x: Tensor, keep0: Tensor | None = None, keep1: Tensor | None = None) -> Tensor:
    """`x[keep0][:, keep1]` in one pass, in fresh contiguous memory.

    Args:
        x: [n0, n1, ...] or [n0], any dtype and memory layout.
        keep0: [k0], int64, on x's device: indices along dimension 0, in any order, with repeats; None: all.
        keep1: [k1], likewise along dimension 1; None for a 1-D `x`.

    Returns:
        [k0, k1, ...] or [k0], of x's dtype.

    Raises:
        IndexError: an index out of bounds (negative ones are).
        ValueError: indices that are not 1-D int64 tensors on x's device, keep1 for a 1-D x, a 0-D x.
        KernelsMissing: no kernels for x's device.

    On CUDA checking the bounds waits for the device once, unless both are None.
    """
    if kernels_in_use(x.device) == "reference":
        return channel_slice_reference(x, keep0, keep1)
    _check_channel_slice(x, keep0, keep1)
    return torch.ops.niwaki.channel_slice(x.detach(), keep0, keep1)


def filter_norm_reference(x: Tensor, p: int = 1, dim: int = 0) -> Tensor:
    """What `filter_norm` computes, said with PyTorch's own operators."""
    _check_filter_norm(x, p, dim)
    rows = x.detach().double().movedim(dim, 0).flatten(1) if x.dim() > 1 else x.detach().double()[:, None]
    sums = rows.abs().sum(1) if p == 1 else rows.square().sum(1).sqrt()
    return sums.to(_norm_dtype(x))


def channel_slice_reference(x: Tensor, keep0: Tensor | None = None, keep1: Tensor | None = None) -> Tensor:
    """What `channel_slice` computes, said with PyTorch's own operators."""
    _check_channel_slice(x, keep0, keep1)
    result = x.detach()
    for dim, keep in enumerate((keep0, keep1)):
        if keep is None:
            continue
        wild = ((keep < 0) | (keep >= x.shape[dim])).nonzero().flatten()
        if len(wild):
            at = int(wild[0])
            raise IndexError(
                f"channel_slice got keep{dim}[{at}] = {int(keep[at])} for a dimension of size "
                f"{x.shape[dim]}: pass indices between 0 and {x.shape[dim] - 1}."
            )
        result = result.index_select(dim, keep)
    return result.clone(memory_format=torch.contiguous_format)


def kernels_in_use(device: torch.device | str = "cpu") -> Literal["compiled", "reference"]:
    """Which implementation a call on a tensor of `device` runs, by the environment as it is now.

    Raises:
        KernelsMissing: the compiled kernels are asked for and are not there, or do not load.
    """
    if os.environ.get("NIWAKI_KERNELS") == "reference":
        return "reference"
    failure = _load("_C")
    if failure is None and torch.device(device).type == "cuda":
        failure = _load("_C_cuda")
    if failure is not None:
        raise KernelsMissing(failure)
    return "compiled"


@functools.cache
def _load(module: Literal["_C", "_C_cuda"]) -> str | None:
    """Load a compiled module once; returns the sentence that says why it cannot be used, or None."""
    what = "CPU" if module == "_C" else "CUDA"
    info = build_info()
    if not info[what.lower()]:
        said = f" ({info['build']['why']})" if info["build"] else ""
        return f"niwaki's {what} kernels are not installed{said}: {_HOW}."
    try:
        importlib.import_module(f"cpp_ext.{module}")
    except ImportError as error:
        return f"niwaki's {what} kernels do not load under torch {torch.__version__} ({error}): {_HOW}."
    if module == "_C":
        torch.library.register_fake("niwaki::filter_norm", _filter_norm_fake)
        torch.library.register_fake("niwaki::channel_slice", _channel_slice_fake)
    return None


def _norm_dtype(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def _check_filter_norm(x: Tensor, p: int, dim: int) -> None:
    if x.dtype not in NORM_DTYPES:
        raise ValueError(f"filter_norm got a tensor of {x.dtype}: convert it to float32, float64, float16 or bfloat16.")
    if p not in (1, 2):
        raise ValueError(f"filter_norm computes the norms p = 1 and p = 2, got p = {p}.")
    if not -x.dim() <= dim < x.dim():
        raise IndexError(
            f"filter_norm got dim = {dim} for a tensor of {x.dim()} dimensions: pass a dim between "
            f"{-x.dim()} and {x.dim() - 1}."
        )


def _check_channel_slice(x: Tensor, keep0: Tensor | None, keep1: Tensor | None) -> None:
    if x.dim() == 0:
        raise ValueError("channel_slice got a tensor of 0 dimensions: pass one with channels, of 1 dimension or more.")
    for dim, keep in enumerate((keep0, keep1)):
        if keep is None:
            continue
        if dim >= x.dim():
            raise ValueError(
                f"channel_slice got keep{dim} for a tensor of {x.dim()} dimensions: pass keep{dim} = None."
            )
        if keep.dtype != torch.int64 or keep.dim() != 1:
            raise ValueError(
                f"channel_slice got a keep{dim} of {keep.dim()} dimensions that is not a 1-D int64 tensor: "
                "convert it with .long().flatten()."
            )
        if keep.device != x.device:
            raise ValueError(f"channel_slice got keep{dim} on another device than x: move it with .to(x.device).")


def _filter_norm_fake(x: Tensor, p: int, dim: int) -> Tensor:
    _check_filter_norm(x, p, dim)
    return x.new_empty(x.shape[dim], dtype=_norm_dtype(x))


def _channel_slice_fake(x: Tensor, keep0: Tensor | None, keep1: Tensor | None) -> Tensor:
    _check_channel_slice(x, keep0, keep1)
    shape = list(x.shape)
    for dim, keep in enumerate((keep0, keep1)):
        if keep is not None:
            shape[dim] = keep.shape[0]
    return x.new_empty(shape)
