"""Least squares from moments: one layer's weight, with the penalty that held-out images like best."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from compress.prune.moments import Moments

RIDGES = tuple(10.0**k for k in (-6, -5, -4, -3, -2.5, -2, -1.5, -1, -0.5, 0, 1))
"""Penalties that are tried, as shares of the inputs' mean square; without end, the weight stays as it was."""

MAGNIFIES = 4.0
"""How many times as large as before, or as the outputs themselves let expect, a repair may make their rounding."""

LARGE = 1500
"""Columns above which each penalty is solved for itself: their eigenvectors would take longer."""


@dataclass(frozen=True)
class RidgeFit:
    """y = W x + b.

    Args:
        matrix: W, [groups, m, n], float64.
        offset: b, [groups, m]; None for none.
        ridge: the penalty that gave it.
    """

    matrix: Tensor
    offset: Tensor | None
    ridge: float


def solve(fit: Moments, judge: Moments, now: RidgeFit, *, offsets: bool) -> RidgeFit:
    """The W near the present one, and the b, that fit `fit`, by the penalty on |W - W now|^2 that `judge` likes best.

    Inputs that all but say the same are told apart by large weights of both signs, which nothing but exact arithmetic
    can bear: a W that magnifies the inputs' rounding is none of the choice.

    Args:
        fit: sums to fit to.
        judge: sums to choose the penalty by.
        now: the present weight and offset.
        offsets: whether the offset may change.
    """
    about = fit.centred() if offsets else _without(fit, now.offset)
    missing = about.xy.mT - now.matrix @ about.xx  # [groups, m, n]
    scale = about.xx.diagonal(dim1=1, dim2=2).mean(1)  # [groups]
    best, least = now, judge.error(now.matrix, now.offset)
    squares = judge.xx.diagonal(dim1=1, dim2=2).unsqueeze(2)  # [groups, n, 1]
    usual = torch.maximum((now.matrix.square() @ squares).squeeze(2), judge.yy).clamp_min(1e-300)  # [groups, m]
    for ridge, step in _steps(about.xx, missing, scale):
        matrix = now.matrix + step
        if float(((matrix.square() @ squares).squeeze(2) / usual).mean()) > MAGNIFIES**2:
            continue
        offset = now.offset
        if offsets:
            offset = (fit.y - (matrix * fit.x.unsqueeze(1)).sum(2)) / fit.count
        error = judge.error(matrix, offset)
        if error < least:
            best, least = RidgeFit(matrix, offset, ridge), error
    return best


def _without(moments: Moments, offset: Tensor | None) -> Moments:
    """Sums of x and y - b."""
    if offset is None:
        return moments
    return Moments(
        moments.count,
        moments.x,
        moments.y - moments.count * offset,
        moments.xx,
        moments.xy - moments.x.unsqueeze(2) * offset.unsqueeze(1),
        moments.yy - 2 * offset * moments.y + moments.count * offset.square(),
    )


def _steps(xx: Tensor, missing: Tensor, scale: Tensor) -> Iterator[tuple[float, Tensor]]:
    """missing (xx + ridge scale)^-1 for every penalty, the strongest first."""
    yield float("inf"), torch.zeros_like(missing)
    if xx.shape[1] > LARGE:
        whole = torch.eye(xx.shape[1], dtype=xx.dtype, device=xx.device)
        for ridge in reversed(RIDGES[::2]):
            shifted = xx + (ridge * scale + 1e-300)[:, None, None] * whole
            factor, failed = torch.linalg.cholesky_ex(shifted)
            if not bool(failed.any()):
                yield ridge, torch.cholesky_solve(missing.mT, factor).mT
        return
    values, vectors = torch.linalg.eigh(xx)
    turned = missing @ vectors
    for ridge in reversed(RIDGES):
        yield ridge, (turned / (values.clamp_min(0) + ridge * scale[:, None] + 1e-300).unsqueeze(1)) @ vectors.mT
