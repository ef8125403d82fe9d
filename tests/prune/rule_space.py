"""A tiny network for each operator over space and each reduction."""

import torch
import torch.nn.functional as F
import torchvision.ops
from prune_nets import conv, image
from rule_cases import CASES, add, number
from rule_nets import A, below, between, constant, pair, whole
from torch import nn

CONVS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}


def space(n, run, side=6, **settings):
    """An operator over n dimensions between convolutions over n dimensions."""
    make = lambda wide, out: CONVS[n](wide, out, 3, padding=1)
    shape = (4, 3, *[side] * n)
    return between(run, make=make, x=lambda: torch.randn(shape), **settings)


INDEX = {"free": 0, "held": "becomes a constant"}
"""Where a channel's largest element lies: of zeros, the first."""

for n in (1, 2, 3):
    dims = [2] * n
    for name in (f"max_pool{n}d", f"avg_pool{n}d"):
        f = getattr(A, name)
        cut = below if name != "avg_pool2d" and name != "avg_pool3d" else lambda g: g
        add(name, space(n, cut(lambda y, f=f, k=dims: f(y, k))))
    pools = {f"adaptive_avg_pool{n}d": below, f"_adaptive_avg_pool{n}d": None, f"adaptive_max_pool{n}d": below}
    for name, cut in pools.items():
        if not hasattr(A, name):
            continue
        first = name == "adaptive_max_pool1d" or "max" in name
        run = lambda y, f=getattr(A, name), k=dims, first=first: f(y, k)[0] if first else f(y, k)
        piece = below if cut is below and name not in ("adaptive_max_pool2d", "adaptive_max_pool3d") else lambda g: g
        add(name, space(n, piece(run)))
        if first:
            place = piece(lambda y, f=getattr(A, name), k=dims: f(y, k)[1])
            add(name, space(n, lambda y, f=place: number(f(y), y), **INDEX))
    for name in (f"upsample_nearest{n}d", f"_upsample_nearest_exact{n}d"):
        add(name, space(n, lambda y, f=getattr(A, name), n=n: f(y, [2 * s for s in y.shape[-n:]])))
    for name in (f"reflection_pad{n}d", f"replication_pad{n}d"):
        add(name, space(n, lambda y, f=getattr(A, name), n=n: f(y, [1, 2] * n)))
for n in (2, 3):
    f = getattr(A, f"max_pool{n}d_with_indices")
    add(f"max_pool{n}d_with_indices", space(n, lambda y, f=f, n=n: f(y, [2] * n)[0]))
    add(f"max_pool{n}d_with_indices", space(n, lambda y, f=f, n=n: number(f(y, [2] * n)[1], y), **INDEX))


def unpooled(n, value=lambda y: y):
    """Largest elements put back at the places that an index names."""

    def run(y, z=None):
        pool, unpool = getattr(F, f"max_pool{n}d"), getattr(F, f"max_unpool{n}d")
        return unpool(value(pool(y, 2)), pool(y if z is None else z, 2, return_indices=True)[1], 2)

    return run


for n in (2, 3):
    own = {"make": lambda i, o, n=n: CONVS[n](i, o, 3, padding=1), "x": lambda n=n: torch.randn(4, 3, *[6] * n)}
    add(f"max_unpool{n}d", space(n, unpooled(n)), pair(unpooled(n), **own))
    add(f"max_unpool{n}d", space(n, unpooled(n, value=torch.sigmoid), free=0, held="becomes a constant"))
for name, n in {
    "upsample_linear1d": 1, "upsample_bilinear2d": 2, "upsample_bicubic2d": 2, "upsample_trilinear3d": 3,
    "_upsample_bilinear2d_aa": 2, "_upsample_bicubic2d_aa": 2,
}.items():  # fmt: skip
    f = getattr(A, name)
    add(name, space(n, lambda y, f=f, n=n: f(y, [2 * s for s in y.shape[-n:]], False)))


def sampled(n):
    def run(y):
        place = torch.linspace(-1, 1, 5 * n, dtype=y.dtype, device=y.device)
        grid = place[: len(y) * 0 + 5, None].expand(5, n)
        grid = grid.view(1, *[1] * (n - 1), 5, n).expand(len(y), *[2] * (n - 1), 5, n)
        return F.grid_sample(y, grid, align_corners=False)

    return run


for n in (2, 3):
    add(f"grid_sampler_{n}d", space(n, sampled(n)))
