"""A tiny network for each rule that moves elements and each sum of products."""

import torch
import torch.nn.functional as F
from prune_nets import conv, image
from rule_cases import rows
from rule_nets import A, below, between, constant, pair, whole
from rule_space import CASES, add, flat
from torch import nn

# The same elements, or the same shape ---------------------------------------------------------------------

for name in ("detach", "alias", "clone", "_to_copy", "lift_fresh"):
    add(name, between(getattr(A, name)), between(lambda y, f=getattr(A, name): f(torch.sigmoid(y)), free=0, held="con"))
add("detach_", between(below(lambda y: A.detach_(y + 0))))
add("contiguous", between(below(lambda y: A.contiguous(y.permute(0, 1, 3, 2)))))
add("native_dropout", between(lambda y: A.native_dropout(y, 0.5, False)[0]))
for name in ("dropout", "feature_dropout"):
    add(name, between(below(lambda y, f=getattr(A, name): f(y, 0.5, False))))
add("empty_like", pair(lambda y, z: A.empty_like(y).copy_(z)))
add("zeros_like", pair(lambda y, z: y + A.zeros_like(z)), between(lambda y: A.zeros_like(y) + y))
add("view_as_real", between(lambda y: torch.view_as_real(y + 0j)[..., 0]))
for name, run in {
    "ones_like": A.ones_like,
    "full_like": lambda y: A.full_like(y, 0.5),
    "rand_like": A.rand_like,
    "randn_like": A.randn_like,
    "normal_": lambda y: A.normal_(y + 0),
    "uniform_": lambda y: A.uniform_(y + 0),
    "exponential_": lambda y: A.exponential_(y + 0),
    "log_normal_": lambda y: A.log_normal_(y + 0),
}.items():
    add(name, pair(lambda y, z, f=run: y * (0 * f(z) + 1)), between(run, free=0, held="becomes a constant"))
for name in ("fill", "fill_"):
    f = getattr(A, name)
    add(name, pair(lambda y, z, f=f: y + f(1 + z, 0.0)), *constant(lambda y, f=f: f(y + 0, 2.0)))
    add(name, pair(lambda y, z, f=f: y + f(z + 0, torch.zeros((), device=z.device)), free={}, held=f"aten.{name}"))

# Shapes ---------------------------------------------------------------------------------------------------


