"""Cases of the rule table, continued: statistics over channels, orders, windows, and places that are computed."""

import torch
import torch.nn.functional as F
import torchvision
from prune_nets import conv
from rule_cases import add, space
from rule_moves import CASES
from rule_nets import A, below, between, pair, whole
from torch import nn

__all__ = ["CASES"]

# Where the largest elements lie ---------------------------------------------------------------------------

for n in (1, 2, 3):
    names = {1: ("adaptive_max_pool1d",), 2: ("adaptive_max_pool2d", "max_pool2d_with_indices"), 3: ()}[n]
    names += ("adaptive_max_pool3d", "max_pool3d_with_indices") if n == 3 else ()
    for name in names:
        cut = below if n == 1 else lambda run: run
        place = cut(lambda y, f=getattr(A, name), n=n: f(y, [2] * n)[1])
        add(name, space(n, lambda y, f=place: f(torch.tanh(y)).to(y.dtype), free=0, held="becomes a constant"))


def fractional(y):
    at = torch.full((y.shape[0], y.shape[1], 2), 0.4, dtype=y.dtype, device=y.device)
    return F.fractional_max_pool2d(y, 2, output_size=3, _random_samples=at, return_indices=True)[1].to(y.dtype)


add("fractional_max_pool2d", space(2, fractional, free=0, held="becomes a constant"))


def unpooled(n):
    pool, back = getattr(F, f"max_pool{n}d"), getattr(F, f"max_unpool{n}d")

    def run(m, y, z):
        values, places = pool(torch.tanh(y), 2, return_indices=True)
        return back(values + pool(z, 2), places, 2)

    return run


for n, kind in ((2, nn.Conv2d), (3, nn.Conv3d)):
    make = lambda wide, out, kind=kind: kind(wide, out, 3, padding=1)
    x = lambda n=n: torch.randn(4, 3, *[4] * n)
    add(f"max_unpool{n}d", pair(lambda y, z, f=unpooled(n): f(None, y, z), make=make, x=x))
    others = lambda y, z, n=n: getattr(F, f"max_unpool{n}d")(
        getattr(F, f"max_pool{n}d")(z, 2), getattr(F, f"max_pool{n}d")(y, 2, return_indices=True)[1], 2
    )
    # The places of other channels: as many, one by one.
    add(f"max_unpool{n}d", pair(others, make=make, x=x, free={"a": 6}))

# Orders and windows ---------------------------------------------------------------------------------------

for name, run in {
    "topk": lambda y, d: A.topk(y, 2, d)[0],
    "sort": lambda y, d: A.sort(y, d)[0],
}.items():
    add(name, space(1, lambda y, f=run: f(y, 2)), space(1, lambda y, f=run: f(y, -1)))
    add(
        name, between(lambda y, f=run: f(y, 1), free=0, read=2 if name == "topk" else None, held="an order of channels")
    )
add("unfold", space(1, lambda y: A.unfold(y, 2, 2, 2).sum(-1)), space(1, lambda y: A.unfold(y, -1, 3, 1)[..., 0]))
add("unfold", between(lambda y: A.unfold(y, 1, 2, 2).sum(-1), read=3, free=0, held="runs of channels"))

# Deformable convolution -----------------------------------------------------------------------------------


def deformable(sets=1, masked=False, groups=1, **more):
    def run(m, x):
        y, places = torch.tanh(m.a(x)), m.o(x)
        return m.b(m.d(y, places, m.k(x).sigmoid()) if masked else m.d(y, places))

    layers = {"a": lambda: conv(3, 6), "o": lambda: conv(3, 18 * sets), "b": lambda: conv(6, 5)}
    if masked:
        layers["k"] = lambda: conv(3, 9 * sets)
    layers["d"] = lambda: torchvision.ops.DeformConv2d(6, 6, 3, padding=1, groups=groups)
    return whole(run, **layers, **more)


places = {"o.weight:0": "places in torchvision.deform_conv2d"}
macs = 8 * 16 * 9 * (3 * 6 + 3 * 18 + 6 * 6 + 6 * 5)
add("deform_conv2d", deformable(free={"a": 6, "d": 6}, held=places, macs=macs), within="torchvision")
held = {**places, "k.weight:0": "places in torchvision.deform_conv2d"}
add("deform_conv2d", deformable(masked=True, free={"a": 6, "d": 6}, held=held), within="torchvision")
several = {"a.weight:0": "several sets of places"}
add("deform_conv2d", deformable(sets=2, held=several), within="torchvision")

# Branches of a channel under a softmax --------------------------------------------------------------------


def branches(m, x):
    y = torch.stack([m.a(x), m.c(x)], 1)
    weights = m.s(y.sum(1).mean((2, 3))).view(len(x), 2, -1, 1, 1)
    return m.b((y * torch.softmax(weights, 1)).sum(1))


add(
    "_softmax",
    whole(
        branches, a=lambda: conv(3, 6), c=lambda: conv(3, 6), s=lambda: nn.Linear(6, 12), b=lambda: conv(6, 5),
        free={"a": 6},
    ),
)  # fmt: skip

# Kernels that are standardised ----------------------------------------------------------------------------


class Standardised(nn.Conv2d):
    def forward(self, x):
        w = self.weight.reshape(1, self.out_channels, -1)
        w = F.batch_norm(w, None, None, training=True, eps=1e-6).reshape_as(self.weight)
        return F.conv2d(x, w, self.bias, padding=1)


add(
    "native_batch_norm",
    whole(
        lambda m, x: m.b(m.w(torch.tanh(m.a(x)))),
        a=lambda: conv(3, 6), w=lambda: Standardised(6, 7, 3), b=lambda: conv(7, 5), free={"a": 6, "w": 7},
    ),
)  # fmt: skip
