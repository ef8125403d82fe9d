"""A tiny network for each pointwise rule, each norm and each operator over space."""

from dataclasses import replace

import torch
import torch.nn.functional as F
from prune_nets import conv, image
from rule_nets import A, Case, below, between, constant, pair, whole
from torch import nn

CASES: dict[str, list[Case]] = {}


def add(op, *cases, within="aten"):
    CASES.setdefault(f"{within}.{op}", []).extend(cases)


def number(y, like):
    """What is true or false as numbers."""
    return y.to(like.dtype)


# Pointwise ------------------------------------------------------------------------------------------------

for name in [
    "relu",
    "relu_",
    "hardswish",
    "hardswish_",
    "silu",
    "silu_",
    "gelu",
    "gelu_",
    "leaky_relu",
    "leaky_relu_",
    "elu",
    "elu_",
    "celu",
    "celu_",
    "mish",
    "mish_",
    "tanh",
    "tanh_",
    "neg",
    "neg_",
    "abs",
    "abs_",
    "sign",
    "hardshrink",
    "softshrink",
    "erf",
    "expm1",
    "sin",
    "atan",
    "nan_to_num",
]:
    add(name, between(lambda y, f=getattr(A, name): f(2 * y)))
for name in ("relu6", "selu", "selu_", "square"):
    add(name, between(below(lambda y, f=getattr(A, name): f(2 * y))))
for name in ("floor", "ceil", "round", "trunc"):
    add(name, between(lambda y, f=getattr(A, name): f(5 * y)))
add("log1p", between(lambda y: A.log1p(y.abs())))
for name in ("sqrt", "sqrt_"):
    add(name, between(lambda y, f=getattr(A, name): f(y.abs()), free=0, held="infinite gradient"))
    add(name, *constant(lambda y, f=getattr(A, name): f(1 + y.abs())))
for name in ("maximum", "minimum"):
    add(name, pair(getattr(A, name)), between(lambda y, f=getattr(A, name): f(y, torch.sigmoid(y)), free=0, held="con"))
for name in ("logical_and", "logical_or"):
    add(name, pair(lambda y, z, f=getattr(A, name): number(f(y > 0, z > 0), y), free={}, held="becomes a constant"))
    add(name, pair(lambda y, z, f=getattr(A, name): number(f(y.round(), z.round()), y) + y))

for name in ["sigmoid", "sigmoid_", "hardsigmoid", "hardsigmoid_", "exp", "exp_", "exp2", "softplus", "cos"]:
    add(name, *constant(lambda y, f=getattr(A, name): f(2 * y)))
add("log_sigmoid_forward", *constant(F.logsigmoid))
add("rsub", *constant(lambda y: A.rsub(y, 1.0)), *constant(lambda y: 1 - y))
for name in ["eq", "ne", "lt", "le", "gt", "ge"]:
    add(name, *constant(lambda y, f=getattr(A, name): number(f(y, 0.05), y)))
    add(name, pair(lambda m, y, z, f=getattr(A, name): m.n(number(f(y, z), y)), n=lambda: nn.BatchNorm2d(6)))
add("logical_not", *constant(lambda y: number(A.logical_not(y.round()), y)))
for name in ("isnan", "isfinite"):
    add(name, *constant(lambda y, f=below(getattr(A, name)): number(f(y), y)))
for name in ("bitwise_and", "bitwise_or"):
    both = lambda y, z, f=getattr(A, name): number(f(y > 0, z > 0), y)
    add(name, pair(both, free={}, held="becomes a constant"))
    add(name, pair(lambda m, y, z, f=both: m.n(f(y, z)), n=lambda: nn.BatchNorm2d(6)))
add("bitwise_not", *constant(lambda y: number(A.bitwise_not(y > 0), y)))
for name in ("rsqrt", "rsqrt_", "reciprocal", "log", "log2"):
    function = getattr(A, name)
    add(name, *constant(lambda y, f=function: f(1 + y.abs())))
    add(name, between(lambda m, y, f=function: m.n(f(y.abs())), n=lambda: nn.BatchNorm2d(6), free=0, held="infinite"))
