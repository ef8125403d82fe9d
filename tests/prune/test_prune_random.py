"""Networks drawn at random out of the operators that the rules know: whatever is planned, the cut equals the mask."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from prune_nets import draw, image
from torch import nn

from compress import cost, prune

CLASSES = 4


class Block(nn.Module):
    """One drawn operator on `c` channels; `out` is how many come out."""

    def __init__(self, kind, c, wide):
        super().__init__()
        self.kind, self.out = kind, c
        if kind in {"conv", "norm", "split"}:
            self.a = nn.Conv2d(c, wide, 3, padding=1, bias=kind == "conv")
            self.out = wide
        if kind == "norm":
            self.n = nn.BatchNorm2d(wide)
        if kind == "depthwise":
            self.a = nn.Conv2d(c, 2 * c, 3, padding=1, groups=c)
            self.out = 2 * c
        if kind == "grouped":
            self.a = nn.Conv2d(c, c, 3, padding=1, groups=2)
        if kind == "residual":
            self.a, self.n, self.b = nn.Conv2d(c, wide, 3, padding=1), nn.BatchNorm2d(wide), nn.Conv2d(wide, c, 1)
        if kind == "dense":
            self.a = nn.Conv2d(c, wide, 3, padding=1)
            self.out = c + wide
        if kind == "gate":
            self.a, self.b = nn.Conv2d(c, max(2, c // 2), 1), nn.Conv2d(max(2, c // 2), c, 1)
        if kind == "up":
            self.a = nn.ConvTranspose2d(c, wide, 2, 2)
            self.out = wide

    def forward(self, x):
        if self.kind == "residual":
            return F.relu(x + self.b(F.relu(self.n(self.a(x)))))
        if self.kind == "dense":
            return torch.cat([x, F.relu(self.a(x))], 1)
        if self.kind == "gate":
            return x * torch.sigmoid(self.b(F.relu(self.a(x.mean((2, 3), keepdim=True)))))
        if self.kind == "split":
            left, right = self.a(x).chunk(2, 1)
            return torch.cat([F.relu(left), torch.tanh(right)], 1)
        if self.kind == "shuffle":
            n, c, h, w = x.shape
            return x.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)
        if self.kind == "norm":
            return F.relu(self.n(self.a(x)))
        if self.kind == "up":
            return F.max_pool2d(F.relu(self.a(x)), 2)
        if self.kind == "flip":
            return x + x.flip(1)
        return F.relu(self.a(x))


KINDS = ("conv", "norm", "depthwise", "grouped", "residual", "dense", "gate", "split", "shuffle", "up", "flip")


class Drawn(nn.Module):
    """A stem, drawn blocks, and a classifier over all positions or over their mean."""

    def __init__(self, kinds, width, flatten, seed):
        super().__init__()
        torch.manual_seed(seed)
        self.stem = nn.Conv2d(3, width, 3, padding=1)
        self.blocks, c = nn.ModuleList(), width
        for k, kind in enumerate(kinds):
            if c * 2 > 64 and kind in {"depthwise", "dense"}:
                continue
            self.blocks.append(Block(kind, c, width + 2 * (k % 3)))
            c = self.blocks[-1].out
        self.flatten = flatten
        self.head = nn.Linear(c * (9 if flatten else 1), CLASSES)

    def forward(self, x):
        x = F.relu(self.stem(x))
        for block in self.blocks:
            x = block(x)
        x = F.adaptive_avg_pool2d(x, 3 if self.flatten else 1)
        return self.head(torch.flatten(x, 1))


specs = st.builds(
    Drawn,
    st.lists(st.sampled_from(KINDS), min_size=2, max_size=5),
    st.sampled_from([6, 8, 12]),
    st.booleans(),
    st.integers(0, 100),
)


@pytest.mark.slow
def test_whatever_is_drawn_the_cut_equals_the_mask():
    lost = []
    x = image(batch=8, side=6)

    @settings(max_examples=25, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
    @given(specs, st.integers(0, 10_000))
    def holds(net, seed):
        trace = prune.trace(net, x[:1])
        plan = draw(trace, seed)
        prune.check(net, plan, x, seed=seed)
        small = prune.apply(net, plan).eval()
        assert small(x).shape == (8, CLASSES)
        assert cost.macs(small, x) == plan.costs["macs_after"]
        assert cost.macs(net, x) == plan.costs["macs_before"]
        assert prune.Plan.from_json(plan.to_json()) == plan
        lost.append(bool(plan.slots))

    holds()
    assert sum(lost) >= 0.8 * len(lost), f"{sum(lost)} of {len(lost)} networks lost a channel"


@settings(max_examples=10, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(specs)
def test_pruning_nothing_is_the_identity(net):
    x = image(batch=2, side=6)
    trace = prune.trace(net, x)
    plan = prune.plan(trace, prune.score(trace, net), ratio=0)
    assert plan.slots == {}
    assert plan.attributes == {}
    same = prune.apply(net, plan)
    assert all(torch.equal(a, b) for a, b in zip(net.parameters(), same.parameters(), strict=True))
    assert torch.equal(net.eval()(x), same.eval()(x))


@settings(max_examples=10, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(specs, st.floats(0.1, 0.9))
def test_a_ratio_of_each_group_goes_within_rounding(net, ratio):
    trace = prune.trace(net, image(batch=1, side=6))
    if not trace.groups:
        return
    plan = prune.plan(trace, prune.score(trace, net), ratio=ratio, scope="group")
    for size in plan.groups:
        assert abs((size.before - size.after) - ratio * size.before) <= 1.5
        assert 1 <= size.after <= size.before
    assert sum(s.before for s in plan.groups) == sum(len(np.unique(g.units)) for g in trace.groups)
