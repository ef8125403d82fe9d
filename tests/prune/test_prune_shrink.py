"""All of it in one call, batches in whatever holds them, and a trace that reads well."""

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from compress import cost, prune
from compress.errors import PlanError


@pytest.fixture(scope="module")
def net():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 32, 3, padding=1),
        nn.BatchNorm2d(32),
        nn.ReLU(),
        nn.Conv2d(32, 48, 3, padding=1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(48, 5),
    )


@pytest.fixture(scope="module")
def x():
    return torch.randn(16, 3, 8, 8, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def loader(x):
    return DataLoader(TensorDataset(x, torch.arange(16) % 5), batch_size=8)


def test_one_call_cuts_to_a_budget_and_proves_it(net, x):
    small, plan = prune.shrink(net, x[:2], macs=0.5)
    assert cost.macs(small, x[:1]) <= 0.5 * cost.macs(net, x[:1])
    assert plan.asked["proof"] < 1e-10
    assert net[0].out_channels == 32
    assert small[0].out_channels % 8 == 0


def test_a_loader_gives_the_example_and_the_data(net, loader):
    small, plan = prune.shrink(net, loader, ratio={"3": 0.5}, criterion="taylor", repair=True)
    assert (small[0].out_channels, small[3].out_channels) == (32, 24)
    assert plan.asked["criterion"] == "taylor"


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({}, "one of macs, budget and ratio"),
        ({"macs": 0.5, "ratio": 0.5}, "one of macs, budget and ratio"),
        ({"macs": 0.5, "criterion": "taylor"}, "give data="),
        ({"macs": 0.5, "repair": True}, "give data="),
        ({"macs": 0.5, "criterion": "odd"}, "No criterion is called 'odd'"),
        ({"macs": 0.5, "keep": "*"}, "No channel of this network is free"),
    ],
)
def test_what_cannot_be_shrunk_is_a_sentence(net, x, given, said):
    with pytest.raises(PlanError, match=said):
        prune.shrink(net, x[:2], **given)


def test_an_example_that_is_none_is_refused(net):
    with pytest.raises(PlanError, match="The example is int"):
        prune.shrink(net, 3, macs=0.5)


def test_a_tensor_of_images_is_one_batch(net, x):
    trace = prune.trace(net, x[:2])
    one, same = (prune.score(trace, net, "mean_activation", data=data) for data in (x, [x]))
    assert torch.equal(one, same)


def test_a_trace_reads_well(net, x):
    shown = str(prune.trace(net, x[:2]))
    first, *rest = shown.splitlines()
    assert first == "80 of 94 channels may go, in 2 groups:"
    assert rest[0].split() == ["0", "32", "channels,", "7", "slots"]
    assert "graph output" in shown
    assert "array(" not in shown