add("logit", *constant(lambda y: A.logit(torch.sigmoid(y))))
add("logit", between(lambda m, y: m.n(A.logit(y.clamp(0, 0.9))), n=lambda: nn.BatchNorm2d(6), free=0, held="infinite"))

for name in ("mul", "mul_"):
    add(name, pair(lambda y, z, f=getattr(A, name): f(y, torch.sigmoid(z))))
    add(name, pair(lambda y, z, f=getattr(A, name): f(torch.cos(z) + 0, y)))
    add(name, between(lambda y, f=getattr(A, name): f(torch.sigmoid(y), 2.0), free=0, held="becomes a constant"))
for name, run in {
    "div": A.div,
    "div_": lambda y, z: A.div_(y + 0, z),
    "true_divide": below(A.true_divide),
    "floor_divide": lambda y, z: A.floor_divide(9 * y.detach(), z.detach()),
    "remainder": lambda y, z: A.remainder(9 * y, z),
    "fmod": lambda y, z: A.fmod(9 * y, z),
}.items():
    add(name, pair(lambda y, z, f=run: f(y, 1 + z.abs())))
    add(name, pair(lambda y, z, f=run: f(torch.sigmoid(y), 1 + z.abs()), free={}, held="becomes a constant"))
    # Both are masked: 0 / 0 is not a number.
    add(name, pair(lambda m, y, z, f=run: m.n(f(y, z)), n=lambda: nn.BatchNorm2d(6), free={}, held="infinite value"))
add("remainder", between(lambda y: A.remainder(2.0, y.abs()), free=0, held="infinite"))
# Chances of 0 and 1, for the proof has to draw the same.
add(
    "bernoulli",
    between(lambda y: A.bernoulli(y.sign().abs().detach()) + y),
    *constant(lambda y: A.bernoulli(y.detach(), 1.0)),
)
add("bernoulli_", between(lambda y: A.bernoulli_(y + 0), free=0, held="becomes a constant"))
add("bernoulli_", *constant(lambda y: A.bernoulli_(y + 0, 1.0)))
add("bernoulli_", pair(lambda y, z: A.bernoulli_(y + 1, z.sign().abs())))
add("_prelu_kernel", between(lambda m, y: m.p(y), p=lambda: nn.PReLU(6)), between(lambda m, y: m.p(y), p=nn.PReLU))

add("where", pair(lambda y, z: torch.where(y > 0, y, z)), pair(lambda y, z: torch.where(z > 0, y, torch.sin(z))))
add("where", between(lambda y: torch.where(y > 0, y, 1.0), free=0, held="becomes a constant"))
add("where", *constant(lambda y: torch.where(y > 0, 2.0, y)))
for name in ("addcmul", "addcmul_"):
    f = getattr(A, name)
    add(name, pair(f, names="acd"), pair(lambda y, z, f=f: f(y, z, torch.sigmoid(z))))
    add(name, between(lambda y, f=f: f(y, torch.sigmoid(y), torch.cos(y)), free=0, held="becomes a constant"))
for name in ("addcdiv", "addcdiv_"):
    f = getattr(A, name)
    add(name, pair(lambda y, z, w, f=f: f(y, z, 1 + w.abs()), names="acd"))
    add(name, between(lambda y, f=f: f(y, torch.sigmoid(y), torch.exp(y)), free=0, held="becomes a constant"))
    add(name, pair(lambda y, z, f=f: f(y, y, z), free={}, held="infinite"))
for name in ("lerp", "lerp_"):
    f = getattr(A, name)
    add(name, pair(lambda y, z, f=f: f(y, z, 0.3)), pair(lambda y, z, w, f=f: f(y, z, torch.sigmoid(w)), names="acd"))
    add(name, pair(lambda y, z, f=f: f(y, torch.sigmoid(z), 0.3), free={}, held="becomes a constant"))
