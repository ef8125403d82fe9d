"""Criteria of gradients by hand, and against references that mask one unit or take one image at a time."""

import numpy as np
import pytest
import torch
from prune_nets import Net, conv, image
from test_criteria_weights import CLASSES, free, residual
from torch import nn
from torch.nn import functional as F

from compress import prune
from compress.errors import PlanError


@pytest.fixture(scope="module")
def net():
    return residual().double().eval()


@pytest.fixture(scope="module")
def trace(net):
    return prune.trace(net, image(2).double())


@pytest.fixture(scope="module")
def data():
    return [(image(3, seed=k).double(), torch.tensor([0, 2, 3])) for k in range(2)]


def slow_taylor(net, trace, data):
    """One batch, one slot, one row at a time."""
    total = np.zeros(trace.units)
    for x, y in data:
        loss = F.cross_entropy(net(x), y)
        names = [n for n, _ in net.named_parameters()]
        slopes = dict(zip(names, torch.autograd.grad(loss, list(net.parameters())), strict=True))
        sums = np.zeros(trace.units)
        for (name, dim), units in trace.slots.items():
            if name in slopes and trace.roles[name, dim] == "producer":
                for i, unit in enumerate(units):
                    sums[unit] += float((net.get_parameter(name) * slopes[name]).select(dim, i).sum())
        total += sums**2
    return torch.from_numpy(total / len(data))


def test_taylor_criteria_against_a_loop(net, trace, data):
    found = prune.score(trace, net, "taylor", data=data)
    torch.testing.assert_close(found, slow_taylor(net, trace, data))


def slow_gates(net, trace, data):
    """For each image the slope of its loss as a factor before all that reads a unit; by doubling differences."""
    step, found = 1e-5, []
    reading = {key: units for key, units in trace.slots.items() if trace.roles[key] == "consumer"}
    for x, y in data:
        for k in range(len(x)):
            row = torch.zeros(trace.units, dtype=torch.float64)
            for unit in free(trace).tolist():
                losses = []
                for factor in (1 + step, 1 - step):
                    copy = {n: p.detach().clone() for n, p in net.named_parameters()}
                    for (name, dim), units in reading.items():
                        for i in np.flatnonzero(units == unit):
                            copy[name].select(dim, int(i)).mul_(factor)
                    out = torch.func.functional_call(net, copy, (x[k : k + 1],))
                    losses.append(float(F.cross_entropy(out, y[k : k + 1])))
                row[unit] = (losses[0] - losses[1]) / (2 * step)
            found.append(row)
    return torch.stack(found)


def test_gate_criteria_against_differences_of_single_images(net, trace, data):
    slopes, units = slow_gates(net, trace, data), free(trace)
    fisher = prune.score(trace, net, "fisher", data=data)
    gate = prune.score(trace, net, "taylor_gate", data=data)
    torch.testing.assert_close(fisher[units], (slopes.square() / 2).mean(0)[units], rtol=1e-4, atol=1e-10)
    torch.testing.assert_close(gate[units], slopes.abs().mean(0)[units], rtol=1e-4, atol=1e-8)


def two_units(makes, reads):
    """x -> two units -> y, without biases."""
    net = Net(lambda m, x: m.b(m.a(x)), a=nn.Linear(1, 2, bias=False), b=nn.Linear(2, 1, bias=False)).double()
    with torch.no_grad():
        net.a.weight.copy_(torch.tensor(makes))
        net.b.weight.copy_(torch.tensor(reads))
    return net


def test_fisher_criteria_by_hand():
    """y = 3 (2 x) with the loss y^2 / 2: the gate's slope is y^2."""
    net = two_units([[2.0], [0.0]], [[3.0, 1.0]])
    trace = prune.trace(net, torch.ones(2, 1, dtype=torch.float64))
    x = torch.tensor([[1.0], [2.0]], dtype=torch.float64)
    scores = prune.score(trace, net, "fisher", data=[x], loss=lambda y, _: y.square().sum(1).mean() / 2)
    assert scores[trace.slots["a.weight", 0]].tolist() == pytest.approx([(36.0**2 + 144.0**2) / 4, 0])


def test_hessian_criteria_by_hand_where_the_diagonal_is_all_there_is():
    """loss = (a1^2 + 4 a2^2) / 2, of the maker's weights 2 and 5 alone: v * Hv is the diagonal whatever the signs."""
    net = two_units([[2.0], [5.0]], [[1.0, 1.0]])
    trace = prune.trace(net, torch.ones(2, 1, dtype=torch.float64))
    makers = []

    def forward(network, x):
        makers.append(network.a.weight)
        return network(x)

    def loss(outputs, _):
        curves = torch.tensor([[1.0], [4.0]], dtype=torch.float64)
        return (makers[-1].square() * curves).sum() / 2 + 0 * outputs.sum()

    for name in ("obd", "hutchinson"):
        data = [torch.ones(2, 1, dtype=torch.float64)] * 2
        scores = prune.score(trace, net, name, data=data, loss=loss, forward=forward)
        assert scores[trace.slots["a.weight", 0]].tolist() == pytest.approx([1 * 2.0**2 / 2, 4 * 5.0**2 / 2])


