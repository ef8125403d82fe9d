"""Blocks of random networks on images [N, C, H, W]: what each kind builds. Plain data in, modules out.

A builder takes the shape that comes in, the block and a function that builds a run of inner blocks; it gives a module
and the shape that comes out. `a` and `b` of a block choose among variants, 0 being the simplest.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from prune_nets import Net
from random_block import MOST, WIDTHS, B, Build, Shape, divisor, fitted, pick, sized
from random_foreign import byhand, foreign
from random_layers import act, conv, conv1d, depthwise, grouped, math, norm, space, transposed, unit
from torch import nn
from torchvision.ops import StochasticDepth


def residual(s: Shape, b: B, build: Build) -> tuple[nn.Module, Shape]:
    body, t = build(s, b.inner)
    ways: tuple[Callable[..., torch.Tensor], ...] = (
        lambda m, x, y: x + y,
        lambda m, x, y: F.relu(x + y),
        lambda m, x, y: (1.0 * y).add_(x),
        lambda m, x, y: x + y * m.scale[:, None, None],
        lambda m, x, y: x + m.gate * y,
        lambda m, x, y: torch.maximum(x, y),
        lambda m, x, y: torch.lerp(x, y, 0.3),
        lambda m, x, y: torch.addcmul(x, y, m.scale.view(1, -1, 1, 1)),
        lambda m, x, y: x + m.drop(y),
        lambda m, x, y: torch.stack([x, y]).sum(0),
        lambda m, x, y: x + y + m.scale.reshape(1, -1, 1, 1),
        lambda m, x, y: torch.stack((x, y), dim=1).amax(1),
    )
    way = pick(ways, b.a)
    layers: dict[str, Any] = {"body": body, "fit": fitted(t, s[0]), "drop": StochasticDepth(0.5, "row")}
    if b.a % len(ways) in (3, 7, 10):
        layers["scale"] = nn.Parameter(torch.randn(s[0]))
    if b.a % len(ways) == 4:
        layers["gate"] = nn.Parameter(torch.randn(1))
    return Net(lambda m, x: way(m, x, sized(m.fit(m.body(x)), x)), **layers), s


def dense(s: Shape, b: B, build: Build) -> tuple[nn.Module, Shape]:
    """Side by side with what came in."""
    if s[0] > MOST:
        return build(s, (B("conv", 1), B("dense", b.a, b.b, b.inner)))
    body, t = build(s, b.inner)
    sides = (
        lambda x, y: torch.cat([x, y], 1),
        lambda x, y: torch.cat([y, x], 1),
        lambda x, y: torch.cat([x, y, x], 1) if 2 * s[0] + t[0] < 2 * MOST else torch.cat((x, y), -3),
    )
    out = s[0] + t[0] + (s[0] if b.a % 3 == 2 and 2 * s[0] + t[0] < 2 * MOST else 0)
    side = pick(sides, b.a)
    return Net(lambda m, x: side(x, sized(m.body(x), x)), body=body), (out, *s[1:])


def branches(s: Shape, b: B, build: Build) -> tuple[nn.Module, Shape]:
    """Two ways that meet: added, side by side, gated, stacked, weighted by a softmax over the ways."""
    (left, t), (right, u) = build(s, b.inner), build(s, b.other)
    c = t[0]
    side = pick(("add", "cat", "gate", "stack", "selective", "maximum"), b.a)
    layers: dict[str, Any] = {"left": left, "right": right}
    if side != "cat":
        layers["fit"] = fitted(u, c)
    if side == "selective":
        layers["fc"] = nn.Linear(c, 2 * c)

    def run(m: Any, x: torch.Tensor) -> torch.Tensor:
        y = m.left(x)
        z = sized(m.right(x), y)
        if side == "cat":
            return torch.cat([y, z], 1)
        z = m.fit(z)
        if side == "gate":
            return y * torch.sigmoid(z)
        if side == "stack":
            return torch.stack([y, z, y], 1).sum(1) if b.b % 2 else torch.stack([y, z]).mean(0)
        if side == "selective":
            both = torch.stack([y, z], 1)
            weights = m.fc(both.sum(1).mean((2, 3))).view(x.shape[0], 2, -1).softmax(1)
            return (both * weights[..., None, None]).sum(1)
        return torch.maximum(y, z) if side == "maximum" else y + z

    return Net(run, **layers), (t[0] + u[0] if side == "cat" else c, *t[1:])


def halves(s: Shape, b: B, build: Build) -> tuple[nn.Module, Shape]:
    """Parts of the channels go different ways."""
    c, h, w = s
    first = c // 2 if b.a % 6 < 4 else max(1, c // 3)
    (left, t), (right, u) = build((first, h, w), b.inner), build((c - first, h, w), b.other)
    cuts: tuple[Callable[[torch.Tensor], Sequence[torch.Tensor]], ...] = (
        lambda x: x.chunk(2, 1) if c % 2 == 0 else x.split([first, c - first], 1),
        lambda x: (x[:, : x.shape[1] // 2], x[:, x.shape[1] // 2 :]),
        lambda x: x.view(x.shape[0], 2, -1, h, w).unbind(1) if c % 2 == 0 else x.tensor_split([first], 1),
        lambda x: (x[:, ::2], x[:, 1::2]) if c % 2 == 0 else (x[:, :first], x[:, first:]),
        lambda x: x.split([first, c - first], 1),
        lambda x: (x.narrow(1, 0, first), x.narrow(1, first, c - first)),
    )
    cut = pick(cuts, b.a)

    def run(m: Any, x: torch.Tensor) -> torch.Tensor:
        parts = cut(x)
        y, z = m.left(parts[0]), m.right(parts[1])
        return torch.cat([y, sized(z, y)], 1)

    return Net(run, left=left, right=right), (t[0] + u[0], *t[1:])


def shuffle(s: Shape, b: B, build: Build) -> tuple[nn.Module, Shape]:
    c, h, w = s
    g = divisor(c, b.b)

    def view(m: Any, x: torch.Tensor) -> torch.Tensor:
        n, c, h, w = x.shape
        return x.view(n, g, c // g, h, w).transpose(1, 2).reshape(n, c, h, w)

    def fixed(m: Any, x: torch.Tensor) -> torch.Tensor:
        return x.view(-1, g, c // g, h, w).transpose(1, 2).flatten(1, 2)

    return pick((Net(view), nn.ChannelShuffle(g), Net(lambda m, x: view(m, view(m, x))), Net(fixed)), b.a), s


def order(s: Shape, b: B, build: Build) -> tuple[nn.Module, Shape]:
    """Channels in another order."""
    c = s[0]
    chosen = torch.randperm(c)
    ways: tuple[Callable[[Any, torch.Tensor], torch.Tensor], ...] = (
        lambda m, x: x.flip(1),
        lambda m, x: x[:, m.order],
        lambda m, x: x.index_select(1, m.order),
        lambda m, x: x.roll(x.shape[1] // 2, 1),
        lambda m, x: x.roll(1, 1) + x,
        lambda m, x: x[:, chosen.tolist()],
        lambda m, x: x.gather(1, m.order.view(1, -1, 1, 1).expand(len(x), -1, *x.shape[2:])),
        lambda m, x: x + x.flip(1),
    )
    net = Net(pick(ways, b.a))
    net.register_buffer("order", chosen)
    return net, s


def pixels(s: Shape, b: B, build: Build) -> tuple[nn.Module, Shape]:
    """Channels to positions and back."""
    c, h, w = s
    if b.a % 3 == 0 and h % 2 == w % 2 == 0:
        layer = pick((nn.PixelUnshuffle(2), nn.Unfold(2, stride=2)), b.b)
        way = Net(lambda m, x: m.b(m.a(x).view(len(x), -1, h // 2, w // 2)), a=layer, b=nn.Conv2d(4 * c, c, 1))
        return way, (c, h // 2, w // 2)
    if b.a % 3 == 1 and h <= 4:
        return nn.Sequential(nn.Conv2d(c, 4 * 6, 1), nn.PixelShuffle(2)), (6, 2 * h, 2 * w)

    def patches(m: Any, x: torch.Tensor) -> torch.Tensor:
        y = m.a(F.unfold(x, 3, padding=1).transpose(1, 2)).transpose(1, 2)
        return y.unflatten(2, (h, w)) if b.b % 2 else F.fold(m.b(y), (h, w), 3, padding=1)

    out = pick(WIDTHS, b.a)
    layers = {"a": nn.Linear(9 * c, out)} | ({} if b.b % 2 else {"b": nn.Conv1d(out, 9 * out, 1)})
    return Net(patches, **layers), (out, h, w)


def mix(s: Shape, b: B, build: Build) -> tuple[nn.Module, Shape]:
    """Linear layers over channels or positions, and contractions spelt as einsum."""
    (c, h, w), out = s, pick(WIDTHS, b.b)
    kind = pick(("last", "einsum", "positions", "matmul", "flat", "gram"), b.a)
    if kind == "last":
        return Net(lambda m, x: m.a(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2), a=nn.Linear(c, out)), (out, h, w)
    if kind == "einsum":
        own = nn.Parameter(torch.randn(c, out) / c)
        return Net(lambda m, x: torch.einsum("nchw,cd->ndhw", x, m.a), a=own), (out, h, w)
    if kind == "positions":
        own = nn.Sequential(nn.Linear(h * w, 5), nn.GELU(), nn.Linear(5, h * w))
        return Net(lambda m, x: x + m.a(x.flatten(2)).view_as(x), a=own), s
    if kind == "matmul":
        own = nn.Parameter(torch.randn(out, c) / c)
        return Net(lambda m, x: (m.a @ x.flatten(2)).unflatten(2, (h, w)), a=own), (out, h, w)
    if kind == "flat":
        own = nn.Sequential(nn.Linear(c * h * w, 7), nn.ReLU(), nn.Linear(7, c * h * w))
        return Net(lambda m, x: x + m.a(x.flatten(1)).reshape(x.shape), a=own), s

    def gram(m: Any, x: torch.Tensor) -> torch.Tensor:
        return torch.einsum("ncd,ndhw->nchw", torch.einsum("nchw,ndhw->ncd", x, m.a(x)) * 0.05, x)

    return Net(gram, a=nn.Conv2d(c, c, 1)), s


def gate(s: Shape, b: B, build: Build) -> tuple[nn.Module, Shape]:
    """Squeeze and excite, and its relatives."""
    c, h, w = s
    kind = pick(("convs", "linears", "both pools", "positions", "rows", "context", "experts", "eca"), b.a)
    less = pick((4, 2, 6), b.b)
    convs = nn.Sequential(nn.Conv2d(c, less, 1), nn.ReLU(), nn.Conv2d(less, c, 1))
    last = pick((torch.sigmoid, F.hardsigmoid, torch.tanh), b.b // 3)
    if kind == "convs":
        return Net(lambda m, x: x * last(m.a(F.adaptive_avg_pool2d(x, 1))), a=convs), s
    if kind == "linears":
        own = nn.Sequential(nn.Linear(c, less), nn.SiLU(), nn.Linear(less, c))
        return Net(lambda m, x: x * last(m.a(x.mean((2, 3)))).view(x.shape[0], -1, 1, 1).expand_as(x), a=own), s
    if kind == "both pools":
        return Net(lambda m, x: last(m.a(x.mean((2, 3), True)) + m.a(x.amax((2, 3), True))) * x, a=convs), s
    if kind == "positions":
        return Net(lambda m, x: x * last(m.a(x)), a=nn.Conv2d(c, 1, 1)), s
    if kind == "rows":

        def rows(m: Any, x: torch.Tensor) -> torch.Tensor:
            y = m.a(torch.cat([x.mean(3, keepdim=True), x.mean(2, keepdim=True).transpose(2, 3)], 2))
            down, across = y.split([h, w], 2)
            return x * last(down) * last(across.transpose(2, 3))

        return Net(rows, a=convs), s
    if kind == "context":

        def context(m: Any, x: torch.Tensor) -> torch.Tensor:
            weights = m.mask(x).flatten(2).softmax(-1)
            return x + m.a((x.flatten(2) @ weights.transpose(1, 2)).unsqueeze(-1))

        return Net(context, mask=nn.Conv2d(c, 1, 1), a=convs), s
    if kind == "experts":

        def experts(m: Any, x: torch.Tensor) -> torch.Tensor:
            weights = m.gate(x.mean((2, 3))).softmax(-1)
            return (torch.stack([m.a(x), m.b(x)], 1) * weights[:, :, None, None, None]).sum(1)

        return Net(experts, gate=nn.Linear(c, 2), a=nn.Conv2d(c, c, 1), b=nn.Conv2d(c, c, 3, padding=1)), s
    eca = nn.Conv1d(1, 1, 3, padding=1)
    return Net(lambda m, x: x * last(m.a(x.mean((2, 3)).unsqueeze(1)).squeeze(1))[:, :, None, None], a=eca), s


def glu(s: Shape, b: B, build: Build) -> tuple[nn.Module, Shape]:
    (c, h, w), out = s, pick(WIDTHS, b.b)
    ways: tuple[Callable[[torch.Tensor], torch.Tensor], ...] = (
        lambda y: F.glu(y, 1),
        lambda y: y.chunk(2, 1)[0] * y.chunk(2, 1)[1],
        lambda y: F.silu(y[:, : y.shape[1] // 2]) * y[:, y.shape[1] // 2 :],
        lambda y: torch.mul(*y.split(out, 1)),
        lambda y: y.unflatten(1, (2, -1)).prod(1),
        lambda y: y.unflatten(1, (-1, 2)).amax(2),
    )
    way = pick(ways, b.a)
    return Net(lambda m, x: way(m.a(x)), a=nn.Conv2d(c, 2 * out, 1)), (out, h, w)


def tied(s: Shape, b: B, build: Build) -> tuple[nn.Module, Shape]:
    """One parameter, several uses."""
    c = s[0]
    kind = pick(("twice", "two names", "there and back", "shared norm"), b.a)
    if kind == "twice":
        return Net(lambda m, x: m.a(F.relu(m.a(x))), a=nn.Conv2d(c, c, 3, padding=1)), s
    if kind == "two names":
        first, second = nn.Conv2d(c, c, 1), nn.Conv2d(c, c, 1)
        second.weight = first.weight
        return Net(lambda m, x: m.a(x) + F.relu(m.b(x)), a=first, b=second), s
    if kind == "there and back":
        own = nn.Conv2d(c, pick(WIDTHS, b.b), 1)
        return Net(lambda m, x: F.conv_transpose2d(F.gelu(m.a(x)), m.a.weight), a=own), s
    own, other = nn.Conv2d(c, c, 1), nn.BatchNorm2d(c)
    return Net(lambda m, x: m.n(m.a(x)) + m.n(x), a=own, n=other), s


def scale(s: Shape, b: B, build: Build) -> tuple[nn.Module, Shape]:
    """Bare parameters."""
    c, h, w = s
    shapes = ((c, 1, 1), (1, c, 1, 1), (c,), (1, c, h, w), (1, 1, h, w), (1,))
    shape = pick(shapes, b.a)
    a, d = nn.Parameter(1 + 0.3 * torch.randn(shape)), nn.Parameter(torch.randn(shape))
    wide = (lambda t: t.view(-1, 1, 1)) if shape == (c,) else (lambda t: t)
    ways: tuple[Callable[[Any, torch.Tensor], torch.Tensor], ...] = (
        lambda m, x: x * wide(m.a) + wide(m.d),
        lambda m, x: (x - wide(m.d)) * wide(m.a),
        lambda m, x: x * torch.exp(wide(m.a)) + 0 * wide(m.d),
        lambda m, x: F.relu(x + wide(m.d)) / (1 + wide(m.a) ** 2),
    )
    return Net(pick(ways, b.b), a=a, d=d), s


def widen(s: Shape, b: B, build: Build) -> tuple[nn.Module, Shape]:
    """Each channel several times."""
    c, h, w = s
    if c > MOST:
        return nn.Conv2d(c, 8, 1), (8, h, w)
    ways: tuple[Callable[[Any, torch.Tensor], torch.Tensor], ...] = (
        lambda m, x: x.repeat(1, 2, 1, 1),
        lambda m, x: x.repeat_interleave(2, 1),
        lambda m, x: x.unsqueeze(2).expand(-1, -1, 2, -1, -1).flatten(1, 2),
        lambda m, x: torch.cat([x, -x], 1),
        lambda m, x: x.unsqueeze(1).expand(-1, 2, -1, -1, -1).reshape(len(x), -1, h, w),
        lambda m, x: torch.cat((F.relu(x), torch.tanh(x.flip(1))), 1),
    )
    return Net(pick(ways, b.a)), (2 * c, h, w)


IMAGES: dict[str, Callable[[Shape, B, Build], tuple[nn.Module, Shape]]] = {
    f.__name__: f
    for f in (conv, unit, act, norm, residual, dense, branches, halves, grouped, depthwise, transposed, conv1d, math,
              space, shuffle, order, pixels, mix, gate, glu, tied, scale, widen, byhand, foreign)
}  # fmt: skip
