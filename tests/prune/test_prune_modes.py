"""Which networks are watched in training as well: those that ask which mode they are in, whoever asks."""

import pytest
import torch
import torchvision
from prune_nets import Net, conv, image
from torch import nn
from torchvision.ops import StochasticDepth

from compress import prune
from compress.prune.modes import Listener
from compress.prune.tracing import _Tracing


def heard(net, *inputs):
    """Whether a forward pass of `net` asks for its mode."""
    listener = Listener(net.eval())
    with torch.no_grad():
        net(*(inputs or (image(),)))
    return listener.heard


def passes(net, *inputs):
    tracing = _Tracing(net, inputs or (image(),), None, "whole")
    tracing.trace()
    return len(tracing.observed.passes)


def ask_outside(module):
    return module.training


class Asks(nn.Module):
    def __init__(self, ask):
        super().__init__()
        self.a, self.ask = conv(3, 8), ask

    def forward(self, x):
        y = self.a(x)
        return y.relu() if self.ask(self) else y.sigmoid()


def test_what_only_draws_or_chooses_statistics_needs_no_second_pass():
    parts = [conv(3, 8), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout(), nn.Dropout2d(), StochasticDepth(0.5, "row")]
    assert not heard(nn.Sequential(*parts, conv(8, 4)))
    for name in ("resnet18", "efficientnet_b0", "convnext_tiny"):
        assert not heard(torchvision.models.get_model(name, weights=None), torch.zeros(1, 3, 64, 64)), name


@pytest.mark.parametrize(
    "ask",
    [
        lambda m: m.training,
        ask_outside,
        lambda m: getattr(m, "training"),  # noqa: B009
        lambda m: m.a.training,
        lambda m: any(part.training for part in m.modules()),
    ],
)
def test_whoever_asks_is_heard_and_training_is_watched(ask):
    net = Asks(ask)
    assert heard(Asks(ask))
    assert passes(net) == 2
    assert type(net) is Asks
    assert net.training


def test_a_network_that_asks_in_vain_keeps_one_pass():
    assert passes(Asks(lambda m: m.training and False)) == 1


def test_googlenet_asks():
    net = torchvision.models.googlenet(weights=None, aux_logits=True, init_weights=False)
    assert heard(net, torch.zeros(1, 3, 224, 224))


def test_what_cannot_be_heard_counts_as_asking():
    class Switches(nn.Module):
        """Its mode is another flag, set where the mode is."""

        def __init__(self):
            super().__init__()
            self.a, self.aux, self.more = conv(3, 8), conv(8, 2), False

        def train(self, mode=True):
            self.more = mode
            return super().train(mode)

        def forward(self, x):
            y = self.a(x)
            return (y, self.aux(y)) if self.more else y

    class Fixed(Asks):
        training = False

    class Registers(nn.Module):
        made: list[type] = []  # noqa: RUF012

        def __init_subclass__(cls, **named):
            super().__init_subclass__(**named)
            Registers.made.append(cls)

    net = Switches().eval()
    assert heard(Switches())
    assert passes(net) == 2
    assert prune.trace(net, image()).protected["aux.weight:0"] == "graph output"
    assert Listener(Fixed(lambda m: m.training)).heard
    assert Listener(Registers()).heard
    assert Registers.made == []
    patched = nn.Sequential(conv(3, 8))
    patched.train = patched.train
    assert Listener(patched).heard


def test_a_listened_network_is_what_it_was():
    net = Asks(ask_outside)
    Listener(net)
    assert isinstance(net, Asks)
    assert (type(net).__name__, type(net).__module__) == ("Asks", Asks.__module__)
    assert not net.eval().training
    assert net.train().training
    assert net.a.training
    assert all(m.training for m in net.modules())


def test_modes_are_those_of_the_proof():
    """What is left out of the trace is not left out of the proof: it runs in training too."""
    net = Net(
        lambda m, x: m.b(m.d(m.n(m.a(x)).relu())), a=conv(3, 8), n=nn.BatchNorm2d(8), d=nn.Dropout(), b=conv(8, 4)
    )
    x = image()
    trace = prune.trace(net, x)
    plan = prune.plan(trace, prune.score(trace, net), ratio=0.5)
    assert prune.check(net, plan, x).train_mode
