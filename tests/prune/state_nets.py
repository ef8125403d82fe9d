"""A network with every kind of parameter, a plan for it, and training that holds what is dropped at zero."""

import torch
import torch.nn.functional as F
from prune_nets import Net, by_hand, conv
from torch import nn

A, B, C = (0, 2, 3, 6), (1, 2, 4, 5), (0, 1, 5)
PRODUCERS = {
    A: ("c1.weight:0", "n1.weight:0", "n1.bias:0", "n1.running_mean:0"),
    B: ("c2.weight:0", "n2.weight:0", "n2.bias:0", "n2.running_mean:0"),
    C: ("h.weight:0", "h.bias:0", "mix:2", "tied.weight:0", "tied.bias:0"),
}
CONSUMERS = {
    A: ("c2.weight:1",),
    B: ("h.weight:1", "frozen.weight:1"),
    C: ("tied.weight:1", "out.weight:1"),
}
STATISTICS = {A: ("n1.running_var:0",), B: ("n2.running_var:0",)}
SIZES = {
    "c1": {"out_channels": (8, 4)},
    "n1": {"num_features": (8, 4)},
    "c2": {"in_channels": (8, 4), "out_channels": (6, 4)},
    "n2": {"num_features": (6, 4)},
    "h": {"in_features": (6, 4), "out_features": (8, 3)},
}


def run(net, x):
    x = F.gelu(net.n1(net.c1(x)))
    x = F.gelu(net.n2(net.c2(x))).mean((2, 3))
    h = torch.tanh(net.h(x) * net.mix.sum((0, 1)))
    return net.out(torch.tanh(net.again(torch.tanh(net.tied(h))))) + net.frozen(x)


def network():
    """Convolutions, norms, a linear layer under two names, a parameter of three dimensions, a frozen layer."""
    torch.manual_seed(0)
    tied = nn.Linear(8, 8)
    layers = {
        "c1": conv(3, 8, bias=False),
        "n1": nn.BatchNorm2d(8),
        "c2": conv(8, 6, bias=False),
        "n2": nn.BatchNorm2d(6),
        "h": nn.Linear(6, 8),
        "mix": nn.Parameter(torch.randn(2, 3, 8)),
        "tied": tied,
        "again": tied,
        "out": nn.Linear(8, 3),
        "frozen": nn.Linear(6, 3).requires_grad_(False),
    }
    return Net(run, **layers).double()


def plan_of(net):
    """What is kept of the network: slots of every role."""
    roles = {"producer": PRODUCERS, "consumer": CONSUMERS, "statistic": STATISTICS}
    slots = {k: (kept, role) for role, named in roles.items() for kept, keys in named.items() for k in keys}
    return by_hand(net, slots, SIZES)


def groups(net):
    """Two groups with options of their own; the second is of norms and of what is frozen."""
    few = [p for name, p in net.named_parameters() if name[0] in "nf"]
    own = {id(p) for p in few}
    return [
        {"params": [p for p in net.parameters() if id(p) not in own]},
        {"params": few, "lr": 0.003, "weight_decay": 0.0},
    ]


def kept_of(plan, name, tensor):
    """dimension -> indices, of a parameter under its first name."""
    found = {d: plan.slots.get(f"{name}:{d}") for d in range(tensor.dim())}
    return {d: torch.tensor(slot.kept) for d, slot in found.items() if slot is not None}


def part(plan, name, tensor):
    for d, index in kept_of(plan, name, tensor).items():
        tensor = tensor.index_select(d, index)
    return tensor


def hold(plan, name, tensor):
    """Zeroes, in place, whatever is not kept."""
    for d, index in kept_of(plan, name, tensor).items():
        gone = torch.ones(tensor.shape[d], dtype=torch.bool)
        gone[index] = False
        tensor.index_fill_(d, gone.nonzero().flatten(), 0)


def train(net, optimizer, steps, plan=None, ema=None):
    """Steps with data of their own; with a plan, what it drops is held at zero."""
    for k in steps:
        x = torch.randn(8, 3, 6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(k))
        optimizer.zero_grad()
        F.cross_entropy(net.train()(x), torch.arange(8) % 3).backward()
        if plan is not None:
            for name, parameter in net.named_parameters():
                if parameter.grad is not None:
                    hold(plan, name, parameter.grad)
        optimizer.step()
        if plan is not None:
            with torch.no_grad():
                for name, parameter in net.named_parameters():
                    hold(plan, name, parameter)
        if ema is not None:
            ema.update_parameters(net)


def same(value, expected):
    torch.testing.assert_close(value, expected, rtol=1e-10, atol=1e-10)
