"""Sizes that other people's code keeps: in numbers, lists and configurations, in two places, in places nobody reads."""

from itertools import pairwise
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from prune_nets import Net, conv, draw, image, proved, sizes
from torch import nn

from compress import prune
from compress.errors import PlanError
from compress.prune.inspection import inspect_model


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


def tokens():
    return torch.randn(8, 6, 5)


# A size that is a part of a slot ---------------------------------------------------------------------------


class Single(nn.Module):
    """Queries, keys and values of one projection, of which the values are as many as the code says."""

    def __init__(self, few=4, many=20):
        super().__init__()
        self.few, self.many = few, many
        self.p, self.o = nn.Linear(5, 2 * few + many), nn.Linear(many, 3)

    def forward(self, x):
        q, k, v = self.p(x).split([self.few, self.few, self.many], -1)
        return self.o((q * k).sum(-1, keepdim=True) * v)


@pytest.mark.parametrize("few", [2, 3, 4, 7])
def test_a_size_of_a_part_counts_the_channels_of_that_part(few):
    net = Single(few)
    trace = proved(net, tokens(), draws=5)
    assert sizes(trace) == {"p": [few, 20]}
    small = prune.apply(net, draw(trace, 3))
    assert small.p.out_features == 2 * small.few + small.many


def test_two_groups_of_one_size_are_not_taken_for_each_other():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.n = self.m = 4
            self.a, self.b = nn.Linear(5, 4), nn.Linear(5, 4)
            self.o = nn.Linear(8, 3)

        def forward(self, x):
            y, z = self.a(x).reshape(len(x), -1, self.n).relu(), self.b(x).reshape(len(x), -1, self.m).tanh()
            return self.o(torch.cat([y, z], -1))

    assert sizes(proved(Two(), tokens(), draws=8)) == {"a": 4, "b": 4}


# Sizes in lists, tuples, dictionaries and objects ----------------------------------------------------------

HOLDERS = {
    "a list": ([6, 10], lambda h: h),
    "a tuple": ((6, 10), lambda h: h),
    "equal sizes": ([8, 8], lambda h: h),
    "a dictionary": ({"first": 6, "second": 10}, lambda h: list(h.values())),
    "an object": (SimpleNamespace(first=6, second=10), lambda h: [h.first, h.second]),
}


class Parted(nn.Module):
    """Parts of the channels, of sizes that it holds, go different ways."""

    def __init__(self, holder, read):
        super().__init__()
        self.holder, self.read = holder, read
        first, second = read(holder)
        self.a, self.b = conv(first, first, groups=first), conv(second, second, groups=second)

    def forward(self, x):
        y, z = x.split(list(self.read(self.holder)), 1)
        return torch.cat([self.a(y), self.b(z)], 1)


@pytest.mark.parametrize("name", HOLDERS)
def test_sizes_of_a_split_are_followed_wherever_they_are_kept(name):
    holder, read = HOLDERS[name]
    parted = Parted(holder, read)
    net = nn.Sequential(conv(3, 16), parted, nn.ReLU(), conv(16, 5))
    trace = proved(net, draws=4)
    first, second = read(holder)
    # Equal runs have to stay equal: the code may have meant halves.
    assert sum(len(group.units) for group in trace.groups) == (8 if first == second else 16)
    small = prune.apply(net, draw(trace, 2))
    assert read(small[1].holder) is not read(holder)
    assert list(read(small[1].holder)) == [small[1].a.out_channels, small[1].b.out_channels]
    assert list(read(net[1].holder)) == [first, second], "the network that was traced keeps its own"


class Shortcut(nn.Module):
    """The first of a block's channels get the shortcut, the rest do not."""

    def __init__(self, wide, out):
        super().__init__()
        self.n, self.c = wide, conv(wide, out)

    def forward(self, x):
        y = self.c(x)
        return torch.cat([y[:, : self.n] + x, y[:, self.n :]], 1)


