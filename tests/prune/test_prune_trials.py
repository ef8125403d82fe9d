"""Sizes and places that the user's code fixes: each is followed, or protects, and is never cut wrongly."""

import pytest
import torch
import torch.nn.functional as F
from prune_nets import Net, conv, draw, proved, sizes
from torch import nn
from trial_nets import Middle, Viewed, examples, middle, small

from compress import prune
from compress.prune.planning import plan_from_kept

pytestmark = pytest.mark.heavy


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


# Sizes and places written into the code -------------------------------------------------------------------

FIXED = {
    "a view": (lambda y: y.view(len(y), 4, 4, 4, 4).transpose(1, 2).flatten(1, 2), 16, "fixed size"),
    "a view and back": (lambda y: y.view(-1, 16, 16).relu().view(-1, 16, 4, 4), 16, "fixed size"),
    "space to depth": (
        lambda y: y.view(len(y), 16, 2, 2, 2, 2).permute(0, 1, 3, 5, 2, 4).reshape(-1, 64, 2, 2),
        64,
        "",
    ),
    "first half": (lambda y: y[:, :8], 8, ""),
    "both halves": (lambda y: y[:, :8] * y[:, 8:], 8, "fixed size"),
    "halves exchanged": (lambda y: torch.cat([y[:, 8:], y[:, :8]], 1), 16, "fixed size"),
    "some of them": (lambda y: torch.cat([F.relu(y[:, :4]), y[:, 4:]], 1), 16, "fixed size"),
    "one": (lambda y: y[:, 3:4], 1, "one channel"),
    "one by number": (lambda y: y[:, 3][:, None], 1, "one channel"),
    "one after another": (lambda y: torch.stack([y[:, k] for k in range(y.shape[1])], 1), 16, "one channel"),
    "strides": (lambda y: y[:, ::2], 8, ""),
    "a roll": (lambda y: y.roll(3, 1) * torch.sigmoid(y), 16, ""),
    "runs": (lambda y: torch.cat(y.split(4, 1)[::-1], 1), 16, "fixed size"),
    "sizes": (lambda y: torch.cat(y.split([4, 12], 1)[::-1], 1), 16, "fixed size"),
    "numbers": (lambda y: y[:, torch.arange(4, 16)], 12, "by their numbers"),
    "numbers by size": (lambda y: y[:, torch.arange(0, y.shape[1], 2)], 8, "by their numbers"),
    "a shift in time": (lambda y: shifted(y, 4), 16, "fixed size"),
    "groups": (lambda y: F.conv2d(y, torch.ones(16, 1, 1, 1, device=y.device, dtype=y.dtype), groups=16), 16, ""),
    "a crop": (lambda y: F.pad(y, (0, 0, 0, 0, 0, -2)), 14, "padded channels"),
    "a pad to a width": (lambda y: F.pad(y, (0, 0, 0, 0, 0, 18 - y.shape[1])), 18, "fixed size"),
}


def written(y):
    y[:, :4] = torch.sigmoid(y[:, :4])
    return y


def shifted(y, fold):
    out = torch.zeros_like(y)
    out[:-1, :fold] = y[1:, :fold]
    out[1:, fold : 2 * fold] = y[:-1, fold : 2 * fold]
    out[:, 2 * fold :] = y[:, 2 * fold :]
    return out


def test_what_is_written_over_is_free_where_weights_read_it():
    trace = proved(middle(lambda y: written(y + 0), 16), examples())
    assert sizes(trace) == {"a": 5}


@pytest.mark.parametrize("name", FIXED)
def test_what_the_code_fixes_is_protected(name):
    run, read, reason = FIXED[name]
    trace = proved(middle(run, read), examples())
    assert sizes(trace) == {}
    assert reason in trace.protected["a.weight:0"]


def test_channels_behind_those_that_are_counted_are_free():
    trace = proved(middle(lambda y: y[:, -2:], 2), examples())
    assert sizes(trace) == {"a": 7}, "in pairs, all but the last"
    trace = proved(middle(lambda y: y[:, 1:], 15), examples())
    assert sizes(trace) == {"a": 15}
    trace = proved(middle(lambda y: y[:, :5], 5), examples())
    read = set(trace.slots["a.weight", 0][:5].tolist())
    assert not any(read & set(group.units.tolist()) for group in trace.groups)


