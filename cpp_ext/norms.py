"""Norms of channels as typed functions, each beside the slow, obvious reference that says what it computes.

All are for inference: gradients do not flow through them, the results never require any. A norm is of p = 1, 2 or
infinity, or the square of the 2-norm. A channel without elements has norm 0; a NaN gives NaN.

Sums go in an order that depends on shape and memory layout alone, so that threads and instruction sets change no bit.
Those of float64 tensors are within n / 2 + 2 ulp of the exact sum of n terms. On the CPU, those of float32, float16
and bfloat16 tensors add at most four times in float32, then in float64: the relative error of a sum is below 4 *
2**-24 with p = 1 and 5 * 2**-24 of squares, however many terms there are (n < 2**28), so that a float32 result is
within 4.5 ulp with p = 1, 3 with p = 2 and 5.5 of its square; a maximum is exact. Where float32 would overflow, or
squares vanish in it, the sum is made in float64. On CUDA all sums are in float64, and a float32 result within 1 ulp.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from cpp_ext.loading import kernels_in_use

NORM_DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


def filter_norm(x: Tensor, p: float = 1, dim: int = 0, *, squared: bool = False) -> Tensor:
    """The p-norm of each channel: of `x` over all dimensions but `dim`.

    Args:
        x: [..., channels at `dim`, ...], float32, float64, float16 or bfloat16, in any memory layout.
        p: 1, 2 or infinity.
        dim: the channels' dimension, counted from the end when negative.
        squared: with p = 2, the square of the norm.

    Returns:
        [channels], float64 for a float64 `x`, else float32.

    Raises:
        ValueError: another p or dtype.
        IndexError: no such dimension.
        KernelsMissing: no kernels for x's device.
    """
    if kernels_in_use(x.device) == "reference":
        return filter_norm_reference(x, p, dim, squared=squared)
    _check_filter_norm(x, p, dim, squared)
    return torch.ops.niwaki.filter_norm(x.detach(), p, dim, squared)


def filter_norm_reference(x: Tensor, p: float = 1, dim: int = 0, *, squared: bool = False) -> Tensor:
    """What `filter_norm` computes, said with PyTorch's own operators."""
    _check_filter_norm(x, p, dim, squared)
    return _root(_reduced(x, p, dim), p, squared).to(_norm_dtype(x))


def channel_norms(x: Tensor, p: float = 1, *, squared: bool = False) -> tuple[Tensor, Tensor]:
    """`filter_norm` along dimension 0 and along dimension 1, in one read.

    Args:
        x: [n0, n1, ...], as for `filter_norm`.
        p: 1, 2 or infinity.
        squared: with p = 2, the squares of the norms.

    Returns:
        [n0] and [n1]: the norms of the output channels and of the input channels of a weight.

    Raises:
        ValueError: another p or dtype.
        IndexError: a tensor of less than two dimensions.
        KernelsMissing: no kernels for x's device.
    """
    if kernels_in_use(x.device) == "reference":
        return channel_norms_reference(x, p, squared=squared)
    _check_filter_norm(x, p, 1, squared)
    return torch.ops.niwaki.channel_norms(x.detach(), p, squared)


def channel_norms_reference(x: Tensor, p: float = 1, *, squared: bool = False) -> tuple[Tensor, Tensor]:
    """What `channel_norms` computes, said with PyTorch's own operators."""
    _check_filter_norm(x, p, 1, squared)
    return filter_norm_reference(x, p, 0, squared=squared), filter_norm_reference(x, p, 1, squared=squared)


