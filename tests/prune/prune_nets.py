"""Tiny networks for the tests of pruning, and one way to prove a plan."""

import numpy as np
import torch
from torch import nn

from compress import prune
from compress.prune.architecture import architecture_hash, named_tensors
from compress.prune.planning import KeptSlot, Plan, plan_from_kept

CHANNELS = 3


class Net(nn.Module):
    """Layers by name and a function (net, *inputs) that runs them."""

    def __init__(self, run, **layers):
        super().__init__()
        for name, layer in layers.items():
            setattr(self, name, layer)
        self.run = run

    def forward(self, *inputs):
        return self.run(self, *inputs)


def conv(wide, out, size=3, **settings):
    return nn.Conv2d(wide, out, size, padding=size // 2, **settings)


def image(batch=8, side=8, channels=CHANNELS, seed=0):
    return torch.randn(batch, channels, side, side, generator=torch.Generator().manual_seed(seed))


def sizes(trace):
    """Channels of each free group; groups of one name are listed in order."""
    found = {}
    for group in trace.groups:
        found.setdefault(group.name, []).append(len(group.units))
    return {name: n if len(n) > 1 else n[0] for name, n in found.items()}


def draw(trace, seed, least=1):
    """An uneven choice of what stays: each group keeps a drawn number of drawn channels."""
    rng = np.random.default_rng(seed)
    kept = np.ones(trace.units, dtype=bool)
    for group in trace.groups:
        n = len(group.units)
        stays = int(rng.integers(min(least, n), n + 1))
        kept[rng.permutation(group.units)[stays:]] = False
    return plan_from_kept(trace, kept)


def halves(trace, fewer, more):
    """A plan that takes `fewer` units from the first group and `more` from the second."""
    kept = np.ones(trace.units, dtype=bool)
    for group, gone in zip(trace.groups, (fewer, more), strict=False):
        kept[group.units[:gone]] = False
    return plan_from_kept(trace, kept)


def proved(net, x=None, draws=3):
    """Traces `net` and proves several uneven plans; gives the trace."""
    x = image() if x is None else x
    trace = prune.trace(net, x[:2])
    for seed in range(draws):
        plan = draw(trace, seed)
        proof = prune.check(net, plan, x)
        assert proof.eval_forward <= 1e-10
        assert max(proof.train_forward, proof.train_gradient) <= 1e-8
        assert prune.apply(net, plan).eval()(x).shape == net.eval()(x).shape
    return trace


def by_hand(net, slots, attributes=None, substitutions=None):
    """A plan from slot -> (kept, role)."""
    shapes = {name: tensor.shape for name, tensor in named_tensors(net).items()}
    made = {}
    for key, (kept, role) in slots.items():
        name, _, dim = key.rpartition(":")
        made[key] = KeptSlot(kept=tuple(kept), of=shapes[name][int(dim)], role=role)
    return Plan(
        architecture=architecture_hash(net), slots=made, attributes=attributes or {}, substitutions=substitutions or {}
    )