FOLLOWED = {
    "halves": (lambda y: torch.cat(y.chunk(2, 1)[::-1], 1), 16, 8),
    "quarters": (lambda y: torch.cat(y.chunk(4, 1)[::-1], 1), 16, 4),
    "slices by size": (lambda y: y[:, : y.shape[1] // 2] * y[:, y.shape[1] // 2 :], 8, 8),
    "a roll by half": (lambda y: y.roll(y.shape[1] // 2, 1), 16, 8),
    "a shift in time by size": (lambda y: shifted(y, y.shape[1] // 8), 16, 2),
    "a shuffle by size": (lambda y: y.view(len(y), 2, -1, 4, 4).transpose(1, 2).flatten(1, 2), 16, 8),
    "maximum of pairs": (lambda y: y.view(len(y), -1, 2, 4, 4).amax(2), 8, 8),
    "space to depth by size": (
        lambda y: y.view(len(y), -1, 2, 2, 2, 2).permute(0, 1, 3, 5, 2, 4).reshape(len(y), -1, 2, 2), 64, 16,
    ),
    "both signs": (lambda y: torch.cat([F.relu(y), F.relu(-y)], 1), 32, 16),
}  # fmt: skip


@pytest.mark.parametrize("name", FOLLOWED)
def test_what_follows_the_size_stays_free(name):
    run, read, free = FOLLOWED[name]
    assert sizes(proved(middle(run, read), examples(), draws=5)) == {"a": free}


@pytest.mark.parametrize("wide", [3, 4, 8, 16])
def test_channels_from_two_layers_are_not_told_apart_by_cutting_both_alike(wide):
    """What the code takes by place out of a concatenation fits as long as both parts lose the same number."""

    def place(move):
        return Net(
            lambda m, x: m.b(move(torch.cat([m.a(x), m.c(x)], 1))),
            a=conv(3, wide), c=conv(3, wide), b=conv(2 * wide, 5),
        )  # fmt: skip

    def half(y):
        return y.shape[1] // 2

    for move in (
        lambda y: y.roll(half(y), 1),
        lambda y: torch.cat([y[:, half(y) :], y[:, : half(y)]], 1),
        lambda y: torch.cat(y.split(half(y), 1)[::-1], 1),
        lambda y: y.view(len(y), 2, -1, 4, 4).flip(1).flatten(1, 2),
        lambda y: y[:, torch.arange(y.shape[1]).view(2, -1).t().flatten()],
    ):
        proved(place(move), examples(), draws=5)


# Numbers and branches -------------------------------------------------------------------------------------


def asserted(y):
    assert y.shape[1] == 16, "sixteen"
    return y


NUMBERS = {
    "divided by its root": (lambda y: y / y.shape[1] ** 0.5, "a number follows the size"),
    "divided": (lambda y: y / y.shape[1], "a number follows the size"),
    "of a tensor": (lambda y: y * torch.tensor(1 / y.shape[1], dtype=y.dtype), "fixed size"),
    "slope": (lambda y: F.leaky_relu(y, 1 / y.shape[1]), "a number follows the size"),
    "asserted": (asserted, "sixteen"),
    "another branch": (lambda y: F.relu(y) if y.shape[1] > 10 else torch.tanh(y), "another way"),
    "a branch or none": (lambda y: F.relu(y) if y.shape[1] > 15 else y, "another way"),
    "another number": (lambda y: y * 2.0 if y.shape[1] > 12 else y * 3.0, "a number follows the size"),
    "a kernel": (lambda y: F.avg_pool2d(y, y.shape[1] // 8), "fixed size"),
    "a ramp": (lambda y: y * torch.arange(y.shape[1], device=y.device, dtype=y.dtype)[:, None, None], "a constant"),
}


@pytest.mark.parametrize("name", NUMBERS)
def test_a_number_or_a_branch_that_follows_the_size_is_protected(name):
    run, reason = NUMBERS[name]
    trace = proved(middle(run), examples())
    assert sizes(trace) == {}
    assert reason in trace.protected["a.weight:0"]


def test_ones_of_the_right_size_hold_nothing():
    def ones(y):
        return torch.ones(y.shape[1], 1, 1, device=y.device, dtype=y.dtype)

    trace = proved(middle(lambda y: y * ones(y)), examples())
    assert sizes(trace) == {"a": 16}


# Sizes that modules keep ----------------------------------------------------------------------------------


class Shaped(Middle):
    def middle(self, y):
        return y.flatten(1).relu().view(len(y), *self.shape)


class Asserting(Middle):
    def middle(self, y):
        assert y.shape[1] == self.hidden_dim
        return y


class Depthwise(Middle):
    def middle(self, y):
        return F.conv2d(y, self.w, padding=1, groups=self.channels)


ATTRIBUTES = {
    "channels": (lambda: Viewed(channels=16), 16, lambda size: size),
    "shape": (lambda: Shaped(shape=(16, 4, 4)), (16, 4, 4), lambda size: (size, 4, 4)),
    "hidden_dim": (lambda: Asserting(hidden_dim=16), 16, lambda size: size),
    "groups": (lambda: Depthwise(channels=16, w=nn.Parameter(torch.randn(16, 1, 3, 3))), 16, lambda size: size),
}


@pytest.mark.parametrize("name", ATTRIBUTES)
def test_a_size_that_a_module_keeps_is_followed_and_patched(name):
    make, before, after = ATTRIBUTES[name]
    net = make()
    own = next(n for n in ("channels", "shape", "hidden_dim") if hasattr(net, n))
    entry = "shape.0" if own == "shape" else own
    trace = proved(net, examples())
    assert sizes(trace) == {"a": 16}
    (attribute,) = [a for a in trace.attributes if a.name == entry]
    assert (attribute.module, attribute.value, attribute.slot) == ("", 16, ("a.weight", 0))
    cut, plan = small(net, trace)
    size = len(cut.a.weight)
    assert plan.attributes[""] == {entry: (16, size)}
    assert getattr(cut, own) == after(size)
    assert getattr(net, own) == before


def test_a_size_that_only_looks_like_it_is_left_alone():
    net = Middle(number=16, wide=(16, 4))
    trace = proved(net, examples())
    assert not [a for a in trace.attributes if a.name in ("number", "wide")]


class Attention(nn.Module):
    """Attention as timm writes it."""

    def __init__(self, dim=16, heads=4, fused=True):
        super().__init__()
        self.num_heads, self.head_dim, self.fused = heads, dim // heads, fused
        self.scale = self.head_dim**-0.5
        self.qkv, self.proj = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)

    def forward(self, x):
        batch, n, c = x.shape
        q, k, v = self.qkv(x).reshape(batch, n, 3, self.num_heads, self.head_dim).permute(2, 0, 3, 1, 4).unbind(0)
        if self.fused:
            x = F.scaled_dot_product_attention(q, k, v)
        else:
            x = (q * self.scale @ k.transpose(-2, -1)).softmax(-1) @ v
        return self.proj(x.transpose(1, 2).reshape(batch, n, c))


class Block(nn.Module):
    def __init__(self, **settings):
        super().__init__()
        self.n, self.attention = nn.LayerNorm(16), Attention(**settings)
        self.m, self.up, self.down = nn.LayerNorm(16), nn.Linear(16, 24), nn.Linear(24, 16)

    def forward(self, x):
        x = x + self.attention(self.n(x))
        return x + self.down(F.gelu(self.up(self.m(x))))


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("heads", ["whole", "dims"])
def test_attention_that_ends_in_the_width_it_began_with_is_never_cut_wrongly(fused, heads):
    net = nn.Sequential(nn.Linear(3, 16), Block(fused=fused), Block(fused=fused), nn.Linear(16, 5))
    x = torch.randn(8, 6, 3)
    trace = prune.trace(net, x, heads=heads)
    assert {name: n for name, n in sizes(trace).items() if name.endswith("up")} == {"1.up": 24, "2.up": 24}
    for seed in range(4):
        prune.check(net, draw(trace, seed), x)


class Heads(nn.Module):
    """Attention written with einsum; how many heads there are, or how wide they are, follows the projections."""

    def __init__(self, split):
        super().__init__()
        self.split = split
        self.e, self.c = nn.Linear(3, 16), nn.Linear(16, 5)
        self.q, self.k, self.v = (nn.Linear(16, 16) for _ in range(3))
        self.o = nn.Linear(16, 16)

    def forward(self, x):
        x = self.e(x)
        q, k, v = (f(x).unflatten(-1, self.split) for f in (self.q, self.k, self.v))
        weights = (torch.einsum("bnhd,bmhd->bhnm", q, k) * 0.5).softmax(-1)
        return self.c(x + self.o(torch.einsum("bhnm,bmhd->bnhd", weights, v).flatten(-2)))


def test_attention_written_with_einsum_loses_whole_heads():
    trace = proved(Heads((-1, 4)), torch.randn(8, 6, 3))
    assert sizes(trace) == {"e": 16, "q": 4}


def test_attention_over_one_head_loses_the_dimensions_of_its_values():
    def run(m, x):
        q, k, v = m.q(x), m.k(x), m.v(x)
        weights = torch.einsum("bid,bjd->bij", q, k) / q.shape[-1] ** 0.5
        return m.o(torch.einsum("bij,bjd->bid", weights.softmax(-1), v))

    layers = {name: nn.Linear(3, 8) for name in "qkv"}
    trace = proved(Net(run, **layers, o=nn.Linear(8, 5)), torch.randn(8, 6, 3))
    assert sizes(trace) == {"v": 8}, "the scale follows the width of q and k"

    def fused(m, x):
        return m.o(F.scaled_dot_product_attention(*(f(x)[:, None] for f in (m.q, m.k, m.v)))[:, 0])

    assert sizes(proved(Net(fused, **layers, o=nn.Linear(8, 5)), torch.randn(8, 6, 3))) == {"v": 8}


def test_one_channel_cut_before_another_that_is_picked():
    """Only by cutting exactly the channels before it does a wrong number show."""
    net = middle(lambda y: y[:, 3][:, None], 1)
    trace = prune.trace(net, examples())
    kept = ~torch.zeros(trace.units, dtype=torch.bool).numpy()
    free = set().union(*(group.units.tolist() for group in trace.groups))
    for unit in trace.slots["a.weight", 0][:3]:
        if unit in free:
            kept[unit] = False
    prune.check(net, plan_from_kept(trace, kept), examples())
