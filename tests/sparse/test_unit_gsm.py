"""Global sparse momentum over units: by hand, and cut without training."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from compress import prune, sparse
from compress.errors import ModelError
from compress.sparse.unit_gsm import chosen, producers, unit_costs


def network(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(1, 12, 3, bias=False), nn.BatchNorm2d(12), nn.ReLU(), nn.Flatten(), nn.Linear(12 * 16, 8), nn.ReLU(),
        nn.Linear(8, 3),
    )  # fmt: skip


def images(count=48):
    generator = torch.Generator().manual_seed(1)
    labels = torch.arange(count) % 3
    pictures = 0.3 * torch.randn(count, 1, 6, 6, generator=generator)
    for k, label in enumerate(labels.tolist()):
        pictures[k, 0, 2 * label : 2 * label + 2] += 1
    return pictures, labels


def test_the_cost_of_a_unit_sums_over_all_that_produces_it():
    model = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 1))
    trace = prune.trace(model, torch.randn(3, 2))
    model[0].weight.data = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    model[0].bias.data = torch.tensor([5.0, 6.0])
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    units = trace.slots["0.weight", 0]
    costs = unit_costs(producers(dict(model.named_parameters()), trace), trace.units)
    assert costs[units].tolist() == [8.0, 13.0]
    assert chosen(costs, trace, 1)[units].tolist() == [False, True]


def test_passive_units_hear_no_loss_and_fade_and_the_best_of_a_group_always_learns():
    model = network()
    trace = prune.trace(model, images()[0][:4])
    optimizer = sparse.UnitGSM(model, trace, lr=0.1, keep=2, momentum=0.0, weight_decay=0.1)
    pictures, labels = images()
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    F.cross_entropy(model(pictures), labels).backward()
    optimizer.step()
    for name in ("0.weight", "1.weight", "1.bias", "4.weight"):
        active = optimizer.active[trace.slots[name, 0]]
        now, was = dict(model.named_parameters())[name].detach(), before[name]
        assert active.sum() == 1
        torch.testing.assert_close(now[~active], 0.99 * was[~active])
        assert not torch.allclose(now[active], was[active] * 0.99)
    assert optimizer.active[trace.slots["6.weight", 0]].all()  # classes are protected


def test_what_remains_is_cut_without_training():
    """The cut of faded channels leaves the answers; the same cut of a network trained plainly does not."""
    pictures, labels = images()
    losses = {}
    for kind in ("units", "sgd"):
        model = network()
        trace = prune.trace(model, pictures[:4])
        optimizer = (
            sparse.UnitGSM(model, trace, lr=0.02, keep=6, momentum=0.9, weight_decay=0.02)
            if kind == "units"
            else torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9)
        )
        for _ in range(300):
            optimizer.zero_grad()
            F.cross_entropy(model(pictures), labels).backward()
            optimizer.step()
        plan = sparse.plan_of_largest(model, trace, 6)
        small = prune.apply(model, plan)
        assert small[0].out_channels + small[4].out_features == 6
        with torch.no_grad():
            losses[kind] = [float(F.cross_entropy(m.eval()(pictures), labels)) for m in (model, small)]
    assert losses["units"][1] - losses["units"][0] < 0.05
    assert losses["units"][1] < 0.3
    assert losses["sgd"][1] - losses["sgd"][0] > 0.1


def test_a_number_of_units_that_cannot_stay_is_refused():
    model = network()
    trace = prune.trace(model, images()[0][:4])
    for keep in (1, 21):
        with pytest.raises(ModelError, match=f"{keep} of 20 free units cannot be kept; ask for 2"):
            sparse.UnitGSM(model, trace, lr=0.1, keep=keep)