add(
    "grid_sampler_2d",
    whole(
        lambda m, x: m.b(F.grid_sample(m.a(x), torch.tanh(m.g(x)).permute(0, 2, 3, 1), align_corners=False)),
        a=lambda: conv(3, 6), g=lambda: conv(3, 2), b=lambda: conv(6, 5),
        free={"a": 6}, held={"g.weight:0": "grid_sampler_2d"},
    ),
)  # fmt: skip


def fractional(y):
    at = torch.full((y.shape[0], y.shape[1], 2), 0.4, dtype=y.dtype, device=y.device)
    return F.fractional_max_pool2d(y, 2, output_size=3, _random_samples=at, return_indices=True)


add("fractional_max_pool2d", space(2, lambda y: fractional(y)[0]))
add("fractional_max_pool2d", space(2, lambda y: number(fractional(y)[1], y), **INDEX))
add("constant_pad_nd", space(2, lambda y: F.pad(y, (1, 2))), *constant(lambda y: F.pad(y, (1, 1), value=1.0)))
add("constant_pad_nd", between(lambda y: F.pad(y, (0, 0, 0, 0, 1, 1)), read=8))
add("constant_pad_nd", between(lambda y: F.pad(y, (0, 0, 0, 0, -1, 1)), read=6, free=0, held="padded channels"))


def flat(run, **settings):
    """What is left of each channel, read by a linear layer."""
    return between(run, make=lambda wide, out: nn.Linear(wide, out) if out == 5 else conv(wide, out), **settings)


SUMS = {
    "sum": lambda y, d: A.sum(y, d),
    "nansum": lambda y, d: A.nansum(y, d),
    "linalg_vector_norm": lambda y, d: A.linalg_vector_norm(y, 2, d),
    "norm": lambda y, d: A.norm(y, 2, d),
}
STATISTICS = {
    "mean": torch.mean,
    "amax": torch.amax,
    "amin": torch.amin,
    "var": torch.var,
    "std": torch.std,
    "var_mean": lambda y, d: sum(torch.var_mean(y, d)),
}
"""Over channels these are of those that are left."""

for name, run in {**SUMS, **STATISTICS}.items():
    add(name, flat(lambda y, f=run: f(y, [2, 3])), flat(lambda y, f=run: f(y, [-1, -2])))
    add(name, flat(lambda y, f=run: f(torch.sigmoid(y), [2, 3]), free=0, held="becomes a constant"))
for name, run in SUMS.items():
    add(name, between(lambda y, f=run: f(y, [1])[:, None], read=1))
    again = lambda y, f=run: f(torch.sigmoid(y), [1])[:, None]
    add(name, between(again, read=1, free=0, held="becomes a constant"))
for name, run in STATISTICS.items():
    add(name, between(lambda y, f=run: f(y, [1])[:, None], read=1, preserving=False))
    add(name, between(lambda y, f=run: f(torch.sigmoid(y), [1])[:, None], read=1, preserving=False))
    add(name, between(lambda y, f=run: f(y, [1, 2])[:, None, None], read=1, preserving=False))
SINGLE = {
    "max": lambda y, d: A.max(y, d)[0],
    "min": lambda y, d: A.min(y, d)[0],
    "prod": lambda y, d: A.prod(y, d),
    "median": lambda y, d: A.median(y, d)[0],
    "nanmedian": lambda y, d: A.nanmedian(y, d)[0],
}
for name, run in SINGLE.items():
    add(name, flat(lambda y, f=run: f(y.flatten(2), 2)))
    add(name, flat(lambda y, f=run: f(torch.sigmoid(y).flatten(2), 2), free=0, held="becomes a constant"))
    add(name, between(lambda y, f=run: f(y, 1)[:, None], read=1, free=0, held=f"aten.{name} over channels"))
ORDERS = {
    "sort": lambda y, d: A.sort(y, d),
    "topk": lambda y, d: A.topk(y, 3, d),
}
for name, run in ORDERS.items():
    add(name, between(lambda y, f=run: f(y, 3)[0]), between(lambda y, f=run: f(y, -2)[0]))
    add(name, between(lambda y, f=run: f(torch.sigmoid(y), 3)[0], free=0, held="becomes a constant"))
    add(name, between(lambda y, f=run: number(f(y, 3)[1], y), free=0, held="fixed size"))
    add(name, between(lambda y, f=run: f(y, 1)[0][:, :3], read=3, free=0, held="an order of channels"))
