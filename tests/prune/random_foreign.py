"""Blocks of random networks as other people write them: norms by hand, sizes in numbers, constants beside channels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from prune_nets import Net
from random_block import B, Build, Shape, pick
from torch import nn


def byhand(s: Shape, b: B, build: Build) -> tuple[nn.Module, Shape]:
    """Norms that no library computes, with weights of their own."""

    def mean(x: torch.Tensor) -> torch.Tensor:
        return x.mean(1, keepdim=True)

    ways: tuple[Callable[[torch.Tensor], torch.Tensor], ...] = (
        lambda x: (x - mean(x)) / torch.sqrt(mean((x - mean(x)).pow(2)) + 1e-3),
        lambda x: x * torch.rsqrt(mean(x.pow(2)) + 1e-3),
        lambda x: x * (x.pow(2).mean((2, 3), keepdim=True) / (x.pow(2).mean((1, 2, 3), keepdim=True) + 1e-3)),
        lambda x: (x - mean(x)) * (x.flatten(1).var(1, correction=0) + 1e-3).rsqrt().view(-1, 1, 1, 1),
    )
    way = pick(ways, b.a)
    own = {name: nn.Parameter(1 + 0.3 * torch.randn(s[0], 1, 1)) for name in ("weight", "bias")}
    return Net(lambda m, x: way(x) * m.weight + m.bias, **own), s


class Standardised(nn.Conv2d):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        w = F.batch_norm(self.weight.reshape(1, self.out_channels, -1), None, None, training=True, eps=1e-3)
        return F.conv2d(x, w.reshape_as(self.weight), self.bias, padding=1)


class Kept(nn.Module):
    """Sizes in numbers and lists, which a cut has to follow."""

    def __init__(self, c: int, way: int) -> None:
        super().__init__()
        first = max(2, c // 3)
        self.sizes: Any = [first, c - first] if way % 2 else (first, c - first)
        self.n, self.way = first, way
        self.c = nn.Conv2d(first, first, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y, z = x.split(list(self.sizes), 1) if self.way < 3 else (x[:, : self.n], x[:, self.n :])
        return torch.cat([self.c(y) if self.way != 1 else self.c(y) + y, z], 1)


def foreign(s: Shape, b: B, build: Build) -> tuple[nn.Module, Shape]:
    c, h, w = s
    kind = pick(("standardised", "sizes", "constants", "copies", "branches"), b.a)
    if kind == "standardised":
        return Standardised(c, c, 3), s
    if kind == "sizes":
        return Kept(c, b.b % 4), s
    if kind == "constants":
        beside: tuple[Callable[[torch.Tensor], Sequence[torch.Tensor]], ...] = (
            lambda x: [x, torch.ones(len(x), 2, h, w).to(x)],
            lambda x: [torch.linspace(-1, 1, w).to(x).expand(len(x), 2, h, w), x],
            lambda x: [torch.zeros(len(x), 2, h, w).to(x), x],
        )
        way = pick(beside, b.b)
        return Net(lambda m, x: m.fit(torch.cat([*way(x)], 1)), fit=nn.Conv2d(c + 2, c, 1)), s
    if kind == "copies":
        net = Net(lambda m, x: F.conv2d(x, m.kernel, padding=1, groups=x.shape[1]))
        net.register_buffer("kernel", torch.randn(1, 1, 3, 3).repeat(c, 1, 1, 1), persistent=False)
        return net, s

    def weighed(m: Any, x: torch.Tensor) -> torch.Tensor:
        both = torch.stack([m.a(x), m.b(x)], 1)
        weights = m.fc(both.sum(1).mean((2, 3))).unflatten(1, (2, -1)).softmax(1)
        return (both * weights[..., None, None]).sum(1)

    layers = {"a": nn.Conv2d(c, c, 1), "b": nn.Conv2d(c, c, 3, padding=1), "fc": nn.Linear(c, 2 * c)}
    return Net(weighed, **layers), s
