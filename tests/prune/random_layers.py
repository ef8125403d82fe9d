"""The simple blocks of random networks: single layers, norms, functions of each element and over space."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from prune_nets import Net
from random_block import MOST, WIDTHS, B, Build, Shape, divisor, pick
from torch import nn
from torch.nn.utils.parametrizations import weight_norm


def conv(s: Shape, b: B, build: Build) -> tuple[nn.Module, Shape]:
    (c, h, w), out = s, pick(WIDTHS, b.b)
    kind = pick(("same", "pointwise", "no bias", "stride", "dilated", "weight norm"), b.a)
    if kind == "stride" and h >= 4:
        return nn.Conv2d(c, out, 3, 2, 1), (out, (h + 1) // 2, (w + 1) // 2)
    if kind == "dilated":
        return nn.Conv2d(c, out, 3, padding=2, dilation=2, padding_mode="reflect" if min(h, w) > 2 else "zeros"), (
            out,
            h,
            w,
        )
    if kind == "weight norm":
        return weight_norm(nn.Conv2d(c, out, 1)), (out, h, w)
    if kind == "pointwise":
        return nn.Conv2d(c, out, 1), (out, h, w)
    return nn.Conv2d(c, out, 3, padding=1, bias=kind == "same"), (out, h, w)


def unit(s: Shape, b: B, build: Build) -> tuple[nn.Module, Shape]:
    """Convolution, norm, activation."""
    c, h, w = s
    out = pick(WIDTHS, b.b)
    layers = [nn.Conv2d(c, out, 3, padding=1, bias=False), norm((out, h, w), B("norm", b.a), build)[0]]
    return nn.Sequential(*layers, pick((nn.ReLU(), nn.ReLU(inplace=True), nn.SiLU(), nn.GELU()), b.a // 3)), (out, h, w)


def grouped(s: Shape, b: B, build: Build) -> tuple[nn.Module, Shape]:
    c, h, w = s
    g = divisor(c, b.b)
    out = pick((c, 2 * c if c <= MOST else c, 2 * g, 4 * g), b.a)
    return nn.Conv2d(c, out, pick((3, 1), b.a // 4), padding=pick((1, 0), b.a // 4), groups=g), (out, h, w)


def depthwise(s: Shape, b: B, build: Build) -> tuple[nn.Module, Shape]:
    c, h, w = s
    out = c * (pick((1, 2, 3), b.a) if c <= MOST // 2 else 1)
    return nn.Conv2d(c, out, 3, padding=1, groups=c, bias=b.b % 2 == 0), (out, h, w)


def transposed(s: Shape, b: B, build: Build) -> tuple[nn.Module, Shape]:
    c, h, w = s
    kind, g = pick(("plain", "grouped", "depthwise", "up"), b.a), divisor(c, b.b)
    if kind == "up" and h <= 4:
        return nn.ConvTranspose2d(c, pick(WIDTHS, b.b), 2, 2), (pick(WIDTHS, b.b), 2 * h, 2 * w)
    groups, out = 1, pick(WIDTHS, b.b)
    if kind == "grouped":
        groups, out = g, pick((2, 3, 4), b.a // 4) * g
    if kind == "depthwise":
        groups, out = c, pick((1, 2), b.a // 4) * c
    return nn.ConvTranspose2d(c, out, 3, padding=1, groups=groups), (out, h, w)


def conv1d(s: Shape, b: B, build: Build) -> tuple[nn.Module, Shape]:
    """A convolution over the flattened positions, or over the rows."""
    (c, h, w), out = s, pick(WIDTHS, b.b)

    def run(m: Any, x: torch.Tensor) -> torch.Tensor:
        if b.a % 4 == 1:
            return m.a(x.permute(0, 2, 1, 3).flatten(0, 1)).unflatten(0, (-1, h)).transpose(1, 2)
        y = m.a(x.flatten(2))
        return y.view(x.shape[0], out, h, w) if b.a % 4 == 2 else y.unflatten(2, (h, w))

    return Net(run, a=nn.Conv1d(c, out, 3, padding=1)), (out, h, w)


def norm(s: Shape, b: B, build: Build) -> tuple[nn.Module, Shape]:
    c, h, w = s
    kinds = ("batch", "layer", "group", "one group", "rms", "instance", "no affine", "no bias", "instance affine",
             "no statistics", "whole", "group each")  # fmt: skip
    kind = pick(kinds, b.a)
    if kind in ("layer", "rms", "no bias"):
        own = nn.RMSNorm(c) if kind == "rms" else nn.LayerNorm(c, bias=kind == "layer")
        return Net(lambda m, x: m.a(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2), a=own), s
    made = {
        "batch": lambda: nn.BatchNorm2d(c),
        "group": lambda: nn.GroupNorm(divisor(c, b.b), c),
        "one group": lambda: nn.GroupNorm(1, c),
        "group each": lambda: nn.GroupNorm(c, c),
        "instance": lambda: nn.InstanceNorm2d(c),
        "instance affine": lambda: nn.InstanceNorm2d(c, affine=True, track_running_stats=b.b % 2 == 1),
        "no affine": lambda: nn.BatchNorm2d(c, affine=False),
        "no statistics": lambda: nn.BatchNorm2d(c, track_running_stats=False),
        "whole": lambda: nn.LayerNorm((c, h, w)),
    }
    return made[kind](), s


class Slope(nn.Module):
    """A learned threshold a channel."""

    def __init__(self, c: int) -> None:
        super().__init__()
        self.slope = nn.Parameter(torch.randn(c))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.maximum(x, x * self.slope[:, None, None])


def act(s: Shape, b: B, build: Build) -> tuple[nn.Module, Shape]:
    made = (
        nn.ReLU, nn.GELU, nn.SiLU, lambda: nn.PReLU(s[0]), nn.PReLU, nn.Hardswish, nn.LeakyReLU, nn.Tanh, nn.ELU,
        nn.Sigmoid, lambda: Slope(s[0]), nn.Softplus,
    )  # fmt: skip
    return pick(made, b.a)(), s


def math(s: Shape, b: B, build: Build) -> tuple[nn.Module, Shape]:
    """Arithmetic without parameters, zeros kept or not."""
    made: tuple[Callable[[Any, torch.Tensor], torch.Tensor], ...] = (
        lambda m, x: x * 0.5,
        lambda m, x: x.clamp(-1, 1),
        lambda m, x: torch.where(x > 0, x, 0.1 * x),
        lambda m, x: torch.where(x > 0, x, torch.zeros_like(x)),
        lambda m, x: x.masked_fill(x < -0.5, 0.0),
        lambda m, x: x + 0.5,
        lambda m, x: x.clamp(min=0.2),
        lambda m, x: x / (1 + x.abs()),
        lambda m, x: torch.addcmul(x, x, x.sigmoid(), value=0.5),
        lambda m, x: (x + x).mul_(0.5).sub_(0.1).clamp_(-1, 2),
        lambda m, x: (x**2 + 1).sqrt() - 1,
        lambda m, x: F.normalize(x, dim=1),
    )
    return Net(pick(made, b.a)), s


def space(s: Shape, b: B, build: Build) -> tuple[nn.Module, Shape]:
    """Pooling, interpolation, padding, rolls and flips over positions."""
    c, h, w = s
    if min(h, w) < 4:
        b = B("space", 2 * (b.a % 2) + 4, b.b)
    half, more = (c, h // 2, w // 2), (c, h + 2, w + 1)
    kinds: tuple[tuple[nn.Module, Shape], ...] = (
        (nn.MaxPool2d(2), half),
        (nn.AvgPool2d(2), half),
        (nn.AdaptiveAvgPool2d((3, 2)), (c, 3, 2)),
        (nn.MaxPool2d(3, 1, 1), s),
        (Net(lambda m, x: x.roll(1, 3).flip(2)), s),
        (Net(lambda m, x: x[:, :, ::2, 1:]), (c, (h + 1) // 2, w - 1)),
        (nn.Upsample(scale_factor=2, mode="bilinear"), (c, 2 * h, 2 * w))
        if max(h, w) <= 3
        else (nn.ReflectionPad2d(1), s),
        (Net(lambda m, x: F.pad(x, (1, 0, 2, 0))), more),
        (Net(lambda m, x: F.pad(x, (0, 1, 1, 1), value=0.5)), more),
        (Net(lambda m, x: F.pad(x, (1, 1, 1, 1), mode="reflect")[:, :, 1:-1, 1:-1]), s),
        (Net(lambda m, x: x.transpose(2, 3)), (c, w, h)),
        (Net(lambda m, x: x.cumsum(2) * 0.2), s),
    )
    layer, out = kinds[b.a % len(kinds)]
    if isinstance(layer, nn.ReflectionPad2d):
        out = (c, h + 2, w + 2)
    return layer, out
