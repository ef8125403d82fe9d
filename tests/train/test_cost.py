"""MACs, parameters and training FLOPs of a small network, counted by hand."""

import torch
from torch import nn

from compress import cost


def net():
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1, bias=False),  # 8 * 3 * 9 * 16 * 16
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, stride=2, padding=1, groups=8),  # 8 * 1 * 9 * 8 * 8
        nn.ReLU(),
        nn.Conv2d(8, 12, 1),  # 12 * 8 * 8 * 8
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(12, 5),  # 12 * 5
    )


def plain():
    """Without groups."""
    return nn.Sequential(nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.ReLU(), nn.Conv2d(8, 12, 1))


FIRST = 8 * 3 * 9 * 256
REST = 8 * 9 * 64 + 12 * 8 * 64 + 12 * 5
EXAMPLE = torch.zeros(8, 3, 16, 16)


def test_macs_are_of_one_image():
    assert cost.macs(net(), EXAMPLE) == FIRST + REST
    assert cost.macs(net(), EXAMPLE[:1]) == FIRST + REST


def test_parameters_count_shared_ones_once():
    own = 8 * 3 * 9 + 2 * 8 + (8 * 9 + 8) + (12 * 8 + 12) + (12 * 5 + 5)
    assert cost.parameters(net()) == own
    shared = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False))
    shared[1].weight = shared[0].weight
    assert cost.parameters(shared) == 16


def test_training_is_forward_and_both_gradients():
    """Two FLOPs a MAC, three products a layer; the first layer needs no gradient of its input."""
    assert cost.training_flops(net(), EXAMPLE) == 2 * (2 * FIRST + 3 * REST)


def test_training_without_groups_is_forward_and_both_gradients():
    assert cost.training_flops(plain(), EXAMPLE) == 2 * (2 * FIRST + 3 * 12 * 8 * 256)


def test_counting_leaves_the_network_alone():
    model = net().train()
    model[1].eval()
    before = {n: t.clone() for n, t in model.state_dict().items()}
    cost.macs(model, EXAMPLE)
    cost.training_flops(model, EXAMPLE)
    assert model[0].training
    assert not model[1].training
    assert all(torch.equal(before[n], t) for n, t in model.state_dict().items())
    assert all(p.grad is None and not p.is_meta for p in model.parameters())


def test_a_frozen_layer_costs_no_weight_gradient():
    model = net()
    model[8].requires_grad_(False)
    assert cost.training_flops(net(), EXAMPLE) - cost.training_flops(model, EXAMPLE) == 2 * 12 * 5