def test_obd_criteria_are_the_exact_diagonal_on_average():
    """y = 3 a1 + a2, loss y^2 / 2: the Hessian of the maker is [[9, 3], [3, 1]], its diagonal what is asked for."""
    net = two_units([[2.0], [5.0]], [[3.0, 1.0]])
    trace = prune.trace(net, torch.ones(2, 1, dtype=torch.float64))
    data = [torch.ones(2, 1, dtype=torch.float64)] * 400
    scores = prune.score(trace, net, "obd", data=data, loss=lambda y, _: y.square().mean() / 2)
    found = scores[trace.slots["a.weight", 0]]
    torch.testing.assert_close(found, torch.tensor([9 * 4 / 2, 1 * 25 / 2], dtype=torch.float64), rtol=0.15, atol=0)
    assert len({round(float(v), 6) for v in found}) == 2


def test_criteria_without_targets_are_of_random_sums_of_the_scores(net, trace, data):
    images = [x for x, _ in data]
    first, again, other = (prune.score(trace, net, "fisher", data=images, seed=s) for s in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    generator = torch.Generator().manual_seed(1)
    own = prune.score(
        trace, net, "fisher", data=images,
        loss=lambda out, _: (out * torch.randn(out.shape, generator=generator).double()).sum(1).mean(),
    )  # fmt: skip
    torch.testing.assert_close(first, own)


def test_fisher_criteria_without_targets_are_the_squared_change_of_the_scores():
    """Of the scores (3 a x, a x) a gate of 1 + g changes g (3 a x, a x): half its square, on average over draws."""
    net = Net(lambda m, x: m.b(m.a(x)), a=nn.Linear(1, 2, bias=False), b=nn.Linear(2, 2, bias=False)).double()
    with torch.no_grad():
        net.a.weight.copy_(torch.tensor([[2.0], [1.0]]))
        net.b.weight.copy_(torch.tensor([[3.0, 0.5], [1.0, 0.0]]))
    trace = prune.trace(net, torch.ones(2, 1, dtype=torch.float64))
    scores = prune.score(trace, net, "fisher", data=[torch.ones(4000, 1, dtype=torch.float64)])
    found = scores[trace.slots["a.weight", 0]]
    torch.testing.assert_close(found, torch.tensor([20.0, 0.125], dtype=torch.float64), rtol=0.1, atol=0)


def test_criteria_take_a_teachers_scores_for_targets(net, trace, data):
    soft = [(x, 5 * F.one_hot(y, CLASSES).double()) for x, y in data]
    found = prune.score(trace, net, "taylor", data=soft)
    own = prune.score(trace, net, "taylor", data=soft, loss=lambda out, target: F.cross_entropy(out, target.softmax(1)))
    torch.testing.assert_close(found, own)


REFUSED = {
    "a loss that is no number": (
        lambda x: [(x, None), (x, None)], lambda out, _: out.sum() * float("nan"), "loss of batch 1 is nan",
    ),
    "a loss that is a vector": (lambda x: [(x, None)], lambda out, _: out, "loss is a tensor of shape"),
    "a loss of nothing": (lambda x: [(x, None)], lambda out, _: torch.ones(()), "does not depend on the weights"),
    "labels that are no classes": (lambda x: [(x, torch.full((3,), 7))], None, "go up to 7"),
    "labels for other images": (lambda x: [(x, torch.zeros(2, dtype=torch.long))], None, r"shape \(2,\)"),
    "scores of another shape": (lambda x: [(x, torch.zeros(3, 9))], None, r"shape \(3, 9\)"),
    "targets of another kind": (lambda x: [(x, {"boxes": x})], None, "targets are dict"),
    "no images": (lambda x: [x[:0]], None, "without images"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
@pytest.mark.parametrize("name", ["taylor", "fisher", "obd"])
def test_criteria_refuse_a_loss_in_one_sentence(case, name, net, trace, data):
    given, loss, said = REFUSED[case]
    with pytest.raises(PlanError, match=said) as caught:
        prune.score(trace, net, name, data=given(data[0][0]), loss=loss)
    assert "\n" not in str(caught.value)


def test_criteria_of_other_outputs_ask_for_a_loss(data):
    net = Net(lambda m, x: (m.b(F.relu(m.a(x))), x), a=conv(3, 4), b=conv(4, 2)).double()
    trace = prune.trace(net, data[0][0])
    with pytest.raises(PlanError, match="give loss="):
        prune.score(trace, net, "taylor", data=data)
    assert prune.score(trace, net, "taylor", data=data, loss=lambda out, _: out[0].square().mean()).max() > 0