def test_a_shortcut_of_a_part_leaves_the_rest_to_itself():
    wide = (8, 11, 15, 19)
    blocks = [Shortcut(a, b) for a, b in pairwise(wide)]
    trace = proved(nn.Sequential(conv(3, 8), *blocks, conv(19, 5)), draws=4)
    assert sizes(trace) == {"0": 8, "1.c": 3, "2.c": 4, "3.c": 4}


# Attention -------------------------------------------------------------------------------------------------


class Attention(nn.Module):
    """Attention as libraries write it: heads in a number or not, what comes out in the width that came in or not."""

    def __init__(self, heads=True, width="kept", config=None):
        super().__init__()
        self.config, self.width = config, width
        if heads:
            self.num_heads = 4
        if width == "kept":
            self.attn_dim = 16
        self.qkv, self.proj = nn.Linear(16, 48), nn.Linear(16, 16)

    def forward(self, x):
        b, n, c = x.shape
        if self.config is not None:
            shape = (b, n, 3, self.config.heads, -1)
        elif self.width == "input":
            shape = (b, n, 3, self.num_heads, c // self.num_heads)
        else:
            shape = (b, n, 3, self.num_heads, 4) if hasattr(self, "num_heads") else (b, n, 3, -1, 4)
        q, k, v = self.qkv(x).reshape(shape).permute(2, 0, 3, 1, 4).unbind(0)
        y = F.scaled_dot_product_attention(q, k, v, scale=0.5).transpose(1, 2)
        out = {"kept": getattr(self, "attn_dim", 0), "input": c, "free": -1}[self.width]
        return self.proj(y.reshape(b, n, out))


class WindowAttention(Attention):
    """A name that stands in many libraries, ours among them."""


class MultiheadAttention(Attention):
    pass


class RelativeAttention(Attention):
    pass


ATTENTIONS = {
    "the heads": lambda: Attention(width="free"),
    "the width": lambda: Attention(heads=False),
    "both": Attention,
    "the heads of a configuration": lambda: Attention(width="free", config=SimpleNamespace(heads=4)),
    **{kind.__name__: lambda kind=kind: kind(width="free") for kind in (WindowAttention, MultiheadAttention)},
    "RelativeAttention": lambda: RelativeAttention(width="free"),
}


def transformer(*attentions):
    class Block(nn.Module):
        def __init__(self, attention):
            super().__init__()
            self.n, self.a, self.m = nn.LayerNorm(16), attention, nn.LayerNorm(16)
            self.up, self.down = nn.Linear(16, 24), nn.Linear(24, 16)

        def forward(self, x):
            x = x + self.a(self.n(x))
            return x + self.down(F.gelu(self.up(self.m(x))))

    return nn.Sequential(nn.Linear(5, 16), *(Block(a) for a in attentions), nn.Linear(16, 3))


@pytest.mark.parametrize("name", ATTENTIONS)
def test_heads_go_and_the_numbers_that_are_kept_of_them_follow(name):
    net = transformer(ATTENTIONS[name](), ATTENTIONS[name]())
    trace = proved(net, tokens())
    assert sizes(trace) == {"0": 16, "1.a.qkv": 4, "1.up": 24, "2.a.qkv": 4, "2.up": 24}


def test_what_comes_out_in_the_width_that_came_in_goes_with_it():
    net = transformer(Attention(width="input"), Attention(width="input"))
    trace = proved(net, tokens(), draws=5)
    assert sizes(trace) == {"0": 4, "1.up": 24, "2.up": 24}, "whole heads, with the channels of the trunk"


# Numbers that the pass does not read -----------------------------------------------------------------------


class Halves(nn.Module):
    """Another method than the forward pass reads how wide a half is."""

    def __init__(self, wide, out):
        super().__init__()
        self.c = out // 2
        self.p, self.m, self.q = conv(wide, out, 1), conv(self.c, self.c), conv(3 * self.c, out, 1)

    def forward(self, x):
        a, b = self.p(x).chunk(2, 1)
        return self.q(torch.cat([a, b, self.m(b)], 1))

    def forward_split(self, x):
        a, b = self.p(x).split((self.c, self.c), 1)
        return self.q(torch.cat([a, b, self.m(b)], 1))

    def forward_other(self, x):
        raise RuntimeError(self.c)


def test_another_method_that_may_take_the_place_of_forward_works_after_a_cut():
    net = nn.Sequential(Halves(3, 16), nn.ReLU(), conv(16, 5)).eval()
    trace = proved(net, draws=4)
    assert sizes(trace) == {"0.p": 8, "0.m": 8, "0.q": 16}
    # Not counted twice.
    assert trace.macs(trace.protected_units | True) == 2 * 64 * (3 * 16 + 9 * 8 * 8 + 24 * 16 + 9 * 16 * 5)
    small = prune.apply(net, draw(trace, 1)).eval()
    expected = small(image())
    small[0].forward = small[0].forward_split
    assert torch.equal(small(image()), expected)


class Folded(nn.Module):
    """What it is folded into later is made by numbers that its constructor keeps."""

    def __init__(self, wide, out):
        super().__init__()
        self.in_channels, self.out_channels, self.patch_size = wide, out, out
        self.dense, self.point = conv(wide, out), conv(wide, out, 1)

    def forward(self, x):
        return (self.dense(x) + self.point(x)).relu()

    def deploy(self):
        one = nn.Conv2d(self.in_channels, self.out_channels, 3, padding=1)
        with torch.no_grad():
            one.weight.copy_(self.dense.weight + F.pad(self.point.weight, (1, 1, 1, 1)))
            one.bias.copy_(self.dense.bias + self.point.bias)
        return one


def test_numbers_that_only_a_later_fold_reads_are_those_of_the_layers():
    net = nn.Sequential(Folded(3, 12), Folded(12, 12), Folded(12, 8), conv(8, 5)).eval()
    trace = proved(net)
    small = prune.apply(net, draw(trace, 1)).eval()
    for block in small[:3]:
        torch.testing.assert_close(F.relu(block.deploy()(torch.ones(1, block.in_channels, 4, 4))),
                                   block(torch.ones(1, block.in_channels, 4, 4)))  # fmt: skip
    assert [block.patch_size for block in small[:3]] == [12, 12, 8], "no number of channels by its name"


def test_a_number_that_may_be_two_sizes_is_reported_and_left():
    class Both(nn.Module):
        def __init__(self):
            super().__init__()
            self.width, self.a, self.b = 8, conv(3, 8), conv(8, 8)

        def forward(self, x):
            return self.b(self.a(x).relu()).relu()

    net = nn.Sequential(Both(), conv(8, 5))
    trace = proved(net)
    assert trace.unfollowed == (("0", "width", 8),)
    assert prune.apply(net, draw(trace, 1))[0].width == 8
    assert inspect_model(net, image(2)).unfollowed == ("0.width = 8",)


# Why nothing is free ---------------------------------------------------------------------------------------


def test_the_reason_that_holds_most_is_given_with_its_place_and_a_way_out():
    def run(self, x):
        y = self.a(x)
        return self.b(y.reshape(len(y), 16, -1)[:, :, 0])

    net = Net(run, a=conv(3, 16), b=nn.Linear(16, 5))
    trace = prune.trace(net, image(2))
    assert not trace.groups
    with pytest.raises(PlanError) as caught:
        prune.plan(trace, prune.score(trace, net), ratio=0.5)
    said = str(caught.value)
    assert "fixed size: shape '[2, 16, -1]'" in said or "fixed size" in said
    assert "test_prune_sizes.py:" in said
    assert f"of {len(trace.slots)} slots" in said
    assert "reshape(B, N, -1)" in said


def test_an_unknown_operator_is_the_reason_though_input_and_output_come_first():
    net = Net(lambda m, x: m.b(torch.cummax(m.a(x), 1).values), a=conv(3, 8), b=conv(8, 5))
    trace = prune.trace(net, image(2))
    with pytest.raises(PlanError, match=r"free to go: unknown operator aten.cummax \(.*\) holds 3 of 6 slots"):
        prune.plan(trace, prune.score(trace, net), ratio=0.5)
