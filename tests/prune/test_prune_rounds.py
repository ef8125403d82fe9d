"""Cutting in several rounds: plans compose into one for the dense network, and `signal` against a slow reference."""

import pytest
import torch
from prune_nets import image
from torch import nn

from compress import prune
from compress.errors import PlanError
from compress.models.cifar_resnet import cifar_resnet


@pytest.fixture
def net():
    torch.manual_seed(0)
    return cifar_resnet(8, 16, 3, 5).eval()


def cut(net, share):
    trace = prune.trace(net, image(2, 16))
    return prune.plan(trace, prune.score(trace, net), budget=prune.Budget(macs=share), round_to=2, min_kept=2)


def test_two_plans_make_one(net):
    first = cut(net, 0.7)
    middle = prune.apply(net, first)
    second = cut(middle, 0.6)
    twice, both = prune.apply(middle, second), first.then(second)
    once = prune.apply(net, both)
    x = image(4, 16)
    assert torch.equal(once(x), twice(x))
    assert [p.shape for p in once.parameters()] == [p.shape for p in twice.parameters()]
    assert both.architecture == first.architecture
    assert both.costs["macs_before"] == first.costs["macs_before"]
    assert both.costs["macs_after"] == second.costs["macs_after"]
    assert prune.Plan.from_json(both.to_json()) == both
    prune.check(net, both, image(8, 16))


def test_a_plan_for_something_else_does_not_follow(net):
    first = cut(net, 0.7)
    with pytest.raises(PlanError, match="are left"):
        first.then(first)


def test_signal_against_a_loop(net):
    with torch.no_grad():
        for module in net.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.weight.uniform_(0.2, 2)
    trace = prune.trace(net, image(2, 16))
    weights = dict(net.named_parameters())
    got = prune.score(trace, net, "signal", normalize="none")
    scale, columns = [0.0] * trace.units, [0.0] * trace.units
    for (name, dim), units in trace.slots.items():
        if name not in weights:
            continue
        weight = weights[name].detach().double()
        if weight.dim() == 1 and name.endswith("weight"):
            for i, unit in enumerate(units):
                scale[unit] += float(weight[i].abs() / weight.abs().mean())
        elif weight.dim() > 1 and trace.roles[name, dim] == "consumer":
            norms = [float(weight.select(dim, i).norm()) for i in range(weight.shape[dim])]
            for i, unit in enumerate(units):
                columns[unit] += (norms[i] / (sum(norms) / len(norms))) ** 2
    for group in trace.groups:
        for unit in group.units:
            assert float(got[unit]) == pytest.approx(scale[unit] * columns[unit] ** 0.5, rel=1e-5)