def halves(y):
    n, c, h, w = y.shape
    return y.view(n, 2, c // 2, h, w)


VIEWS = {
    "view": lambda y: y.view(len(y), -1),
    "_unsafe_view": lambda y: A._unsafe_view(y, [len(y), y.shape[1] * 16]),
    "reshape": below(lambda y: A.reshape(y, [len(y), -1])),
    "_reshape_alias": lambda y: A._reshape_alias(y, [len(y), y.shape[1] * 16], [y.shape[1] * 16, 1]),
}
for run in VIEWS.values():
    add("view", flat(run, read=6 * 16))
add("view", between(lambda y: halves(y).sum(1), read=4, wide=8, free=4))
add("view", between(lambda y: halves(y).transpose(1, 2).reshape(y.shape), wide=8, free=4))
add("view", between(lambda y: y.view(len(y), 2, 3, 4, 4).flatten(1, 2), free=0, held="fixed size"))
add("flatten", flat(below(lambda y: A.flatten(y, 1)), read=6 * 16))
pairs = below(lambda y: A.unflatten(y, 1, [-1, 2]))
add("unflatten", between(lambda y: pairs(y).flatten(1, 2), free=3, straight=True))
add("unsqueeze", between(lambda y: A.unsqueeze(y, 1).sum(1)), between(lambda y: A.unsqueeze(y, -1)[..., 0]))
add("squeeze", between(lambda y: A.squeeze(y[:, None], 1)), flat(lambda y: A.squeeze(y.mean((2, 3), keepdim=True))))
add("squeeze", flat(lambda y: A.squeeze(y.mean((2, 3), keepdim=True), [2, 3])))
add("unsqueeze_", between(lambda y: A.unsqueeze_(y + 0, 1).sum(1)), between(lambda y: A.unsqueeze_(y + 0, -1)[..., 0]))
add("squeeze_", between(lambda y: A.squeeze_(y[:, None] + 0, 1)), between(lambda y: A.squeeze_(y + 0, 2)))
add("squeeze_", flat(lambda y: A.squeeze_(y.mean((2, 3), keepdim=True), -1).flatten(1)))
add("squeeze_", flat(lambda y: A.squeeze_(y.mean((2, 3), keepdim=True)), free=0, held="aten.squeeze_"))
add("squeeze_", flat(lambda y: A.squeeze_(y.mean((2, 3), keepdim=True), [2, 3]), free=0, held="aten.squeeze_"))
last = lambda y: F.adaptive_avg_pool2d(y.contiguous(memory_format=torch.channels_last), 1)
add("as_strided_", between(last))
add("as_strided_", between(lambda y: (y + 0).as_strided_(y.shape, (96, 1, 24, 6)), free=0, held="aten.as_strided_"))
add(
    "permute",
    between(lambda y: A.permute(y, [0, 2, 3, 1]), make=lambda i, o: nn.Linear(i, o) if o == 5 else conv(i, o)),
)
add("permute", between(lambda y: A.permute(A.permute(y, [1, 0, -1, 2]), [1, 0, 2, 3])))
for name in ("transpose", "transpose_"):
    f = getattr(A, name)
    add(name, between(lambda y, f=f: f(y + 0, 1, -1), make=lambda i, o: nn.Linear(i, o) if o == 5 else conv(i, o)))
for name in ("t", "t_"):
    f = getattr(A, name)
    add(name, between(lambda y, f=f: f(y.mean((2, 3)) + 0).permute(1, 0)[..., None, None]))
add("expand", between(lambda y: y.mean((2, 3), keepdim=True).expand(-1, -1, 3, 3)))
add("expand", between(lambda y: A.expand(y, [2, *y.shape]).sum(0)))
add(
    "repeat",
    between(lambda y: A.repeat(y, [1, 2, 1, 1]), read=12),
    between(lambda y: A.repeat(y, [2, 1, 1, 1, 1]).sum(0)),
)

# Other places ---------------------------------------------------------------------------------------------

add("flip", between(lambda y: y + A.flip(y, [1]), free=3), between(lambda y: A.flip(y, [-1])))
add("roll", between(lambda y: A.roll(y, [1, 2], [2, 3])))
add("roll", pair(lambda y, z: A.roll(torch.cat([y, z], 1), [y.shape[1]], [-3]), read=12, free={"a": 6}))
add("roll", pair(lambda y, z: A.roll(y, [1], [1]) + z, free={}, held="fixed size"))
add("roll", between(lambda y: A.roll(y, [1]), free=0, held="unknown operator aten.roll"))
add("cat", pair(lambda y, z: torch.cat([y, z], 1), read=12, free={"a": 6, "c": 6}))
add(
    "cat",
    pair(lambda y, z: torch.cat([y, z], 2)),
    pair(lambda y, z: torch.cat([y, z], -3), read=12, free={"a": 6, "c": 6}),
)
add("cat", pair(lambda y, z: torch.cat([torch.sigmoid(y), z], 1), read=12, free={}, held="becomes a constant"))
beside = lambda make: lambda m, x: m.b(torch.cat([m.a(x), make(x)], 1))
for make, wide, free, held in (
    (lambda x: x.new_ones(len(x), 1, 4, 4), 7, {"a": 6}, {"b.weight:1": "side by side with a constant"}),
    (lambda x: x, 9, {"a": 6}, {"b.weight:1": "side by side with graph input"}),
    (lambda x: x.new_zeros(len(x), 2, 4, 4), 8, {"a": 6}, {}),
):
    add("cat", whole(beside(make), a=lambda: conv(3, 6), b=lambda n=wide: conv(n, 5), free=free, held=held))
add("stack", pair(lambda y, z: torch.stack([y, z], 1).sum(1)), pair(lambda y, z: torch.stack([y, z], -1)[..., 0]))
SPLITS = {
    "split": lambda y: A.split(y, y.shape[1] // 2, 1),
    "split_with_sizes": lambda y: A.split_with_sizes(y, [y.shape[1] // 2] * 2, 1),
    "chunk": below(lambda y: A.chunk(y, 2, 1)),
    "unsafe_split": lambda y: A.unsafe_split(y, y.shape[1] // 2, 1),
    "unsafe_split_with_sizes": lambda y: A.unsafe_split_with_sizes(y, [y.shape[1] // 2] * 2, 1),
    "unsafe_chunk": below(lambda y: A.unsafe_chunk(y, 2, 1)),
}
for name, run in SPLITS.items():
    add(name, between(lambda y, f=run: f(y)[0] * torch.sigmoid(f(y)[1]), read=3, free=3))
    both = lambda m, y, f=run: F.pad(m.c(f(y)[0]), (0, 0)) + f(y)[1][:, :1]
    add(name, between(lambda y, f=run: torch.cat([f(y)[1], f(y)[0]], 1), free=3))
fixed = lambda y: torch.cat(A.split_with_sizes(y, [2, 4], 1), 1)
add("split_with_sizes", between(fixed, free=0, held="fixed size"))
add("split", between(lambda y: torch.cat(A.split(y, 2, 3), 3)), between(lambda y: A.split(y, 2, 1)[1], read=2, free=0))
add(
    "unbind",
    between(lambda y: A.unbind(y, 3)[1][..., None]),
    pair(lambda y, z: A.unbind(torch.stack([y, z], 1), 1)[1], free={"a": 6}),
)
add("unbind", between(lambda y: A.unbind(y, 1)[3][:, None], read=1, free=0, held="one channel"))
add("select", between(lambda y: A.select(y, 3, -1)[..., None]))
add("select", between(lambda y: A.select(y, 1, 3)[:, None], read=1, free=0, held="one channel"))
add(
    "slice",
    between(lambda y: y[:, :, 1:3]),
    between(lambda y: y[:, : y.shape[1] // 2] * y[:, y.shape[1] // 2 :], read=3, free=3),
)
add("slice", between(lambda y: y[:, ::2], read=3, free=0), between(lambda y: y[:, 1:], read=5, free=5))
add("slice", between(lambda y: y[:, :5], read=5, free=0, held="fixed size"))
add("slice", between(lambda y: y[:, 3:4], read=1, free=0, held="one channel"))


def at(y, *places):
    """A constant index, whose values a pass can see."""
    return torch.tensor(places)


add("index_select", between(lambda y: A.index_select(y, 2, at(y, 1, 3, 0))))
add("index_select", between(lambda y: A.index_select(y, 1, at(y, 1, 3, 0)), read=3, free=0, held="by their numbers"))
add("index_select", between(lambda y: A.index_select(y, 1, at(y, 3)), read=1, free=0, held="by their numbers"))
add(
    "index",
    between(lambda y: y[:, :, at(y, 1, 3)]),
    between(lambda y: y[:, at(y, 1, 3)], read=2, free=0, held="by their numbers"),
)
add("index", between(lambda y: y[:, torch.tensor([True, False] * 3)], read=3, free=0, held="by their numbers"))
add("index", between(lambda y: y[:, at(y, 3)], read=1, free=0, held="by their numbers"))
chosen = torch.zeros(6, 4, dtype=torch.bool)
chosen[:, 1:3] = True
add("index", flat(lambda y: y[:, chosen].flatten(1), read=48, free=0, held="an index by a mask"))
over = lambda y, *places: at(y, *places)[:, None, None].expand(len(y), len(places), 4, 4)
add("gather", between(lambda y: A.gather(y, 3, at(y, 1, 2).expand(*y.shape[:3], 2))))
add("gather", between(lambda y: A.gather(y, 1, over(y, 3, 1)), read=2, free=0, held="by their numbers"))
add("gather", between(lambda y: A.gather(y, 1, over(y, 3)), read=1, free=0, held="by their numbers"))
add("pixel_shuffle", between(lambda y: A.pixel_shuffle(y, 2), wide=12, read=3, free=3))
add("pixel_unshuffle", between(lambda y: A.pixel_unshuffle(y, 2), wide=3, read=12))
add("channel_shuffle", between(lambda y: A.channel_shuffle(y, 2), wide=8, free=4))
add("native_channel_shuffle", between(below(lambda y: A.native_channel_shuffle(y, 2)), wide=8, free=4))


def apart(shape, wide, out):
    return lambda i, o: nn.Conv1d(wide, o, 1) if o == 5 else conv(i, o)


add(
    "im2col", between(lambda y: F.unfold(y, 3), make=lambda i, o: nn.Conv1d(i, o, 1) if o == 5 else conv(i, o), read=54)
)
add(
    "im2col",
    between(lambda y: F.unfold(y[0], 3), make=lambda i, o: nn.Conv1d(i, o, 1) if o == 5 else conv(i, o), read=54),
)
add(
    "col2im",
    between(
        lambda y: F.fold(y.flatten(2), (4, 4), 2, stride=2)[:, :, :, :], wide=24, free=6, read=6, x=lambda: image(8, 2)
    ),
)
add(
    "col2im",
    between(
        lambda y: F.fold(y[0].flatten(1), (4, 4), 2, stride=2)[None], wide=24, free=6, read=6, x=lambda: image(1, 2)
    ),
)
add("copy_", pair(lambda y, z: (y + 0).copy_(z)), pair(lambda y, z: (1 + y).copy_(z)))
add("copy_", pair(lambda y, z: (y + 0).copy_(torch.sigmoid(z)), free={}, held="becomes a constant"))
add("copy", pair(lambda y, z: A.copy(1 + y.detach(), z.detach())))
add("glu", between(lambda y: F.glu(y, 1), wide=8, read=4, free=4))
add("glu", between(lambda y: F.glu(torch.cos(y), 1), wide=8, read=4, free=0, held="becomes a constant"))

# Sums of products -----------------------------------------------------------------------------------------

plane = 8 * 16


def convs(*layers, side=4, **named):
    return {"x": lambda: image(8, side), **{name: (lambda layer=layer: layer()) for name, layer in named.items()}}


def two(m, x):
    return m.b(F.relu(m.a(x)))


def three(m, x):
    return m.b(F.relu(m.g(F.relu(m.a(x)))))


add(
    "convolution",
    whole(
        two,
        a=lambda: conv(3, 6),
        b=lambda: conv(6, 5, bias=False),
        free={"a": 6},
        macs=plane * 9 * (18 + 30),
        held={"a.weight:1": "graph input"},
    ),
)
add(
    "convolution",
    whole(
        lambda m, x: m.b(torch.sigmoid(m.a(x))), a=lambda: conv(3, 6), b=lambda: conv(6, 5), held={"a.weight:0": "con"}
    ),
)
for make, free, macs in (
    (lambda: conv(8, 12, groups=4), {"a": 2, "g": 3}, plane * 9 * (24 + 24 + 60)),
    (lambda: conv(8, 8, groups=8), {"a": 8}, plane * 9 * (24 + 8 + 40)),
    (lambda: conv(8, 16, groups=8, bias=False), {"a": 8}, plane * 9 * (24 + 16 + 80)),
    (lambda: nn.ConvTranspose2d(8, 6, 3, padding=1), {"a": 8, "g": 6}, plane * 9 * (24 + 48 + 30)),
    (lambda: nn.ConvTranspose2d(8, 6, 3, padding=1, groups=2), {"a": 4, "g": 3}, plane * 9 * (24 + 24 + 30)),
    (lambda: nn.ConvTranspose2d(8, 16, 3, padding=1, groups=8), {"a": 8}, plane * 9 * (24 + 16 + 80)),
):
    out = make().out_channels
    add("convolution", whole(three, a=lambda: conv(3, 8), g=make, b=lambda out=out: conv(out, 5), free=free, macs=macs))


def standardised(m, x):
    w = m.b.weight - m.b.weight.mean((2, 3), keepdim=True)
    return m.c(F.conv2d(m.a(x), w, m.b.bias, padding=1))


add(
    "convolution",
    whole(standardised, a=lambda: conv(3, 6), b=lambda: conv(6, 7), c=lambda: conv(7, 5), free={"b": [7, 6]}),
)
for n, kind in {1: nn.Conv1d, 3: nn.Conv3d}.items():
    x = lambda n=n: torch.randn(8, 3, *[4] * n)
    own = {name: lambda i=i, o=o, kind=kind: kind(i, o, 3) for name, i, o in (("a", 3, 6),)}
    last = lambda kind=kind: kind(6, 5, 1)
    add("convolution", whole(two, x=x, **own, b=last, free={"a": 6}, macs=8 * 2**n * (3**n * 18 + 30)))

LINEAR = {"x": lambda: torch.randn(8, 3)}
add(
    "addmm",
    whole(
        two,
        a=lambda: nn.Linear(3, 6),
        b=lambda: nn.Linear(6, 5),
        free={"a": 6},
        macs=8 * 48,
        held={"a.weight:1": "graph input"},
        **LINEAR,
    ),
)
add(
    "addmm",
    whole(
        lambda m, x: m.b(torch.cos(m.a(x))),
        a=lambda: nn.Linear(3, 6),
        b=lambda: nn.Linear(6, 5),
        held={"a.weight:0": "con"},
        **LINEAR,
    ),
)
bare = {"a": lambda: nn.Linear(3, 6, bias=False), "b": lambda: nn.Linear(6, 5, bias=False)}
add("mm", whole(two, **bare, free={"a": 6}, macs=8 * 48, held={"a.weight:1": "graph input"}, **LINEAR))
add(
    "mm",
    whole(
        lambda m, x: torch.mm(m.a(x).t(), m.b(m.a(x))), **bare, free={}, held={"a.weight:0": "graph output"}, **LINEAR
    ),
)
tokens = {"x": lambda: torch.randn(8, 4, 3)}


def parameter(*shape):
    return lambda: nn.Parameter(torch.randn(*shape))


sources = {name: lambda: nn.Linear(3, 6, bias=False) for name in "qk"}
last = {"b": lambda: nn.Linear(4, 5, bias=False)}
scores = lambda m, x: m.b(torch.bmm(m.q(x), m.k(x).transpose(1, 2)))
add("bmm", whole(scores, **sources, **last, free={"q": 6}, macs=8 * 4 * (18 * 2 + 24 + 20), **tokens))
mixed = lambda m, x: m.b(torch.bmm(torch.softmax(torch.bmm(x, x.mT), 2), m.k(x)))
named = {"k": lambda: nn.Linear(3, 6), "b": lambda: nn.Linear(6, 5)}
add("bmm", whole(mixed, **named, free={"k": 6}, macs=8 * 4 * (18 + 24 + 30 + 12), **tokens))
added = lambda m, x: m.b(torch.baddbmm(m.o, torch.softmax(torch.bmm(x, x.mT), 2), m.k(x)))
add("baddbmm", whole(added, o=parameter(1, 1, 6), **named, free={"k": 6}, macs=8 * 4 * (18 + 24 + 30 + 12), **tokens))
added = lambda m, x: m.b(torch.baddbmm(m.v(x), torch.softmax(torch.bmm(x, x.mT), 2), m.k(x)))
add("baddbmm", whole(added, v=lambda: nn.Linear(3, 6), **named, free={"v": 6}, **tokens))
add(
    "mv",
    whole(
        lambda m, x: torch.mv(m.a(x), m.v),
        a=lambda: nn.Linear(3, 6),
        v=parameter(6),
        free={"a": 6},
        macs=8 * 24,
        **LINEAR,
    ),
)
add(
    "addmv",
    whole(
        lambda m, x: torch.addmv(m.c, m.a(x), m.v),
        a=lambda: nn.Linear(3, 6),
        v=parameter(6),
        c=parameter(8),
        free={"a": 6},
        macs=8 * 24,
        **LINEAR,
    ),
)
add(
    "addmv",
    whole(
        lambda m, x: torch.addmv(x[:, 0], torch.cos(m.a(x)), m.v),
        a=lambda: nn.Linear(3, 6),
        v=parameter(6),
        held={"a.weight:0": "con"},
        **LINEAR,
    ),
)

# Attention ------------------------------------------------------------------------------------------------

KERNELS = {
    "_scaled_dot_product_flash_attention_for_cpu": lambda q, k, v, bias: A._scaled_dot_product_flash_attention_for_cpu(
        q, k, v, attn_mask=bias, scale=0.5
    ),
    "_scaled_dot_product_flash_attention": lambda q, k, v, bias: A._scaled_dot_product_flash_attention(
        q, k, v, scale=0.5
    ),
    "_scaled_dot_product_efficient_attention": lambda q, k, v, bias: A._scaled_dot_product_efficient_attention(
        q, k, v, bias, False, scale=0.5
    ),
    "_scaled_dot_product_cudnn_attention": lambda q, k, v, bias: A._scaled_dot_product_cudnn_attention(
        q, k, v, bias, False, scale=0.5
    ),
    "_scaled_dot_product_fused_attention_overrideable": lambda q, k, v, bias: (
        A._scaled_dot_product_fused_attention_overrideable(q, k, v, bias, scale=0.5)
    ),
}


def attention(kernel, bias):
    """Heads of width 4, so that how many there are follows the channels."""

    def run(m, x):
        q, k, v = (f(x).unflatten(2, (-1, 4)).transpose(1, 2) for f in (m.q, m.k, m.v))
        added = m.bias(x).permute(0, 2, 1)[..., None].expand(-1, -1, -1, 4) if bias else None
        out = kernel(q, k, v, added)[0] if x.is_meta else F.scaled_dot_product_attention(q, k, v, added, scale=0.5)
        return m.b(out.transpose(1, 2).flatten(2))

    return run


three_heads = {name: lambda: nn.Linear(3, 12) for name in "qkv"}
for name, kernel in KERNELS.items():
    last = {"b": lambda: nn.Linear(12, 5)}
    macs = 8 * 4 * (3 * 36 + 2 * 48 + 60)
    add(name, whole(attention(kernel, False), **three_heads, **last, free={"q": 3}, macs=macs, **tokens))
    if name != "_scaled_dot_product_flash_attention":
        last["bias"] = lambda: nn.Linear(3, 3)
        add(name, whole(attention(kernel, True), **three_heads, **last, free={"q": 3}, **tokens))

SOFTMAX = {
    "_softmax": lambda y, d: A._softmax(y, d, False),
    "_log_softmax": lambda y, d: A._log_softmax(y, d, False),
    "_safe_softmax": lambda y, d: A._safe_softmax(y, d),
}
for name, run in SOFTMAX.items():
    add(name, *constant(lambda y, f=run: f(y, 3)))
    add(name, between(lambda y, f=run: f(y, 1), free=0, held="softmax over channels"))
tied = lambda m, x: m.c(F.linear(m.e(x), m.e.weight))
add(
    "embedding",
    whole(
        tied,
        e=lambda: nn.Embedding(10, 6),
        c=lambda: nn.Linear(10, 5),
        free={"e": 6},
        held={"e.weight:0": "entries"},
        x=lambda: torch.randint(10, (8, 4)),
    ),
)
exp = lambda m, x: m.c(F.conv2d(m.a(x), m.b.weight.exp()))
add(
    "convolution",
    whole(
        exp,
        a=lambda: conv(3, 6),
        b=lambda: conv(6, 7),
        c=lambda: conv(7, 5),
        free={"a": 6},
        held={"b.weight:0": "becomes a constant"},
    ),
)
add(
    "embedding",
    whole(
        lambda m, x: m.b(m.e(x)), e=lambda: nn.Embedding(10, 6), b=lambda: nn.Linear(6, 5), free={"e": 6},
        x=lambda: torch.randint(10, (8, 4)),
    ),
)  # fmt: skip

__all__ = ["CASES", "rows"]
