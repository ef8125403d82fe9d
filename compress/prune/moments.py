"""Moments: what a layer's inputs and outputs are on images, kept as sums, and least squares from these alone."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from compress.prune.reads import ReadCall

POSITIONS = 256
"""Positions of an image that a layer's sums are taken over; neighbours say nearly the same."""


def rows(call: ReadCall, outputs: Tensor, most: int, generator: torch.Generator) -> tuple[Tensor, Tensor] | None:
    """What the weight is multiplied with, and what comes out, at some positions of every image.

    Args:
        call: a convolution or a product; unbatched inputs count as one image.
        outputs: of a layer of this geometry, [images, made, ...] or [images, ..., made].
        most: positions of an image that are taken, drawn anew in each call.
        generator: for the draw.

    Returns:
        [groups, rows, columns] and [groups, rows, made / groups], columns as in `as_matrix`; None for a transposed
        convolution, whose inputs do not line up with its outputs.
    """
    if call.kind == "transposed":
        return None
    if call.kind in ("linear", "matmul"):
        x = call.x.reshape(call.x.shape[0], -1, call.x.shape[-1])
        y = outputs.reshape(outputs.shape[0], -1, outputs.shape[-1])
        chosen = _chosen(x.shape[1], most, generator, x.device)
        x, y = x[:, chosen], y[:, chosen]
        return x.reshape(1, -1, x.shape[-1]), y.reshape(1, -1, y.shape[-1])
    n = call.weight.dim() - 2
    x = call.x if call.x.dim() == n + 2 else call.x.unsqueeze(0)
    y = outputs.reshape(len(x), -1, *outputs.shape[-n:]).flatten(2)
    chosen = _chosen(y.shape[2], most, generator, x.device)
    x, places = _patches(call, x, tuple(outputs.shape[-n:]), chosen)
    patches = x.flatten(2)[:, :, places.reshape(-1)].reshape(len(x), call.groups, -1, *places.shape)
    made = y[:, :, chosen].reshape(len(x), call.groups, -1, len(chosen))
    return (
        patches.permute(1, 0, 3, 2, 4).reshape(call.groups, len(x) * len(chosen), -1),
        made.permute(1, 0, 3, 2).reshape(call.groups, len(x) * len(chosen), -1),
    )


def _chosen(count: int, most: int, generator: torch.Generator, device: torch.device) -> Tensor:
    if count <= most:
        return torch.arange(count, device=device)
    return torch.randperm(count, generator=generator)[:most].sort().values.to(device)


def _patches(call: ReadCall, x: Tensor, out: tuple[int, ...], chosen: Tensor) -> tuple[Tensor, Tensor]:
    """The padded input, and where in it (its positions in a row) the patch of each chosen output lies."""
    n = len(out)
    stride, dilation = _each(call.settings.get("stride", 1), n), _each(call.settings.get("dilation", 1), n)
    size = tuple(call.weight.shape[2:])
    asked = call.settings.get("padding", 0)
    widths: list[int] = []
    for d in reversed(range(n)):
        whole = dilation[d] * (size[d] - 1)
        left = whole // 2 if asked == "same" else 0 if asked == "valid" else _each(asked, n)[d]
        widths += [left, whole - left if asked == "same" else left]
    x = F.pad(x, widths)
    steps = [1] * n
    for d in reversed(range(n - 1)):
        steps[d] = steps[d + 1] * int(x.shape[d + 3])
    corner, left_over = torch.zeros_like(chosen), chosen
    for d in reversed(range(n)):
        corner = corner + left_over % out[d] * stride[d] * steps[d]
        left_over = left_over // out[d]
    offsets = [sum(k * dilation[d] * steps[d] for d, k in enumerate(at)) for at in product(*(range(k) for k in size))]
    return x, corner[:, None] + torch.tensor(offsets, device=chosen.device)


def _each(value: Any, n: int) -> list[int]:
    given = [value] if isinstance(value, int) else list(value)
    return given * n if len(given) == 1 else given


def as_matrix(call: ReadCall, weight: Tensor) -> Tensor:
    """A weight as [groups, made / groups, columns], that its rows meet what `rows` gives."""
    if call.kind == "matmul":
        return weight.t().unsqueeze(0)
    return weight.reshape(call.groups, weight.shape[0] // call.groups, -1)


def as_weight(call: ReadCall, matrix: Tensor) -> Tensor:
    """`as_matrix` undone."""
    return matrix[0].t() if call.kind == "matmul" else matrix.reshape(call.weight.shape)


@dataclass
class Moments:
    """Sums over rows x [groups, rows, n] and y [groups, rows, m], in float64.

    Attributes:
        count: rows.
        x, y: their sums.
        xx, xy, yy: sums of x x^T, x y^T and of y squared.
    """

    count: int
    x: Tensor
    y: Tensor
    xx: Tensor
    xy: Tensor
    yy: Tensor

    @classmethod
    def of(cls, x: Tensor, y: Tensor) -> Moments:
        """Sums of one batch: products in its own precision, sums of batches in float64."""
        return cls(
            x.shape[1],
            x.sum(1).double(),
            y.sum(1).double(),
            (x.mT @ x).double(),
            (x.mT @ y).double(),
            y.double().square().sum(1),
        )

    def __add__(self, other: Moments) -> Moments:
        return Moments(
            self.count + other.count,
            self.x + other.x,
            self.y + other.y,
            self.xx + other.xx,
            self.xy + other.xy,
            self.yy + other.yy,
        )

    def centred(self) -> Moments:
        """The sums about the means, for a fit with an offset."""
        x, y = self.x / self.count, self.y / self.count
        return Moments(
            self.count,
            torch.zeros_like(self.x),
            torch.zeros_like(self.y),
            self.xx - self.count * x.unsqueeze(2) * x.unsqueeze(1),
            self.xy - self.count * x.unsqueeze(2) * y.unsqueeze(1),
            self.yy - self.count * y.square(),
        )

    def error(self, matrix: Tensor, offset: Tensor | None = None) -> float:
        """Sum of squares of y - W x - b, for W [groups, m, n] and b [groups, m]."""
        w = matrix.double()
        squares = self.yy - 2 * (w * self.xy.mT).sum(2) + ((w @ self.xx) * w).sum(2)
        if offset is not None:
            b = offset.double()
            through = (w * self.x.unsqueeze(1)).sum(2)
            squares = squares + self.count * b.square() - 2 * b * (self.y - through)
        return float(squares.sum())
