"""Networks whose code fixes sizes, for the tests of trial cuts."""

from prune_nets import Net, conv, draw, image
from torch import nn

from compress import prune

WIDE = 16


class Middle(nn.Module):
    """A convolution, what a subclass does with its channels, a convolution."""

    def __init__(self, read=WIDE, **more):
        super().__init__()
        self.a, self.b = conv(3, WIDE), conv(read, 5)
        for name, value in more.items():
            setattr(self, name, value)

    def middle(self, y):
        return y

    def forward(self, x):
        return self.b(self.middle(self.a(x)))


class Viewed(Middle):
    """Its code reads how many channels there are from the module."""

    def middle(self, y):
        return y.view(len(y), self.channels, -1).relu().view(len(y), self.channels, 4, 4)


def middle(run, read=WIDE, wide=WIDE, **layers):
    """run(y), or run(net, y) with layers, between two convolutions."""
    within = (lambda m, x: m.b(run(m, m.a(x)))) if layers else (lambda m, x: m.b(run(m.a(x))))
    return Net(within, a=conv(3, wide), b=conv(read, 5), **layers)


def small(net, trace):
    """The network under a plan that cuts every free group."""
    plan = draw(trace, 1)
    assert all(group.after < group.before for group in plan.groups)
    return prune.apply(net, plan), plan


def examples(batch=8):
    return image(batch=batch, side=4)
