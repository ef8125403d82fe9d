"""Slices and fills of channels as typed functions, each beside the slow, obvious reference that says what it computes.

All are for inference: gradients do not flow through them, the results never require any.
"""

from __future__ import annotations

from collections.abc import Sequence

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

    Nothing waits for the device: on CUDA an index out of bounds stops the kernel there, as PyTorch's own indexing does,
    and shows as a RuntimeError at the next synchronisation; nothing is read through it.
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


def multi_channel_slice(xs: Sequence[Tensor], keeps: Sequence[tuple[Tensor | None, Tensor | None]]) -> list[Tensor]:
    """`channel_slice` of each tensor of a list, in one call.

    Args:
        xs: tensors of one device, as for `channel_slice`.
        keeps: keep0 and keep1 for each; an index that several share is checked once.

    Returns:
        A tensor for each, each in its own fresh contiguous memory.

    Raises:
        IndexError: an index out of bounds, as for `channel_slice`.
        ValueError: as for `channel_slice`; several devices; not one pair of indices for each tensor.
        KernelsMissing: no kernels for the device.
    """
    if len(xs) != len(keeps):
        raise ValueError(
            f"multi_channel_slice got {len(keeps)} pairs of indices for {len(xs)} tensors: pass one for each."
        )
    if not xs or kernels_in_use(xs[0].device) == "reference":
        return multi_channel_slice_reference(xs, keeps)
    unique = {id(keep): keep for pair in keeps for keep in pair if keep is not None}
    number = {key: n for n, key in enumerate(unique)} | {id(None): -1}
    keep0 = [number[id(keep)] for keep, _ in keeps]
    keep1 = [number[id(keep)] for _, keep in keeps]
    with torch.no_grad():
        try:
            return torch.ops.niwaki.multi_channel_slice(xs, list(unique.values()), keep0, keep1)
        except RuntimeError:
            _check_slices(xs, keeps)  # says what is wrong
            raise


def multi_channel_slice_reference(
    xs: Sequence[Tensor], keeps: Sequence[tuple[Tensor | None, Tensor | None]]
) -> list[Tensor]:
    """What `multi_channel_slice` computes, said with PyTorch's own operators."""
    _check_one_device("multi_channel_slice", xs)
    return [channel_slice_reference(x, *pair) for x, pair in zip(xs, keeps, strict=True)]


def masked_fill_channels(xs: Sequence[Tensor], dims: Sequence[int], masks: Sequence[Tensor]) -> None:
    """Makes the masked channels of each tensor of a list zero, in place, in one call.

    Args:
        xs: tensors of one device, any dtype, in any dense memory layout (a part of a larger tensor is filled by
            PyTorch's own operator).
        dims: for each the dimension that its channels are, from 0.
        masks: for each a bool [channels] on its device, True where zero is to be.

    Raises:
        IndexError: no such dimension.
        ValueError: not one dim and mask for each tensor, a mask that does not fit, several devices.
        KernelsMissing: no kernels for the device.
    """
    _check_masks(xs, dims, masks)
    if not xs or kernels_in_use(xs[0].device) == "reference":
        masked_fill_channels_reference(xs, dims, masks)
        return
    dense = [torch.ops.aten.is_non_overlapping_and_dense(x) for x in xs]
    few = [k for k, is_dense in enumerate(dense) if not is_dense]
    masked_fill_channels_reference([xs[k] for k in few], [dims[k] for k in few], [masks[k] for k in few])
    many = [k for k, is_dense in enumerate(dense) if is_dense]
    if many:
        unique = {id(masks[k]): masks[k] for k in many}
        number = {key: n for n, key in enumerate(unique)}
        torch.ops.niwaki.masked_fill_channels(
            [xs[k].detach() for k in many],
            [dims[k] for k in many],
            list(unique.values()),
            [number[id(masks[k])] for k in many],
        )


def masked_fill_channels_reference(xs: Sequence[Tensor], dims: Sequence[int], masks: Sequence[Tensor]) -> None:
    """What `masked_fill_channels` does, said with PyTorch's own operators."""
    _check_masks(xs, dims, masks)
    for x, dim, mask in zip(xs, dims, masks, strict=True):
        x.detach().index_fill_(dim, mask.nonzero().flatten(), 0)


def _check_one_device(op: str, xs: Sequence[Tensor]) -> None:
    if any(x.device != xs[0].device for x in xs):
        raise ValueError(f"{op} got tensors on several devices: call it once for each.")


def _check_masks(xs: Sequence[Tensor], dims: Sequence[int], masks: Sequence[Tensor]) -> None:
    op = "masked_fill_channels"
    if not len(xs) == len(dims) == len(masks):
        raise ValueError(
            f"{op} got {len(dims)} dims and {len(masks)} masks for {len(xs)} tensors: pass one of each for a tensor."
        )
    _check_one_device(op, [*xs, *masks])
    for x, dim, mask in zip(xs, dims, masks, strict=True):
        if not 0 <= dim < x.dim():
            raise IndexError(f"{op} got dim = {dim} for a tensor of {x.dim()} dimensions.")
        if mask.dtype != torch.bool or mask.shape != (x.shape[dim],):
            raise ValueError(
                f"{op} got a mask of {mask.dtype} {tuple(mask.shape)} for a dimension of size {x.shape[dim]}: "
                "pass a 1-D bool tensor with one entry for each channel."
            )


def _check_slices(xs: Sequence[Tensor], keeps: Sequence[tuple[Tensor | None, Tensor | None]]) -> None:
    _check_one_device("multi_channel_slice", xs)
    for x, pair in zip(xs, keeps, strict=True):
        _check_channel_slice(x, *pair)


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


def _multi_channel_slice_fake(
    xs: list[Tensor], keeps: list[Tensor], keep0: list[int], keep1: list[int]
) -> list[Tensor]:
    _check_one_device("multi_channel_slice", xs)
    return [
        _channel_slice_fake(x, keeps[i] if i >= 0 else None, keeps[j] if j >= 0 else None)
        for x, i, j in zip(xs, keep0, keep1, strict=True)
    ]


def _masked_fill_channels_fake(xs: list[Tensor], dims: list[int], masks: list[Tensor], which: list[int]) -> None:
    _check_masks(xs, dims, [masks[k] for k in which])


FAKES = {
    "channel_slice": _channel_slice_fake,
    "multi_channel_slice": _multi_channel_slice_fake,
    "masked_fill_channels": _masked_fill_channels_fake,
}
"""Operator -> what it gives without data."""
