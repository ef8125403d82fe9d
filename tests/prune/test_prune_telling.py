"""One trial cut in place of two, where it tells as much: a trace finds the same, and what fits by chance shows."""

from itertools import pairwise

import numpy as np
import pytest
import torchvision
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from prune_nets import draw, image
from torch import nn

from compress import prune
from compress.prune import blaming


def found(trace):
    """What a trace says, without the network's own tensors."""
    groups = [group.units.tolist() for group in trace.groups]
    slots = {slot: units.tolist() for slot, units in trace.slots.items()}
    attributes = sorted((a.module, a.name, a.value, a.slot) for a in trace.attributes)
    return groups, slots, attributes, trace.protected_units.tolist(), trace.unfollowed


@pytest.fixture
def traced(monkeypatch):
    """Traces a network with as many trials as there are, and with one where that tells; both, and whether it did."""
    told, one_tells = [], blaming.one_tells

    def asked(*arguments):
        told.append(one_tells(*arguments))
        return told[-1]

    def both(network, *inputs):
        told.clear()
        monkeypatch.setattr(blaming, "one_tells", asked)
        short = prune.trace(network, *inputs)
        monkeypatch.setattr(blaming, "one_tells", lambda *arguments: False)
        return short, prune.trace(network, *inputs), any(told)

    return both


@pytest.mark.parametrize(
    "name", ["resnet18", "mobilenet_v3_small", "efficientnet_b0", "squeezenet1_1", "regnet_y_400mf", "vgg11"]
)
def test_convolutional_networks_need_one_trial_and_are_found_the_same(name, traced):
    short, long, told = traced(getattr(torchvision.models, name)(num_classes=7).eval(), image(2, 64))
    assert found(short) == found(long)
    assert told


@pytest.mark.parametrize("name", ["shufflenet_v2_x0_5", "swin_t"])
def test_where_channels_are_counted_there_are_two(name, traced):
    _, _, told = traced(getattr(torchvision.models, name)(num_classes=7).eval(), image(2, 64))
    assert not told


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


def test_networks_drawn_at_random_are_found_the_same_and_the_cut_is_exact(traced):
    every = []

    @settings(max_examples=40, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
    @given(borrowed())
    def holds(drawn):
        network = Borrowed(*drawn).eval()
        short, long, told = traced(network, image())
        every.append(told)
        assert found(short) == found(long)
        if short.groups:
            assert prune.check(network, draw(short, seed=len(every)), image()).worst < 1e-9

    holds()
    assert sum(every) >= len(every) / 2


def test_a_width_that_fits_by_chance_in_one_trial_is_found(traced, monkeypatch):
    network = Borrowed([3, 16, 18, 20, 22, 24, 16]).eval()
    trace, other, _ = traced(network, image())
    assert found(trace) == found(other)
    assert np.array_equal(trace.slots["layers.0.weight", 0], trace.slots["layers.5.weight", 0])
    # The first trial alone, in which the two lose as many, would have taken them for independent.
    monkeypatch.setattr(blaming, "one_tells", lambda *arguments: True)
    fooled = prune.trace(network, image())
    assert not np.array_equal(fooled.slots["layers.0.weight", 0], fooled.slots["layers.5.weight", 0])


def test_two_layers_that_lose_as_many_in_two_trials_are_told_apart_in_a_third():
    network = Borrowed([3, 8, 12, 12, 8, 12, 8], asked=3).eval()
    trace = prune.trace(network, image())
    assert np.array_equal(trace.slots["layers.3.weight", 0], trace.slots["layers.5.weight", 0])
    assert prune.check(network, draw(trace, seed=0), image()).worst < 1e-9
