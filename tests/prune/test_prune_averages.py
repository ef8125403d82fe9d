"""Averaged weights are cut like the network they are an average of."""

import copy
from collections import OrderedDict

import pytest
import torch
from state_nets import (
    network,
    plan_of,
)
from torch import nn
from torch.optim.swa_utils import AveragedModel

from compress.errors import PlanError
from compress.prune.surgery import apply


@pytest.fixture
def net():
    return network()


@pytest.fixture
def plan(net):
    return plan_of(net)


def shifted(net):
    """Weights of the same names that are not the network's."""
    other = copy.deepcopy(net)
    with torch.no_grad():
        for tensor in other.state_dict().values():
            if tensor.is_floating_point():
                tensor.add_(1)
    return other


AVERAGES = {
    "averaged model": lambda n: AveragedModel(shifted(n)),
    "module": shifted,
    "state dict": lambda n: shifted(n).state_dict(),
    "state dict of an averaged model": lambda n: AveragedModel(shifted(n)).state_dict(),
    "dict of trained parameters": lambda n: {
        k: p.detach().clone() for k, p in shifted(n).named_parameters() if p.requires_grad
    },
    "of a frozen network": lambda n: AveragedModel(shifted(n.requires_grad_(False))),
    "dict of parameters": lambda n: dict(shifted(n).named_parameters()),
}


@pytest.mark.parametrize("make", AVERAGES.values(), ids=AVERAGES)
def test_averaged_weights_are_cut_like_the_network(net, plan, make):
    average = make(net)
    before = copy.deepcopy(average)
    small, _, own = apply(net, plan, ema=average)
    assert type(own) is type(average)
    tensors = own if isinstance(own, dict) else own.state_dict()
    old = before if isinstance(before, dict) else before.state_dict()
    now = average if isinstance(average, dict) else average.state_dict()
    assert list(tensors) == list(old)
    expected = apply(shifted(net), plan).state_dict()
    for key, tensor in tensors.items():
        assert torch.equal(now[key], old[key])
        assert tensor.data_ptr() != now[key].data_ptr()
        if key != "n_averaged":
            assert torch.equal(tensor, expected[key.removeprefix("module.")])
    if isinstance(own, nn.Module):
        root = own.module if isinstance(own, AveragedModel) else own
        assert root.tied.weight is root.again.weight
        assert root.h.in_features == 4
    elif "frozen.weight" in own:
        small.load_state_dict(own, strict=False)


def test_the_metadata_of_a_state_dict_stays(net, plan):
    _, _, own = apply(net, plan, ema=net.state_dict())
    assert isinstance(own, OrderedDict)
    assert own._metadata == net.state_dict()._metadata


def without(key):
    return lambda n: {k: v for k, v in n.state_dict().items() if k != key}


WRONG = {
    "a name missing": (without("h.weight"), "lack 'h.weight'"),
    "a foreign name": (lambda n: {**n.state_dict(), "x": torch.ones(2)}, "have 'x', which the network does not"),
    "another shape": (lambda n: {**n.state_dict(), "out.bias": torch.ones(4)}, r"'out.bias' as \(4,\), the network"),
    "a foreign network": (lambda n: AveragedModel(nn.Linear(3, 3)), "The averaged weights lack"),
    "a network that is cut already": (lambda n: n.small, "'mix' as"),
    "a list": (lambda n: list(n.parameters()), "a module or a dictionary of tensors, not a list"),
    "other attributes": (lambda n: n.changed, "expects h.in_features = 6, the network has 5"),
}


@pytest.mark.parametrize(("make", "words"), WRONG.values(), ids=WRONG)
def test_averaged_weights_of_another_network_are_refused(net, plan, make, words):
    small, changed = apply(net, plan), copy.deepcopy(net)
    changed.h.in_features = 5
    vars(net).update(small=small, changed=changed)
    with pytest.raises(PlanError, match=words) as caught:
        apply(net, plan, ema=make(net))
    assert "\n" not in str(caught.value)
