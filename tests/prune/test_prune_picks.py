"""Code that selects channels by position is tried on further cuts; code that selects anything else is not."""

import numpy as np
import pytest
import torch
from prune_nets import draw
from torch import nn

from compress import prune
from compress.prune import blaming

WIDTH = 12


class Picking(nn.Module):
    """A convolution, something that is picked of its output, and another convolution."""

    def __init__(self, pick, width=WIDTH):
        super().__init__()
        self.pick, self.first, self.last = pick, nn.Conv2d(3, WIDTH, 1), nn.Conv2d(width, 5, 1)

    def forward(self, x):
        return self.last(self.pick(self.first(x).relu())).mean([2, 3])


class Attention(nn.Module):
    """Query, key and value in one layer, taken apart by ``apart``."""

    def __init__(self, apart, heads=6, dim=4):
        super().__init__()
        self.apart, self.heads = apart, heads
        self.embed, self.qkv = nn.Linear(3, heads * dim), nn.Linear(heads * dim, 3 * heads * dim)
        self.project, self.head = nn.Linear(heads * dim, heads * dim), nn.Linear(heads * dim, 5)

    def forward(self, x):
        x = self.embed(x.flatten(2).transpose(1, 2))
        b, n, _ = x.shape
        qkv = self.qkv(x).reshape(b, n, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        query, key, value = self.apart(qkv)
        y = nn.functional.scaled_dot_product_attention(query, key, value).transpose(1, 2).reshape(b, n, -1)
        return self.head((x + self.project(y))[:, 0])


@pytest.fixture
def trials(monkeypatch):
    """The cuts of one trace, one list for each time that all groups were tried."""
    seen = []
    original = blaming.uneven

    def uneven(*args):
        seen.append(original(*args))
        return seen[-1]

    monkeypatch.setattr(blaming, "uneven", uneven)
    return seen


ELSEWHERE = {
    "slice": lambda x: x[:, :, ::2],
    "select": lambda x: x[:, :, 1:2] + x[:, :, 0, None],
    "index": lambda x: x[:, :, torch.tensor([0, 2])],
    "two indices": lambda x: x[:, :, torch.tensor([0, 2]), torch.tensor([1, 1])][..., None],
    "index_select": lambda x: x.index_select(-2, torch.tensor([1])),
    "unbind": lambda x: torch.stack(x.unbind(2)[:2], 2),
    "split": lambda x: torch.cat(x.split(2, dim=3), 3),
    "uneven split": lambda x: x.split([1, 3], -1)[1],
    "roll": lambda x: x.roll((1, 2), (2, -1)),
    "images": lambda x: x.split(1)[0] + x[-1:],
}
CHANNELS = {
    "slice": (lambda x: x[:, 2:8], 6),
    "select": (lambda x: x[:, 3, None] * x, WIDTH),
    "index": (lambda x: x[:, torch.tensor([0, 5, 7])], 3),
    "mask": (lambda x: x[:, torch.arange(WIDTH) % 2 == 0], 6),
    "index_select": (lambda x: x.index_select(1, torch.tensor([1, 11])), 2),
    "unbind": (lambda x: torch.stack(x.unbind(-3)[:4], 1), 4),
    "split": (lambda x: x.split(4, 1)[1], 4),
    "uneven split": (lambda x: x.split([2, 10], dim=-3)[1], 10),
    "roll": (lambda x: x.roll(1, 1), WIDTH),
    "roll of all": (lambda x: x.flatten(1).roll(16).reshape(x.shape), WIDTH),
}


@pytest.mark.parametrize("kind", ELSEWHERE)
def test_what_is_picked_along_no_channels_asks_for_two_cuts(kind, trials):
    network, images = Picking(ELSEWHERE[kind]).eval(), torch.randn(2, 3, 4, 4)
    trace = prune.trace(network, images)
    assert trials
    assert all(len(cuts) == 2 for cuts in trials)
    assert prune.check(network, draw(trace, seed=1), images).worst < 1e-9


@pytest.mark.parametrize("kind", CHANNELS)
def test_what_is_picked_among_channels_asks_for_four(kind, trials):
    pick, width = CHANNELS[kind]
    network, images = Picking(pick, width).eval(), torch.randn(2, 3, 4, 4)
    trace = prune.trace(network, images)
    # A trace that protects all of it at once has nothing to try.
    assert all(len(cuts) == 4 for cuts in trials[:1])
    assert trials or not trace.groups
    if trace.groups:
        assert prune.check(network, draw(trace, seed=1), images).worst < 1e-9


APART = {
    "unbind": lambda qkv: qkv.unbind(0),
    "selects": lambda qkv: (qkv[0], qkv[1], qkv[2]),
    "slices": lambda qkv: (qkv[:1].squeeze(0), qkv[1:2].squeeze(0), qkv[2:].squeeze(0)),
}


@pytest.mark.parametrize("apart", APART)
def test_query_key_and_value_of_a_head_go_together_so_picking_them_asks_for_two_cuts(apart, trials):
    network, images = Attention(APART[apart]).eval(), torch.randn(2, 3, 4, 4)
    trace = prune.trace(network, images)
    assert len(trials[-1]) == 2
    assert any("qkv" in slot[0] for group in trace.groups for slot, _ in _slots(trace, group))
    assert prune.check(network, draw(trace, seed=1), images).worst < 1e-9


def test_a_head_that_is_picked_by_its_number_is_not_one_of_those():
    picked = Attention(lambda qkv: (qkv[0], qkv[1], qkv[2][:, 1:2].expand(-1, 6, -1, -1))).eval()
    images = torch.randn(2, 3, 4, 4)
    trace = prune.trace(picked, images)
    if trace.groups:
        assert prune.check(picked, draw(trace, seed=1), images).worst < 1e-9


def _slots(trace, group):
    return [(slot, units) for slot, units in trace.slots.items() if np.isin(units, group.units).any()]