@dataclass(frozen=True)
class Slots:
    """Which channels of a list of tensors make up which unit: checked once, used at each `multi_filter_norm`.

    Args:
        tensors: for each slot the number of its tensor in the list; two slots of one tensor that follow each other are
            read together.
        dims: for each slot the dimension that its channels are.
        index: for each slot the unit of each of its channels, int64 [channels].
        units: how many units there are.

    Raises:
        ValueError: not one tensor, dim and index for each slot.
        IndexError: an index that is negative, or not below `units`.
    """

    tensors: tuple[int, ...]
    dims: tuple[int, ...]
    index: tuple[npt.NDArray[np.int64], ...]
    units: int
    _on: dict[torch.device, tuple[Tensor, Tensor, Tensor]] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    def __post_init__(self) -> None:
        if not len(self.tensors) == len(self.dims) == len(self.index):
            raise ValueError(
                f"Slots got {len(self.tensors)} tensors, {len(self.dims)} dims and {len(self.index)} indices: "
                "pass one of each for a slot."
            )
        units = np.concatenate([np.zeros(0, np.int64), *self.index])
        if len(units) and (units.min() < 0 or units.max() >= self.units):
            self._refuse()
        order = np.argsort(units, kind="stable")
        offsets = np.concatenate([[0], np.cumsum(np.bincount(units, minlength=self.units))]).astype(np.int64)
        lengths = [len(units) for units in self.index]
        table = np.array([self.tensors, self.dims, lengths], np.int64).T.reshape(-1, 3)
        self._on[torch.device("cpu")] = (
            torch.from_numpy(np.ascontiguousarray(table)),
            torch.from_numpy(order),
            torch.from_numpy(offsets),
        )

    def _refuse(self) -> None:
        """Say which index is out of bounds."""
        for s, units in enumerate(self.index):
            wild = np.flatnonzero((units < 0) | (units >= self.units))
            if len(wild):
                raise IndexError(
                    f"Slots got index[{s}][{wild[0]}] = {units[wild[0]]} for {self.units} units: "
                    f"pass indices between 0 and {self.units - 1}."
                )

    def on(self, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
        """What the kernel takes, all int64.

        Returns:
            On the CPU, for each slot its tensor's number, dimension and number of channels: [slots, 3]. On `device`,
            the places of the flat norms sorted by unit and where each unit begins: [channels], [units + 1].
        """
        if device not in self._on:
            table, order, offsets = self._on[torch.device("cpu")]
            self._on[device] = table, order.to(device), offsets.to(device)
        return self._on[device]


def multi_filter_norm(
    xs: Sequence[Tensor], slots: Slots, p: float = 1, *, squared: bool = False, relative: bool = False
) -> Tensor:
    """The norm of each unit over all its channels in a list of tensors, in one call.

    Args:
        xs: tensors of one device, as for `filter_norm`.
        slots: which of their channels make up which unit; `slots.on(device)` is made at the first call on a device.
        p: 1, 2 or infinity.
        squared: with p = 2, the squares of the norms.
        relative: divides each channel's norm by the mean over its slot first, so that layers of other widths compare.

    Returns:
        float64 [units], on the tensors' device: with p = 1 the sum of its channels' 1-norms, with p = 2 the root of the
        sum of their squares, with infinity the largest; 0 for a unit without channels.

    Raises:
        ValueError: another p or dtype, several devices, a slot whose index does not fit its tensor.
        IndexError: a slot's tensor or dimension that is not there.
        KernelsMissing: no kernels for the device.
    """
    device = xs[0].device if len(xs) else torch.device("cpu")
    if kernels_in_use(device) == "reference":
        return multi_filter_norm_reference(xs, slots, p, squared=squared, relative=relative)
    with torch.no_grad():
        try:
            return torch.ops.niwaki.multi_filter_norm(xs, *slots.on(device), p, squared, relative)
        except (RuntimeError, IndexError):
            _check_multi(xs, slots, p, squared)  # says what is wrong
            raise


def multi_filter_norm_reference(
    xs: Sequence[Tensor], slots: Slots, p: float = 1, *, squared: bool = False, relative: bool = False
) -> Tensor:
    """What `multi_filter_norm` computes, said with PyTorch's own operators."""
    _check_multi(xs, slots, p, squared)
    total = torch.zeros(slots.units, dtype=torch.float64, device=xs[0].device if len(xs) else None)
    for tensor, dim, units in zip(slots.tensors, slots.dims, slots.index, strict=True):
        sums = _reduced(xs[tensor], p, dim)
        if relative and len(units):
            mean = (sums.sqrt() if p == 2 else sums).mean().clamp_min(1e-30)
            sums = sums / (mean.square() if p == 2 else mean)
        index = torch.from_numpy(units).to(total.device)
        if p == math.inf:
            total.index_reduce_(0, index, sums, "amax")
        else:
            total.index_add_(0, index, sums)
    return _root(total, p, squared)


def _reduced(x: Tensor, p: float, dim: int) -> Tensor:
    rows = x.detach().double().movedim(dim, 0).flatten(1) if x.dim() > 1 else x.detach().double()[:, None]
    if p == math.inf:
        return rows.abs().amax(1) if rows.shape[1] else rows.new_zeros(rows.shape[0])
    return rows.abs().sum(1) if p == 1 else rows.square().sum(1)


def _root(sums: Tensor, p: float, squared: bool) -> Tensor:
    return sums.sqrt() if p == 2 and not squared else sums


def _norm_dtype(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def _check_filter_norm(x: Tensor, p: float, dim: int, squared: bool) -> None:
    if x.dtype not in NORM_DTYPES:
        raise ValueError(f"filter_norm got a tensor of {x.dtype}: convert it to float32, float64, float16 or bfloat16.")
    if p not in (1, 2, math.inf):
        raise ValueError(f"filter_norm computes the norms p = 1, p = 2 and p = infinity, got p = {p}.")
    if squared and p != 2:
        raise ValueError(f"filter_norm squares the norm p = 2 alone, got p = {p}.")
    if not -x.dim() <= dim < x.dim():
        raise IndexError(
            f"filter_norm got dim = {dim} for a tensor of {x.dim()} dimensions: pass a dim between "
            f"{-x.dim()} and {x.dim() - 1}."
        )


def _check_multi(xs: Sequence[Tensor], slots: Slots, p: float, squared: bool) -> None:
    if any(x.device != xs[0].device for x in xs):
        raise ValueError("multi_filter_norm got tensors on several devices: call it once for each.")
    for s, (tensor, dim, units) in enumerate(zip(slots.tensors, slots.dims, slots.index, strict=True)):
        if not 0 <= tensor < len(xs):
            raise IndexError(f"multi_filter_norm got {len(xs)} tensors, slot {s} is of number {tensor}.")
        _check_filter_norm(xs[tensor], p, dim, squared)
        if xs[tensor].shape[dim] != len(units):
            raise ValueError(
                f"multi_filter_norm got {len(units)} units for the {xs[tensor].shape[dim]} channels of slot {s}."
            )


def _filter_norm_fake(x: Tensor, p: float, dim: int, squared: bool = False) -> Tensor:
    _check_filter_norm(x, p, dim, squared)
    return x.new_empty(x.shape[dim], dtype=_norm_dtype(x))


def _channel_norms_fake(x: Tensor, p: float, squared: bool = False) -> tuple[Tensor, Tensor]:
    _check_filter_norm(x, p, 1, squared)
    return x.new_empty(x.shape[0], dtype=_norm_dtype(x)), x.new_empty(x.shape[1], dtype=_norm_dtype(x))


def _multi_filter_norm_fake(
    xs: list[Tensor],
    slots: Tensor,
    order: Tensor,
    offsets: Tensor,
    p: float,
    squared: bool = False,
    relative: bool = False,
) -> Tensor:
    return order.new_empty(offsets.shape[0] - 1, dtype=torch.float64)


FAKES = {
    "filter_norm": _filter_norm_fake,
    "channel_norms": _channel_norms_fake,
    "multi_filter_norm": _multi_filter_norm_fake,
}
"""Operator -> what it gives without data."""