for name in ("add", "add_", "sub", "sub_"):
    f = getattr(A, name)
    add(name, pair(f), between(lambda y, f=f: f(y, 0)), *constant(lambda y, f=f: f(y, 1.0)))
for name in ("pow", "pow_"):
    f = getattr(A, name)
    add(name, between(lambda y, f=f: f(y, 2)), *constant(lambda y, f=f: f(1 + y.abs(), -1)))
    add(name, *constant(lambda y, f=f: f(y, 0)), between(lambda y, f=f: f(y, -1), free=0, held="infinite"))
add("pow", *constant(lambda y: 2.0**y))
for name in ("clamp", "clamp_"):
    f = getattr(A, name)
    add(name, between(lambda y, f=f: f(y, -0.5, 0.5)), *constant(lambda y, f=f: f(y, 0.1, 0.5)))
    add(name, pair(lambda m, y, z, f=f: m.n(f(y, z)), n=lambda: nn.BatchNorm2d(6)))
for name, inside, outside in (("clamp_min", -0.1, 0.1), ("clamp_max", 0.1, -0.1)):
    for end in ("", "_"):
        f = getattr(A, name + end)
        add(name + end, between(lambda y, f=f, v=inside: f(y, v)), *constant(lambda y, f=f, v=outside: f(y, v)))
for name in ("hardtanh", "hardtanh_"):
    f = getattr(A, name)
    add(name, between(f), *constant(lambda y, f=f: f(y, 0.1, 0.9)))
for name in ("masked_fill", "masked_fill_"):
    f = getattr(A, name)
    add(name, pair(lambda y, z, f=f: f(y + 0, z > 0, 0.0)), *constant(lambda y, f=f: f(y + 0, y > 0, 1.0)))
add("zero_", pair(lambda y, z: y + (1 + z).zero_()))

# Norms ----------------------------------------------------------------------------------------------------


def batch_norm(kernel):
    """A network in which a BatchNorm is one operator where it has one, which is not on the CPU."""

    def run(m, y):
        n = m.n
        if y.is_meta:
            return kernel(y, n.weight, n.bias, n.running_mean, n.running_var)
        return F.batch_norm(y, n.running_mean, n.running_var, n.weight, n.bias, m.training and kernel is not frozen)

    return run


def frozen(y, w, b, mean, var):
    return A._native_batch_norm_legit_no_training(y, w, b, mean, var, 0.1, 1e-5)[0]


NORMS = {
    "native_batch_norm": lambda y, w, b, mean, var: A.native_batch_norm(y, w, b, mean, var, False, 0.1, 1e-5)[0],
    "cudnn_batch_norm": lambda y, w, b, mean, var: A.cudnn_batch_norm(y, w, b, mean, var, False, 0.1, 1e-5)[0],
    "_native_batch_norm_legit": lambda y, w, b, mean, var: A._native_batch_norm_legit(
        y, w, b, mean, var, False, 0.1, 1e-5
    )[0],
    "_batch_norm_with_update": lambda y, w, b, mean, var: A._batch_norm_with_update(y, w, b, mean, var, 0.1, 1e-5)[0],
    "_native_batch_norm_legit_no_training": frozen,
}
for name, kernel in NORMS.items():
    run = batch_norm(kernel)
    add(name, between(run, n=lambda: nn.BatchNorm2d(6)))
    add(name, between(lambda m, y, f=run: f(m, torch.sigmoid(y)), n=lambda: nn.BatchNorm2d(6)))
    if name in ("cudnn_batch_norm", "_batch_norm_with_update"):
        continue
    add(name, between(run, n=lambda: nn.BatchNorm2d(6, affine=False)))
    sigmoid = lambda m, y, f=run: f(m, torch.sigmoid(y))
    add(name, between(sigmoid, n=lambda: nn.BatchNorm2d(6, affine=False), free=0, held="becomes a constant"))


def shifted(m, y):
    return F.batch_norm(y, m.n.running_mean, m.n.running_var, m.n.weight, m.n.bias + 1)


