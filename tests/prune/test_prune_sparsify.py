"""Pruning during training: each penalty against a loop, and what becomes of the units on a small network."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from compress import prune
from compress.errors import PlanError
from compress.prune.sparsify import Sparsifier, gone_units

CALLS = 41


def network():
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU(),
        nn.Conv2d(8, 12, 3, bias=False), nn.BatchNorm2d(12), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, 4),
    )  # fmt: skip
    with torch.no_grad():
        for norm in (net[1], net[4]):
            norm.weight.uniform_(0.5, 1.5)
            norm.bias.uniform_(0.1, 0.3)
    return net


def sparsifier(net, kind, strength=0.1, epoch=10):
    trace = prune.trace(net, torch.rand(2, 3, 12, 12))
    return Sparsifier(
        trace,
        kind,
        lambda scores: prune.plan(trace, scores, ratio=0.5, scope="group"),
        strength=strength,
        calls=CALLS,
        epoch=epoch,
    )


def trained(net, penalty, calls=CALLS, seed=1):
    """Learns what a picture's brightest quarter is; gives the penalties of all passes."""
    images = torch.rand(32, 3, 12, 12, generator=torch.Generator().manual_seed(seed))
    quarters = F.avg_pool2d(images.mean(1, keepdim=True), 6).flatten(1).argmax(1)
    optimizer, found = torch.optim.SGD(net.parameters(), 0.05, momentum=0.9), []
    for _ in range(calls):
        optimizer.zero_grad()
        own = penalty(net)
        (F.cross_entropy(net(images), quarters) + own).backward()
        optimizer.step()
        found.append(float(own.detach()))
    return found


def norms(net):
    return [layer.weight.detach().flatten(1).norm(dim=1) for layer in (net[0], net[3])]


def test_group_lasso_is_the_sum_of_norms_and_grows_to_its_strength():
    net = network()
    penalty = sparsifier(net, "group_lasso", strength=0.2)
    expected = 0.0
    for layer, norm in ((net[0], net[1]), (net[3], net[4])):
        for i in range(len(layer.weight)):
            unit = torch.cat([part[i].detach().flatten() for part in (layer.weight, norm.weight, norm.bias)])
            expected += float(unit.norm()) * len(unit) ** 0.5
    found = [float(penalty(net)) for _ in range(CALLS)]
    assert found == pytest.approx([0.2 * k / (CALLS - 1) * expected for k in range(CALLS)], rel=1e-5)
    # A unit that is zero has no slope that is not finite.
    with torch.no_grad():
        net[0].weight[3] = 0
    penalty(net).backward()
    assert torch.isfinite(net[0].weight.grad).all()


def test_group_lasso_shrinks_what_the_loss_can_spare():
    plain, sparse = network(), network()
    trained(plain, lambda net: torch.zeros(()))
    trained(sparse, sparsifier(sparse, "group_lasso", strength=0.02))
    for before, after in zip(norms(plain), norms(sparse), strict=True):
        assert float(after.sum()) < 0.8 * float(before.sum())


def test_growing_presses_only_what_is_to_go():
    net, plain = network(), network()
    first = norms(net)
    penalty = sparsifier(net, "growing", strength=2.0)
    found = trained(net, penalty)
    trained(plain, lambda net: torch.zeros(()))
    assert found[0] == 0
    # Half of each group is chosen at the start, the smallest.
    chosen = [set(group.argsort()[: len(group) // 2].tolist()) for group in first]
    going = [{i for i, unit in enumerate(penalty.trace.slots[f"{k}.weight", 0]) if penalty.going[unit]} for k in (0, 3)]
    assert going == chosen
    for ours, others, lowest in zip(norms(net), norms(plain), chosen, strict=True):
        gone, rest = sorted(lowest), sorted(set(range(len(ours))) - lowest)
        assert float((ours[gone] / others[gone]).max()) < 0.35
        assert float((ours[rest] / others[rest]).min()) > 0.6


def test_scales_are_pressed_as_network_slimming_does():
    net, plain = network(), network()
    penalty = sparsifier(net, "scales", strength=0.05)
    expected = 0.05 * float(net[1].weight.abs().sum() + net[4].weight.abs().sum())
    assert float(penalty(net)) == pytest.approx(expected, rel=1e-6)
    penalty(net).backward()
    assert torch.allclose(net[1].weight.grad, torch.full((8,), 0.05))
    assert net[0].weight.grad is None
    net.zero_grad()
    trained(net, penalty)
    trained(plain, lambda net: torch.zeros(()))
    assert float(net[1].weight.abs().sum()) < 0.8 * float(plain[1].weight.abs().sum())


def test_soft_zeroes_at_each_epoch_and_lets_the_filters_come_back():
    net = network()
    penalty = sparsifier(net, "soft", epoch=5)
    with torch.no_grad():
        assert float(penalty(net)) == 0
    zero = [group == 0 for group in norms(net)]
    assert [int(group.sum()) for group in zero] == [4, 6]
    trained(net, penalty, calls=4)
    # Norms and biases were left alone, so they learn again.
    assert all(float(group.min()) > 0 for group in norms(net))
    penalty(net)
    assert [int((group == 0).sum()) for group in norms(net)] == [4, 6]


def test_what_it_remembers_goes_on_from_a_checkpoint():
    net = network()
    whole = sparsifier(net, "growing")
    for _ in range(4):
        whole(net)
    restored, fresh = sparsifier(net, "growing"), sparsifier(net, "growing")
    restored.load_state_dict(whole.state_dict())
    with torch.no_grad():
        # What would be chosen now is something else; what was chosen counts.
        net[0].weight[0:4] *= 5
        net[0].weight[4:8] /= 5
    expected = float(whole(net))
    assert float(restored(net)) == expected
    fresh.called += 4
    assert float(fresh(net)) != expected


def test_the_units_that_a_plan_drops():
    net = network()
    trace = prune.trace(net, torch.rand(2, 3, 12, 12))
    plan = prune.plan(trace, prune.score(trace, net), ratio=0.4, scope="group")
    gone = gone_units(trace, plan)
    assert int(gone.sum()) == sum(group.before - group.after for group in plan.groups)
    assert int(gone.sum()) == plan.costs["units_before"] - plan.costs["units_after"]


def test_it_refuses_what_it_cannot_do():
    with pytest.raises(PlanError, match="No sparsifier is called 'hard'"):
        sparsifier(network(), "hard")
    plain = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 3))
    with pytest.raises(PlanError, match="No norm scales this network's channels"):
        sparsifier(plain, "scales")
