"""Real networks with random weights: cut to half their MACs, the cut equals the mask."""

import pytest
import torch
import torchvision
from prune_nets import draw, image

from compress import cost, prune

# name -> side of the input
ZOO = {
    "mobilenet_v2": 64,
    "resnet18": 64,
    "densenet121": 64,
    "resnext50_32x4d": 64,
    "efficientnet_b0": 64,
    "regnet_y_400mf": 64,
    "mobilenet_v3_small": 64,
    "squeezenet1_0": 64,
    "googlenet": 96,
}


def made(name):
    torch.manual_seed(0)
    extra = {"init_weights": True} if name == "googlenet" else {}
    return torchvision.models.get_model(name, weights=None, num_classes=7, **extra).eval()


@pytest.mark.parametrize("name", ZOO)
def test_half_the_macs_and_nothing_else(name):
    net, x = made(name), image(4, ZOO[name])
    trace = prune.trace(net, x[:1])
    assert trace.unknown_ops == ()
    assert set(trace.protected.values()) == {"graph input", "graph output"}
    plan = prune.plan(trace, prune.score(trace, net), budget=prune.Budget(macs=0.5), round_to=4, min_kept=4)
    assert 0.4 <= plan.costs["macs_after"] / plan.costs["macs_before"] <= 0.5
    prune.check(net, plan, x)
    small = prune.apply(net, plan)
    assert cost.macs(small, x) == plan.costs["macs_after"]
    assert cost.macs(net, x) == plan.costs["macs_before"]
    assert small(x).shape == (4, 7)


def test_the_auxiliary_heads_of_googlenet_are_cut_with_it():
    net = made("googlenet")
    trace = prune.trace(net, image(1, 96))
    slots = {slot for group in trace.groups for slot in group.slots}
    assert ("aux1.conv.conv.weight", 1) in slots
    small = prune.apply(net, draw(trace, 0, least=8)).train()
    outputs = small(image(2, 96))
    assert [tuple(o.shape) for o in outputs] == [(2, 7)] * 3


def test_shufflenet_protects_with_a_reason_and_is_never_cut_wrongly():
    """A short one: each block and each trial cut is that of shufflenet_v2_x1_0."""
    torch.manual_seed(0)
    net, x = torchvision.models.ShuffleNetV2([2, 1, 1], [8, 16, 24, 32, 40], num_classes=7).eval(), image(4, 64)
    trace = prune.trace(net, x[:1])
    assert any(reason.startswith("fixed size") for reason in trace.protected.values())
    assert any("branch2" in group.name for group in trace.groups), "what only one branch sees is free"
    for seed in range(3):
        prune.check(net, draw(trace, seed), x)