def scaled(m, y):
    return F.batch_norm(torch.sigmoid(y), m.n.running_mean, m.n.running_var, m.n.weight + 1, m.n.bias)


def unscaled(m, y):
    return F.batch_norm(torch.sigmoid(y), m.n.running_mean, m.n.running_var, None, m.n.bias)


for run in (shifted, scaled, unscaled):
    add("native_batch_norm", between(run, n=lambda: nn.BatchNorm2d(6), free=0, held="becomes a constant"))
add("native_batch_norm", between(lambda m, y: m.n(y), n=nn.InstanceNorm2d and (lambda: nn.InstanceNorm2d(6))))
add("native_batch_norm", between(lambda m, y: m.n(y), n=lambda: nn.InstanceNorm2d(6, affine=True)))


def statistics_of_the_batch(m, y):
    if y.is_meta:
        return A._native_batch_norm_legit.no_stats(y, m.n.weight, m.n.bias, True, 0.1, 1e-5)[0]
    return F.batch_norm(y, None, None, m.n.weight, m.n.bias, True)


add("_native_batch_norm_legit", between(statistics_of_the_batch, n=lambda: nn.BatchNorm2d(6)))


def rows(*layers, size=3, **settings):
    """A layer norm or the like between linear layers."""
    return {"make": nn.Linear, "x": lambda: torch.randn(8, 4, size), **settings}


UNDER = "under a norm over channels that has no weights of its own"
add("native_layer_norm", between(lambda m, y: m.n(y), n=lambda: nn.LayerNorm(6), preserving=False, **rows()))
add("native_layer_norm", between(lambda m, y: m.n(y), n=lambda: nn.LayerNorm(6, bias=False), **rows()))
bare = lambda: nn.LayerNorm(6, elementwise_affine=False)
add("native_layer_norm", between(lambda m, y: m.n(y), n=bare, free=0, held=UNDER, **rows()))
add("native_layer_norm", between(lambda m, y: m.n(y), n=lambda: nn.LayerNorm((6, 4, 4))))
add("native_layer_norm", between(lambda m, y: m.n(y), n=lambda: nn.LayerNorm((4, 4)), free=0, held="becomes a con"))


def rms(m, y):
    """One operator as on a GPU."""
    whole = below(lambda: A._fused_rms_norm(y, m.n.normalized_shape, m.n.weight, m.n.eps)[0])
    return whole() if y.is_meta else m.n(y)


add("_fused_rms_norm", between(rms, n=lambda: nn.RMSNorm(6), preserving=False, **rows()))
add("_fused_rms_norm", between(rms, n=lambda: nn.RMSNorm((4, 4)), free=0, held="becomes a constant"))
bare = lambda: nn.RMSNorm(6, elementwise_affine=False)
add("_fused_rms_norm", between(rms, n=bare, free=0, held=UNDER, **rows()))
add("native_group_norm", between(lambda m, y: m.n(y), n=lambda: nn.GroupNorm(1, 6), preserving=False))
add("native_group_norm", between(lambda m, y: m.n(y), n=lambda: nn.GroupNorm(3, 6), free=3))
add("native_group_norm", between(lambda m, y: m.n(y), n=lambda: nn.GroupNorm(3, 6, affine=False), free=3))
bare = lambda: nn.GroupNorm(1, 6, affine=False)
add("native_group_norm", between(lambda m, y: m.n(y), n=bare, free=0, held=UNDER))
sigmoid = lambda m, y: m.n(torch.sigmoid(y))
bare = lambda: nn.GroupNorm(3, 6, affine=False)
add("native_group_norm", between(sigmoid, n=bare, free=0, held="becomes a constant"))
add("native_group_norm", between(sigmoid, n=lambda: nn.GroupNorm(3, 6), free=3))


def normed():
    return nn.utils.parametrizations.weight_norm(nn.Conv2d(6, 7, 3, padding=1))


under = whole(
    lambda m, x: m.b(m.w(m.a(x))), a=lambda: conv(3, 6), w=normed, b=lambda: conv(7, 5),
    free={"a": 6, "w.parametrizations.weight": 7},
)  # fmt: skip
add("_weight_norm_interface", replace(under, preserving=False))

