"""Networks that were found to be cut wrongly, or to end in a traceback, and must not be again."""

import threading

import pytest
import torch
import torch.nn.functional as F
from prune_nets import Net, conv, draw, image, proved
from torch import nn
from torch.nn.utils.prune import l1_unstructured

from compress import prune
from compress.errors import ModelError, PlanError

# A number that follows the number of channels -> how it gets into the network.
FOLLOWING = {
    "alpha": lambda h, n: torch.add(h, h.flip(-1), alpha=1 / n),
    "value": lambda h, n: torch.addcmul(h, h.flip(-1), h.flip(-2), value=1 / n),
    "slope": lambda h, n: F.leaky_relu(h, 1 / n),
    "bounds": lambda h, n: h.clamp(-n / 20, n / 20),
    "lerp": lambda h, n: torch.lerp(h, h.flip(-1), 1 / n),
    "rsub": lambda h, n: h * (n - h),
    "constant": lambda h, n: h * torch.tensor(1 / n),
    "filled": lambda h, n: h * torch.full((1, 1, 1, 1), n / 10),
}


@pytest.mark.parametrize("name", FOLLOWING)
def test_a_number_that_follows_the_size_protects(name):
    follow = FOLLOWING[name]

    def run(m, x):
        h = m.b(m.a(x))
        return m.c(follow(h, h.shape[1]))

    proved(Net(run, a=conv(3, 24), b=nn.BatchNorm2d(24), c=conv(24, 5)), draws=4)


def test_a_fixed_run_at_the_end_is_never_cut_wrongly():
    def run(m, x):
        h = m.a(x).clone()
        h[:, 20:].zero_()
        return m.c(h)

    proved(Net(run, a=conv(3, 24), c=conv(24, 5)), draws=6)


def test_what_training_alone_computes_with_the_same_parameters_is_watched():
    def run(m, x):
        return m.o(m.a(x).sigmoid()) if m.training else m.o(m.a(x).relu())

    net = Net(run, a=nn.Linear(16, 12), o=nn.Linear(12, 4)).eval()
    trace = proved(net, torch.randn(20, 16))
    assert trace.roles["o.weight", 1] == "shut", "a zero that becomes a constant in training alone"
    assert not trace.preserving[trace.slots["a.weight", 0]].any()


def test_a_network_that_wants_targets_in_training_is_watched_in_evaluation():
    class Wants(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = conv(3, 8), conv(8, 4)

        def forward(self, x, targets=None):
            if self.training and targets is None:
                raise ValueError("targets")
            return self.b(self.a(x).relu())

    trace = prune.trace(Wants(), image())
    assert [len(g.units) for g in trace.groups] == [8]


def test_a_compiled_network_and_torchs_own_masks_are_cut():
    net = nn.Sequential(conv(3, 8), nn.ReLU(), conv(8, 4))
    net.compile(backend="eager")
    assert [len(g.units) for g in prune.trace(net, image()).groups] == [8]
    masked = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 4))
    l1_unstructured(masked[0], "weight", 0.5)
    trace = prune.trace(masked, torch.randn(4, 6))
    small = prune.apply(masked, draw(trace, 0))
    assert small(torch.randn(4, 6)).shape == (4, 4)


def test_what_cannot_be_copied_or_has_no_shape_yet_is_one_sentence():
    net = nn.Sequential(conv(3, 8))
    net.lock = threading.Lock()
    with pytest.raises(ModelError, match="cannot be copied"):
        prune.trace(net, image())
    with pytest.raises(ModelError, match="lazy layers"):
        prune.trace(nn.Sequential(nn.LazyLinear(4)), torch.randn(2, 3))
    with pytest.raises(ModelError, match="No parameter"):
        prune.trace(nn.Sequential(nn.Linear(4, 3, dtype=torch.complex64)), torch.randn(2, 4, dtype=torch.complex64))


def test_what_a_plan_cannot_be_asked_for_is_one_sentence():
    net = nn.Sequential(conv(3, 8), nn.ReLU(), conv(8, 4))
    trace = prune.trace(net, image())
    scores = prune.score(trace, net)
    for wrong in ({"scope": "x"}, {"round_to": 0}, {"round_to": 1.5}, {"min_kept": -3}):
        with pytest.raises(PlanError, match=next(iter(wrong))):
            prune.plan(trace, scores, ratio=0.5, **wrong)
    with pytest.raises(PlanError, match="finite"):
        prune.plan(trace, scores * float("nan"), ratio=0.5)
    with pytest.raises(ModelError, match="heads='foo'"):
        prune.trace(net, image(), heads="foo")
    assert prune.protect(trace, "0.*").groups == ()


def test_a_proof_that_cannot_run_is_one_sentence():
    def run(m, x):
        if x.dtype == torch.float64:
            raise RuntimeError("this layer takes float32")
        return m.b(m.a(x))

    net = Net(run, a=conv(3, 8), b=conv(8, 4))
    trace = prune.trace(net, image())
    with pytest.raises(PlanError, match="does not run in double precision on this example, uncut"):
        prune.check(net, draw(trace, 0), image())
