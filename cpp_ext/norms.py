"""Norms of channels as typed functions, each beside the slow, obvious reference that says what it computes.

All are for inference: gradients do not flow through them, the results never require any.
"""

from __future__ import annotations

import torch
from torch import Tensor

from cpp_ext.loading import kernels_in_use

NORM_DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


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


def filter_norm_reference(x: Tensor, p: int = 1, dim: int = 0) -> Tensor:
    """What `filter_norm` computes, said with PyTorch's own operators."""
    _check_filter_norm(x, p, dim)
    rows = x.detach().double().movedim(dim, 0).flatten(1) if x.dim() > 1 else x.detach().double()[:, None]
    sums = rows.abs().sum(1) if p == 1 else rows.square().sum(1).sqrt()
    return sums.to(_norm_dtype(x))


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


def _filter_norm_fake(x: Tensor, p: int, dim: int) -> Tensor:
    _check_filter_norm(x, p, dim)
    return x.new_empty(x.shape[dim], dtype=_norm_dtype(x))


FAKES = {"filter_norm": _filter_norm_fake}
"""Operator -> what it gives without data."""
