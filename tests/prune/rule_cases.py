"""A tiny network for each pointwise rule and each norm."""

from dataclasses import replace

import torch
import torch.nn.functional as F
from prune_nets import conv
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


case = whole(
    lambda m, x: m.b(m.w(m.a(x))), a=lambda: conv(3, 6), w=normed, b=lambda: conv(7, 5),
    free={"a": 6, "w.parametrizations.weight": 7},
    held={"w.parametrizations.weight.original1:2": "positions of a kernel"},
)  # fmt: skip
# The norm of what is left of each row is another one.
add("_weight_norm_interface", replace(case, preserving=False))