# Over space -----------------------------------------------------------------------------------------------

CONVS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}


def space(n, run, side=6, **settings):
    """An operator over n dimensions between convolutions over n dimensions."""
    make = lambda wide, out: CONVS[n](wide, out, 3, padding=1)
    shape = (4, 3, *[side] * n)
    return between(run, make=make, x=lambda: torch.randn(shape), **settings)


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
        add(
            name,
            space(
                n, below(run) if cut is below and name not in ("adaptive_max_pool2d", "adaptive_max_pool3d") else run
            ),
        )
    for name in (f"upsample_nearest{n}d", f"_upsample_nearest_exact{n}d"):
        add(name, space(n, lambda y, f=getattr(A, name), n=n: f(y, [2 * s for s in y.shape[-n:]])))
    for name in (f"reflection_pad{n}d", f"replication_pad{n}d"):
        add(name, space(n, lambda y, f=getattr(A, name), n=n: f(y, [1, 2] * n)))
for n in (2, 3):
    f = getattr(A, f"max_pool{n}d_with_indices")
    add(f"max_pool{n}d_with_indices", space(n, lambda y, f=f, n=n: f(y, [2] * n)[0]))
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
    return F.fractional_max_pool2d(y, 2, output_size=3, _random_samples=at)


add("fractional_max_pool2d", space(2, fractional))
add("constant_pad_nd", space(2, lambda y: F.pad(y, (1, 2))), *constant(lambda y: F.pad(y, (1, 1), value=1.0)))
add("constant_pad_nd", between(lambda y: F.pad(y, (0, 0, 0, 0, 1, 1)), read=8, free=0, held="padded channels"))


def flat(run, **settings):
    """What is left of each channel, read by a linear layer."""
    return between(run, make=lambda wide, out: nn.Linear(wide, out) if out == 5 else conv(wide, out), **settings)


REDUCTIONS = {
    "sum": lambda y, d: A.sum(y, d),
    "nansum": lambda y, d: A.nansum(y, d),
    "linalg_vector_norm": lambda y, d: A.linalg_vector_norm(y, 2, d),
    "norm": lambda y, d: A.norm(y, 2, d),
    # As code writes them: the proof counts kept channels only where it sees the function.
    "mean": lambda y, d: y.mean(d),
    "amax": lambda y, d: torch.amax(y, d),
    "amin": lambda y, d: y.amin(dim=d),
    "var": lambda y, d: y.var(d),
    "std": lambda y, d: torch.std(y, dim=d),
    "var_mean": lambda y, d: sum(torch.var_mean(y, d)),
}
for name, run in REDUCTIONS.items():
    add(name, flat(lambda y, f=run: f(y, [2, 3])), flat(lambda y, f=run: f(y, [-1, -2])))
    add(name, flat(lambda y, f=run: f(torch.sigmoid(y), [2, 3]), free=0, held="becomes a constant"))
    over = name in ("sum", "nansum", "linalg_vector_norm", "norm")
    # Of one channel there is a spread over its rows.
    dims = [1] if over else [1, 2]
    flat_again = lambda y, f=run, dims=dims: f(y, dims).reshape(len(y), 1, -1, 4)
    add(name, between(flat_again, read=1, free=6, preserving=over))
    if over:
        again = lambda y, f=run: f(torch.sigmoid(y), [1])[:, None]
        add(name, between(again, read=1, free=0, held="becomes a constant"))
for name in ("linalg_vector_norm", "norm"):
    f = getattr(A, name)
    add(name, between(lambda y, f=f: f(y + 1, -1.0, [1])[:, None], read=1, free=0, held="over channels"))
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


def _roi():
    import torchvision.ops as ops

    add("roi_align", space(2, pooled(ops.roi_align, 0)), within="torchvision")
    add("roi_pool", space(2, pooled(ops.roi_pool, 0)), within="torchvision")


_roi()
