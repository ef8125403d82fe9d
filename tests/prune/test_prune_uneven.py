"""Trial cuts lose uneven numbers, so that a size which the code asks of one layer and gives to another one shows."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from prune_nets import draw, image
from torch import nn

from compress import prune


class Borrowed(nn.Module):
    """Flattens to the width of its last layer, which it asks another one for, or each tensor for its own.

    Args:
        widths: channels, those of the image first.
        asked: the layer that is asked; None for the tensor itself.
        added: pairs of a layer and an earlier one of as many channels, whose output is added to its own.
    """

    def __init__(self, widths, asked=0, added=()):
        super().__init__()
        self.layers = nn.ModuleList(nn.Conv2d(a, b, 1) for a, b in pairwise(widths))
        self.head, self.asked, self.added = nn.Linear(widths[-1], 5), asked, dict(added)

    def forward(self, x):
        seen = []
        for k, layer in enumerate(self.layers):
            x = layer(x).relu()
            seen.append(x if k not in self.added else x + seen[self.added[k]])
            x = seen[-1]
        width = x.shape[1] if self.asked is None else self.layers[self.asked].out_channels
        return self.head(x.mean([2, 3], keepdim=True).view(-1, width))


@st.composite
def borrowed(choose):
    """Few widths, so that layers often lose as many channels by chance."""
    widths = [3, *choose(st.lists(st.sampled_from([8, 12, 16, 24, 48]), min_size=2, max_size=9))]
    alike = [k for k, n in enumerate(widths[1:]) if n == widths[-1]]
    pairs = [(b, a) for b in range(len(widths) - 1) for a in range(b) if widths[a + 1] == widths[b + 1]]
    added = choose(st.lists(st.sampled_from(pairs), max_size=2)) if pairs else []
    return widths, choose(st.sampled_from([None, *alike])), tuple(added)


@settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(borrowed(), st.integers(0, 1000))
def test_whatever_layer_is_asked_for_a_width_the_cut_is_exact(drawn, seed):
    network = Borrowed(*drawn).eval()
    trace = prune.trace(network, image())
    if trace.groups:
        assert prune.check(network, draw(trace, seed=seed), image()).worst < 1e-9


def test_two_layers_of_one_width_lose_other_numbers_in_one_of_two_trials():
    network = Borrowed([3, 8, 12, 12, 8, 12, 8], asked=3).eval()
    trace = prune.trace(network, image())
    assert np.array_equal(trace.slots["layers.3.weight", 0], trace.slots["layers.5.weight", 0])
    assert prune.check(network, draw(trace, seed=0), image()).worst < 1e-9


class Towers(nn.Module):
    """Two towers of the same widths, of which something is taken for granted."""

    def __init__(self, granted):
        super().__init__()
        widths = [3, 8, 12, 16, 24, 32]
        self.one, self.other = (
            nn.Sequential(*(layer for a, b in pairwise(widths) for layer in (nn.Conv2d(a, b, 1), nn.ReLU())))
            for _ in range(2)
        )
        self.dim, self.head, self.granted = 32, nn.Linear(64, 5), granted

    def forward(self, x):
        one, other = self.one(x), self.other(x)
        if self.granted == "asserted":
            assert one.shape == other.shape
        if self.granted == "branches" and one.shape == other.shape:
            one = one * 2
        both = torch.cat([one, other], 1).mean([2, 3], keepdim=True)
        return self.head(both.view(-1, 2 * self.dim) if self.granted == "counted" else both.flatten(1))


@pytest.mark.parametrize("granted", ["counted", "asserted", "branches"])
def test_two_towers_stay_of_one_width_where_that_is_taken_for_granted(granted):
    network = Towers(granted).eval()
    trace = prune.trace(network, image())
    for seed in range(4):
        assert prune.check(network, draw(trace, seed=seed), image()).worst < 1e-9
