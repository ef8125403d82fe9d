"""Who makes a cut fail is found in few trials, and what only looks like a failure holds nothing."""

import numpy as np
import pytest
import torch
from prune_nets import Net, conv, proved, sizes
from trial_nets import examples

from compress import prune
from compress.prune.blaming import Trials
from compress.prune.culprits import Culprits
from compress.prune.grouping import Grouping
from compress.prune.passes import Passes
from compress.prune.trial import Blame

pytestmark = pytest.mark.heavy

LAYERS = 16


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


@pytest.fixture
def trials(monkeypatch):
    """How many units each trial of the traces of a test cuts, in order."""
    cuts, tried = [], Trials.tried

    def counted(self, grouping, kept, hasty=False):
        cuts.append(int((~kept).sum()))
        return tried(self, grouping, kept, hasty)

    monkeypatch.setattr(Trials, "tried", counted)
    return cuts


def chain(run):
    """A row of layers of 12 channels, of which the seventh is handed to `run` with what it gives."""

    def forward(m, x):
        for k in range(LAYERS):
            x = torch.relu(getattr(m, f"k{k}")(x))
            x = run(m, x) if k == 6 else x
        return m.last(x).mean((2, 3))

    layers = {f"k{k}": conv(3 if k == 0 else 12, 12, 1) for k in range(LAYERS)}
    return Net(forward, **layers, q=conv(12, 12, 1), last=conv(12, 5, 1))


def by_width(m, x):
    """Views that a width of other channels than their own makes fail, which have to stay anyway."""
    y = m.q(x).view(len(x), 12, 16)
    return x + y.view(len(x), 4, x.shape[1] // 4, 16).mean((1, 2)).view(len(x), 1, 4, 4)


def test_widths_to_blame_are_looked_for_just_before_the_failing_call(trials):
    trace = proved(chain(by_width), examples())
    assert sizes(trace) == {f"k{k}": 12 for k in range(LAYERS) if k != 6}
    assert "fixed size" in trace.protected["k6.weight:0"]
    assert len(trials) <= 12


def blamed(found):
    return [(b.units.tolist(), b.call) for b in found]


def test_groups_close_to_a_failing_call_are_cut_alone_first_and_sought_once():
    trace = prune.trace(chain(lambda m, x: x), examples(2))
    grouping = Grouping(trace, np.arange(trace.units), {})
    bad, parts = trace.groups[11], []

    def blames(grouping, groups):
        parts.append(len(groups))
        failing = any(g is bad for g in groups)
        return culprits.of(grouping, groups, [Blame(NOBODY, "fixed size", 9, "m", close=bad.units)]) if failing else []

    culprits = Culprits(blames, lambda: False)
    assert blamed(blames(grouping, list(trace.groups))) == [(bad.units.tolist(), 9)]
    assert parts == [LAYERS, 1, LAYERS - 1]
    assert blamed(blames(grouping, list(trace.groups))) == [(bad.units.tolist(), 9)]
    assert parts == [LAYERS, 1, LAYERS - 1, LAYERS], "the same failure is not looked into twice"


NOBODY = np.empty(0, np.int64)


def reshaped(x):
    return [x.new_zeros(len(x), side, side).reshape(len(x), -1) for side in (4, 2)]


def written(x):
    places = x.new_zeros(len(x), 6)
    places[:, :3].add_(1)
    return [places, places + 1]


@pytest.mark.parametrize("parts", [reshaped, written])
def test_zeros_that_meet_no_channels_hold_none(parts):
    """Masks of places, of several scales, as detectors build them, side by side."""

    def run(m, x):
        y = m.b(torch.relu(m.a(x))).mean((2, 3))
        return y + torch.cat(parts(x), 1).sum(1, keepdim=True)

    trace = proved(Net(run, a=conv(3, 12), b=conv(12, 5)), examples())
    assert sizes(trace) == {"a": 12}


def test_a_cut_that_passed_is_not_tried_again(monkeypatch):
    made, probe = [], Passes.probe

    def counted(self, kept, copies=None):
        made.append(str(sorted((name, d, tuple(index)) for name, dims in kept.items() for d, index in dims.items())))
        return probe(self, kept, copies)

    monkeypatch.setattr(Passes, "probe", counted)
    prune.trace(chain(by_width), examples(2))
    assert len(made) == len(set(made))
