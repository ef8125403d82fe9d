"""Slices of channels as typed functions, each beside the slow, obvious reference that says what it computes.

All are for inference: gradients do not flow through them, the results never require any.
"""

from __future__ import annotations

import torch
from torch import Tensor

from cpp_ext.loading import kernels_in_use


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


def _channel_slice_fake(x: Tensor, keep0: Tensor | None, keep1: Tensor | None) -> Tensor:
    _check_channel_slice(x, keep0, keep1)
    shape = list(x.shape)
    for dim, keep in enumerate((keep0, keep1)):
        if keep is not None:
            shape[dim] = keep.shape[0]
    return x.new_empty(shape)


FAKES = {"channel_slice": _channel_slice_fake}
"""Operator -> what it gives without data."""
