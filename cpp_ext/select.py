"""The global threshold of a training step: which weights still learn from their gradient, by |gradient * weight|."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from cpp_ext.loading import kernels_in_use
from cpp_ext.norms import NORM_DTYPES


def keep_largest_products(gradients: Sequence[Tensor], weights: Sequence[Tensor], keep: int) -> Tensor:
    """Zeroes, in place, all gradients but those of the `keep` largest |gradient * weight| of the whole list.

    The step of Global Sparse Momentum SGD (Ding et al., 2019): the first-order estimate of what a weight's removal
    costs chooses the weights that learn from the loss; the rest only decay. Products are float32 (of float64 values:
    rounded to it), and those that equal the smallest kept one stay too, so that the result does not depend on an order.

    Args:
        gradients: a tensor for each weight, of its dtype, shape, device and dense memory layout; changed.
        weights: float32, float64, float16 or bfloat16, of one device.
        keep: how many stay, from 0 to the number of weights.

    Returns:
        float32 [], on the weights' device: the smallest product that stays; infinity when none does, 0 when all do.

    Raises:
        ValueError: gradients that do not match their weights, several devices, another dtype, a wrong `keep`.
        KernelsMissing: no kernels for the device.
    """
    _check(gradients, weights, keep)
    if not weights:
        return torch.tensor(math.inf)
    if kernels_in_use(weights[0].device) == "reference":
        return keep_largest_products_reference(gradients, weights, keep)
    return torch.ops.niwaki.keep_largest_products([g.detach() for g in gradients], [w.detach() for w in weights], keep)


def keep_largest_products_reference(gradients: Sequence[Tensor], weights: Sequence[Tensor], keep: int) -> Tensor:
    """What `keep_largest_products` does, said with PyTorch's own operators."""
    _check(gradients, weights, keep)
    products = [_products(g, w) for g, w in zip(gradients, weights, strict=True)]
    flat = torch.cat([p.flatten() for p in products]) if products else torch.zeros(0)
    if keep == 0:
        threshold = flat.new_tensor(math.inf)
        for g in gradients:
            g.detach().zero_()
        return threshold
    if keep == len(flat):
        return flat.new_tensor(0.0)
    # A NaN counts as the largest, in topk as in the kernels.
    threshold = flat.topk(keep, sorted=True).values[-1]
    for g, product in zip(gradients, products, strict=True):
        g.detach().masked_fill_(product < threshold, 0)
    return threshold


def _products(gradient: Tensor, weight: Tensor) -> Tensor:
    wide = torch.float64 if weight.dtype == torch.float64 else torch.float32
    return (gradient.detach().to(wide) * weight.detach().to(wide)).abs().float()


def _check(gradients: Sequence[Tensor], weights: Sequence[Tensor], keep: int) -> None:
    op = "keep_largest_products"
    if len(gradients) != len(weights):
        raise ValueError(f"{op} got {len(gradients)} gradients for {len(weights)} weights: pass one for each.")
    for k, (g, w) in enumerate(zip(gradients, weights, strict=True)):
        if w.dtype not in NORM_DTYPES:
            raise ValueError(f"{op} got a tensor of {w.dtype}: convert it to float32, float64, float16 or bfloat16.")
        if w.device != weights[0].device:
            raise ValueError(f"{op} got tensors on several devices: call it once for each.")
        alike = (g.dtype, g.shape, g.device) == (w.dtype, w.shape, w.device) and g.stride() == w.stride()
        if not alike or not torch.ops.aten.is_non_overlapping_and_dense(w):
            raise ValueError(
                f"{op} got a gradient {k} that is not of its weight's dtype, shape, device and dense memory layout."
            )
    total = sum(w.numel() for w in weights)
    if not 0 <= keep <= total:
        raise ValueError(f"{op} was to keep {keep} of {total} products.")


def _fake(gradients: list[Tensor], weights: list[Tensor], keep: int) -> Tensor:
    return weights[0].new_empty((), dtype=torch.float32)


FAKES = {"keep_largest_products": _fake}
"""Operator -> what it gives without data."""
