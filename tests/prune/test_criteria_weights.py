"""Criteria of weights by hand and against slow references; what all criteria have in common."""

import copy

import numpy as np
import pytest
import torch
from prune_nets import Net, conv, image
from torch import nn
from torch.nn import functional as F

from compress import prune
from compress.errors import PlanError
from compress.prune.criteria.base import Criterion

CLASSES = 4


def residual():
    """A stem, a residual block and a classifier: a group of one producer, one of two, both with norms."""

    def run(m, x):
        x = F.relu(m.bn(m.stem(x)))
        x = F.relu(x + m.bn2(m.b(F.relu(m.bn1(m.a(x))))))
        return m.head(x.mean((2, 3)))

    torch.manual_seed(0)
    net = Net(
        run, stem=conv(3, 6), bn=nn.BatchNorm2d(6), a=conv(6, 5), bn1=nn.BatchNorm2d(5), b=conv(5, 6),
        bn2=nn.BatchNorm2d(6), head=nn.Linear(6, CLASSES),
    )  # fmt: skip
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape))
    return net


@pytest.fixture(scope="module")
def net():
    return residual()


@pytest.fixture(scope="module")
def trace(net):
    return prune.trace(net, image(2))


@pytest.fixture(scope="module")
def data():
    return [(image(4, seed=k), torch.arange(4) % CLASSES) for k in range(2)]


def free(trace):
    return torch.from_numpy(np.concatenate([g.units for g in trace.groups]))


@pytest.mark.parametrize("name", prune.CRITERIA)
def test_every_criterion_is_repeatable_finite_and_leaves_the_network_alone(name, net, trace, data):
    own = copy.deepcopy(net).train()
    own.stem.weight.grad = torch.ones_like(own.stem.weight)
    own.head.weight.requires_grad_(False)
    before = {n: t.clone() for n, t in own.state_dict().items()}
    first, again = (prune.score(trace, own, name, data=iter(data), seed=3) for _ in range(2))
    assert torch.equal(first, again)
    assert first.shape == (trace.units,)
    assert first.dtype == torch.float64
    assert bool(torch.isfinite(first).all())
    assert first[free(trace)].unique().numel() > 1
    assert all(torch.equal(before[n], t) for n, t in own.state_dict().items())
    assert own.training
    assert all(module.training for module in own.modules())
    assert torch.equal(own.stem.weight.grad, torch.ones_like(own.stem.weight))
    assert all(p.grad is None for n, p in own.named_parameters() if n != "stem.weight")
    assert [n for n, p in own.named_parameters() if not p.requires_grad] == ["head.weight"]
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in own.modules())


def test_the_table_says_what_each_criterion_is():
    for name, criterion in prune.CRITERIA.items():
        assert isinstance(criterion, Criterion), name
        assert criterion.needs in ("weights", "gradients", "activations")
        assert criterion.paper
        assert criterion.cost
        assert (criterion.cost == "none") == (criterion.needs == "weights")


@pytest.mark.parametrize("name", [n for n, c in prune.CRITERIA.items() if c.needs != "weights"])
def test_criteria_of_data_ask_for_it(name, net, trace):
    with pytest.raises(PlanError, match=f"'{name}' looks at .*data=batches"):
        prune.score(trace, net, name)
    with pytest.raises(PlanError, match="no batch in the data"):
        prune.score(trace, net, name, data=[])


def test_criteria_refuse_what_makes_no_sense(net, trace, data):
    with pytest.raises(PlanError, match="normalize='median' is unknown; give none, mean, max, cost"):
        prune.score(trace, net, "l1", normalize="median")
    with pytest.raises(PlanError, match="trace is another network's"):
        prune.score(trace, nn.Sequential(conv(3, 4), conv(4, 2)), "taylor", data=data)


def test_bn_scale_criteria_are_mean_scales(net, trace):
    scores = prune.score(trace, net, "bn_scale")
    units = trace.slots["a.weight", 0]
    torch.testing.assert_close(scores[units], net.bn1.weight.detach().double().abs())
    both = (net.bn.weight.detach().double().abs() + net.bn2.weight.detach().double().abs()) / 2
    torch.testing.assert_close(scores[trace.slots["stem.weight", 0]], both)


def test_bn_scale_criteria_need_norms():
    bare = Net(lambda m, x: m.b(F.relu(m.a(x))), a=conv(3, 4), b=conv(4, 2))
    with pytest.raises(PlanError, match="No norm scales the channels of 'a'"):
        prune.score(prune.trace(bare, image(2)), bare, "bn_scale")


def test_fpgm_criteria_sum_distances_to_all_others(net, trace):
    scores = prune.score(trace, net, "fpgm", normalize="none")
    for slots in (["a.weight"], ["stem.weight", "b.weight"]):
        rows = [torch.cat([net.get_parameter(n)[i].detach().double().flatten() for n in slots]) for i in range(5)]
        if len(slots) == 2:
            rows.append(torch.cat([net.get_parameter(n)[5].detach().double().flatten() for n in slots]))
        for i, unit in enumerate(trace.slots[slots[0], 0]):
            expected = sum(float((rows[i] - other).norm()) for other in rows)
            assert float(scores[unit]) == pytest.approx(expected, rel=1e-6)


def test_fpgm_criteria_find_the_filter_in_the_middle():
    bare = Net(lambda m, x: m.b(m.a(x)), a=nn.Conv2d(1, 3, 1, bias=False), b=nn.Conv2d(3, 2, 1))
    with torch.no_grad():
        bare.a.weight.copy_(torch.tensor([-5.0, 1.0, 6.0]).reshape(3, 1, 1, 1))
    trace = prune.trace(bare, image(2, channels=1))
    assert prune.score(trace, bare, "fpgm", normalize="none")[trace.slots["a.weight", 0]].tolist() == [17, 11, 16]


@pytest.mark.parametrize(("how", "expected"), [("none", [1, 3]), ("mean", [0.5, 1.5]), ("max", [1 / 3, 1])])
def test_normalized_criteria_compare_from_group_to_group(how, expected):
    bare = Net(lambda m, x: m.b(F.relu(m.a(x))), a=conv(3, 2), b=conv(2, 3))
    trace = prune.trace(bare, image(2))
    scores = torch.zeros(trace.units)
    scores[trace.slots["a.weight", 0]] = torch.tensor([1.0, 3.0])
    assert prune.normalized(trace, scores, how)[trace.slots["a.weight", 0]].tolist() == pytest.approx(expected)


def test_criteria_by_cost_are_scores_for_each_mac():
    """A unit's MACs are those that go with it: counted here by removing it."""
    net = residual()
    trace = prune.trace(net, image(2))
    whole = np.ones(trace.units, dtype=bool)
    ones = prune.normalized(trace, torch.ones(trace.units), "cost")
    saved = []
    for group in trace.groups:
        kept = whole.copy()
        kept[group.units[0]] = False
        saved.append(trace.macs(whole) - trace.macs(kept))
    for group, macs in zip(trace.groups, saved, strict=True):
        assert float(ones[group.units[0]]) == pytest.approx(float(ones[trace.groups[0].units[0]]) * saved[0] / macs)