add("sort", between(lambda y: torch.sort(y, stable=True)[0]))
add("sort", between(lambda y: torch.sort(y, stable=True, dim=1)[0], free=0, held="an order of channels"))
add("topk", between(lambda y: torch.topk(y, 3)[0]))
add("unfold", between(lambda y: y.unfold(2, 2, 1).sum(-1)), between(lambda y: y.unfold(-1, 2, 2)[..., 1]))
add("unfold", between(lambda y: torch.sigmoid(y).unfold(2, 2, 1).sum(-1), free=0, held="becomes a constant"))
add("unfold", between(lambda y: y.unfold(1, 3, 3).sum(1).movedim(-1, 1), read=3, free=0, held="runs of channels"))
SHIFTED = {
    "logsumexp": lambda y, d: A.logsumexp(y, [d]),
    "argmax": lambda y, d: A.argmax(y, d).to(y.dtype),
    "argmin": lambda y, d: A.argmin(y, d).to(y.dtype),
    "any": lambda y, d: A.any(y, d).to(y.dtype),
    "all": lambda y, d: A.all(y, d).to(y.dtype),
}
for name, run in SHIFTED.items():
    add(name, flat(lambda y, f=run: f(y.mean(2), 2), free=0, held="becomes a constant"))
    add(
        name,
        flat(
            lambda m, y, f=run: m.n(f(y.mean(2).round(decimals=1), 2)),
            n=lambda: nn.BatchNorm1d(6),
            x=lambda: image(32, 4),
        ),
    )
    add(name, between(lambda y, f=run: f(y, 1)[:, None], read=1, free=0, held=f"aten.{name} over channels"))
for name in ("cumsum", "cumprod"):
    f = getattr(A, name)
    add(name, between(lambda y, f=f: f(y, 2)))
    add(name, between(lambda y, f=f: f(torch.sigmoid(y), 2), free=0, held="becomes a constant"))
    add(name, between(lambda y, f=f: f(y, 1), free=0, held="a running sum over channels"))


def pooled(kernel, index):
    def run(y):
        boxes = [torch.tensor([[0.0, 0, 3, 3], [1, 1, 5, 5]], dtype=y.dtype, device=y.device)] * len(y)
        return kernel(y, boxes, 3)

    return run


add("roi_align", space(2, pooled(torchvision.ops.roi_align, 0)), within="torchvision")
add("roi_pool", space(2, pooled(torchvision.ops.roi_pool, 0)), within="torchvision")


def deformed(m, x, y):
    """A convolution of y at places that are computed from x."""
    mask = torch.sigmoid(m.k(x)) if hasattr(m, "k") else None
    return torchvision.ops.deform_conv2d(y, m.o(x), m.g.weight, m.g.bias, padding=1, mask=mask)


def deform(run, sets=1, groups=1, masked=True, wide=8, **expected):
    """A deformable convolution `g` at places that `o` and `k` make."""
    more = {"k": lambda: conv(3, 9 * sets)} if masked else {}
    return whole(
        run, a=lambda: conv(3, 6), o=lambda: conv(3, 18 * sets), g=lambda: conv(6, wide, groups=groups),
        b=lambda: conv(wide, 5), **more, **expected,
    )  # fmt: skip


straight = lambda m, x: m.b(deformed(m, x, m.a(x)))
places = {f"{name}.weight:0": "places in torchvision.deform_conv2d" for name in "ok"}
work = 8 * 16 * 9 * (3 * 6 + 3 * 18 + 6 * 8 + 8 * 5)
add(
    "deform_conv2d",
    deform(straight, free={"a": 6, "g": 8}, held=places, macs=work + 8 * 16 * 9 * 3 * 9),
    deform(straight, free={"a": 6, "g": 8}, held={"o.weight:0": places["o.weight:0"]}, masked=False, macs=work),
    deform(straight, groups=6, wide=6, free={"a": 6}, held=places),
    deform(straight, groups=2, free={"a": 3, "g": 4}, held=places),
    deform(straight, sets=2, held={"a.weight:0": "several sets of places"}),
    deform(lambda m, x: m.b(deformed(m, x, torch.cos(m.a(x)))), free={"g": 8}, held={"a.weight:0": "con"}),
    within="torchvision",
)

__all__ = ["CASES", "add", "flat"]
