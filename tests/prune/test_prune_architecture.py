"""Networks are walked and named as torch does it, and copied again and again."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from compress.prune.architecture import named_parameters, named_tensors, walk
from compress.prune.probe import Copier


class Hidden(nn.Module):
    """Names its modules in its own way."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(2, 2), nn.BatchNorm1d(2)

    def named_modules(self, memo: Any = None, prefix: str = "", remove_duplicate: bool = True) -> Iterator[Any]:
        yield prefix, self
        yield f"{prefix}.second" if prefix else "second", self.b


def network() -> nn.Module:
    shared = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))
    net = nn.Sequential(shared, nn.ModuleDict({"again": shared, "hidden": Hidden()}), Hidden())
    net.register_module("none", None)
    net.register_parameter("own", nn.Parameter(torch.ones(2)))
    net.register_buffer("kept", net.own)
    return net


def test_a_walk_gives_what_torch_names() -> None:
    for net in (network(), Hidden(), nn.Linear(1, 1)):
        assert walk(net) == list(net.named_modules(remove_duplicate=False))
        named = list(net.named_parameters(remove_duplicate=False))
        assert [(k, id(v)) for k, v in named_parameters(net).items()] == [(k, id(v)) for k, v in named]
        both = {**dict(named), **dict(net.named_buffers(remove_duplicate=False))}
        assert {k: id(v) for k, v in named_tensors(net).items()} == {k: id(v) for k, v in both.items()}


def test_copies_of_one_network_have_nothing_in_common() -> None:
    net = network()
    net.sizes, net.table = [2, 3], {"a": [1]}
    copier = Copier(net)
    one, other = copier.copy({}), copier.copy({})
    assert [(k, v.tolist()) for k, v in one.state_dict().items()] == [
        (k, v.tolist()) for k, v in net.state_dict().items()
    ]
    mine: set[int] = set()
    for each in (net, one, other):
        parts = [m for _, m in walk(each)]
        ids = {id(x) for m in parts for x in (m, m._forward_hooks, m._parameters, *m._parameters.values())} - {id(None)}
        ids |= {id(each.sizes), id(each.table), id(each.table["a"])}
        assert not ids & mine
        mine |= ids
        # What is shared within stays shared.
        assert each[0] is each[1]["again"]
