"""Patterns of other people's code in several spellings: free, and exact when half of their channels go."""

import pytest
import torch
from variant_nets import VARIANTS

from compress import prune


@pytest.mark.parametrize("name", VARIANTS)
def test_half_of_the_channels_go_and_the_cut_is_exact(name):
    torch.manual_seed(0)
    most, make = VARIANTS[name]
    net, x = make()
    net.eval()
    trace = prune.trace(net, x)
    plan = prune.plan(trace, prune.score(trace, net, "l1"), ratio=0.5, scope="group")
    small = prune.apply(net, plan)
    kept = sum(p.numel() for p in small.parameters()) / sum(p.numel() for p in net.parameters())
    assert kept <= most, trace.protected
    assert prune.check(net, plan, x).worst <= 1e-8
    assert small(x).shape == net(x).shape
