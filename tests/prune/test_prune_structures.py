"""Sparse structure selection: the scales' step by hand, in a training, over ranks' parts, and folded into the norms."""

import copy

import pytest
import torch
from test_prune_sparsify import network
from torch import nn
from torch.nn import functional as F

from compress import prune
from compress.errors import PlanError
from compress.prune.structures import StructureScales, proximal_step


def scaled(net, strength=0.5, rate=0.1, parts=1):
    trace = prune.trace(net, torch.rand(2, 3, 12, 12))
    scales = StructureScales(trace, strength=strength, rate=lambda step: rate / (step + 1), parts=parts)
    scales.attach(net)
    return trace, scales


def test_the_step_by_hand():
    # z = 1 - 0.1 * 2 = 0.8, soft by 0.1 * 0.5 gives 0.75; v = 0.75 - 1 + 0.9 * 0.2 = -0.07; 0.75 - 0.063 = 0.687.
    # z = 0.04 is within 0.05: 0; v = 0 - 0.04 = -0.04; max(0, -0.036) = 0.  z = -0.3: -0.25; v = -0.55; 0.
    scales, velocity = proximal_step(
        torch.tensor([1.0, 0.04, 0.3]), torch.tensor([0.2, 0.0, 0.0]), torch.tensor([2.0, 0.0, 6.0]), 0.1, 0.5
    )
    assert scales.tolist() == pytest.approx([0.687, 0.0, 0.0])
    assert velocity.tolist() == pytest.approx([-0.07, -0.04, -0.55])


def losses(net, scales, images, labels, parts):
    for part in range(parts):
        scales(net)
        (F.cross_entropy(net(images.chunk(parts)[part]), labels.chunk(parts)[part]) / parts).backward()


def test_a_training_steps_by_the_gradients_of_what_the_norms_give():
    net = network().eval()
    images, labels = torch.rand(8, 3, 12, 12), torch.arange(8) % 4
    plain = copy.deepcopy(net)
    trace, scales = scaled(net)
    losses(net, scales, images, labels, 1)
    # The same by hand: a norm's output times s has the gradient weight * dweight + bias * dbias at s = 1.
    F.cross_entropy(plain(images), labels).backward()
    gradient = torch.zeros(trace.units)
    for norm in (1, 4):
        by_hand = sum(p.grad * p.detach() for p in plain[norm].parameters())
        gradient[torch.from_numpy(trace.slots[f"{norm}.weight", 0])] = by_hand
    expected, _ = proximal_step(torch.ones(trace.units), torch.zeros(trace.units), gradient, 0.1, 0.5)
    assert torch.allclose(scales.scales[scales.free], expected[scales.free], atol=1e-6)
    assert (scales.scales[~scales.free] == 1).all()
    assert torch.allclose(net[0].weight.grad, plain[0].weight.grad)


def test_parts_of_a_step_sum_up_to_it():
    images, labels = torch.rand(8, 3, 12, 12), torch.arange(8) % 4
    found = []
    for parts in (1, 2, 4):
        net = network().eval()
        _, scales = scaled(net, parts=parts)
        for _ in range(3):
            losses(net, scales, images, labels, parts)
        found.append(scales.scales.clone())
    assert torch.allclose(found[0], found[1], atol=1e-6)
    assert torch.allclose(found[0], found[2], atol=1e-6)
    assert not torch.allclose(found[0], torch.ones_like(found[0]))


def test_what_is_zero_is_cut_with_nothing_to_mend_once_folded():
    net = network().eval()
    images = torch.rand(8, 3, 12, 12)
    trace, scales = scaled(net)
    scales.scales[torch.from_numpy(trace.groups[0].units[:3])] = 0
    scales.scales[torch.from_numpy(trace.groups[1].units[5:9])] = 0.25
    assert scales.zeros == 3
    with torch.no_grad():
        expected = net(images)
    scales.fold(net)
    with torch.no_grad():
        assert torch.allclose(net(images), expected, atol=1e-6)
    assert (net[1].weight[:3] == 0).all() and (net[1].bias[:3] == 0).all()
    scores = prune.score(trace, net, "bn_scale")
    plan = prune.plan(trace, scores, ratio=3 / len(scores[scales.free]), scope="global")
    small = prune.apply(net, plan)
    assert [group.after for group in plan.groups] == [5, 12]
    with torch.no_grad():
        assert torch.allclose(small(images), expected, atol=1e-5)


def test_pressing_hard_ends_in_zeros_and_goes_on_from_a_checkpoint():
    def trained(steps, scales, net, optimizer):
        for _ in range(steps):
            optimizer.zero_grad()
            losses(net, scales, images, labels, 1)
            optimizer.step()

    images, labels = torch.rand(16, 3, 12, 12), torch.arange(16) % 4
    nets = [network(), network()]
    parts = [scaled(net, strength=2.0, rate=0.5) for net in nets]
    whole, half = (torch.optim.SGD(net.parameters(), 0.05) for net in nets)
    trained(8, parts[0][1], nets[0], whole)
    trained(4, parts[1][1], nets[1], half)
    again = network()
    again.load_state_dict(nets[1].state_dict())
    _, resumed = scaled(again, strength=2.0, rate=0.5)
    resumed.load_state_dict(parts[1][1].state_dict())
    trained(4, resumed, again, torch.optim.SGD(again.parameters(), 0.05))
    assert torch.equal(resumed.scales, parts[0][1].scales)
    assert torch.equal(again[0].weight, nets[0][0].weight)
    assert parts[0][1].zeros > 0


def test_channels_without_a_norm_are_refused():
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 3))
    with pytest.raises(PlanError, match="No norm gives this network's channels"):
        scaled(net)
