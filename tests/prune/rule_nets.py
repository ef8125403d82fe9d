"""What the tests of the rule table share: a case, how it is proved, and the ways in which a rule is broken."""

from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass, field, fields

import numpy as np
import torch
from prune_nets import Net, conv, draw, image, sizes
from torch import nn

from compress import prune
from compress.prune import dispatch, grouping, remedies
from compress.prune.labels import Flow, Layer
from compress.prune.rules import RULES, Call, tensors
from compress.prune.rules.base import SHUT

A = torch.ops.aten


@dataclass(frozen=True)
class Case:
    """A tiny network that reaches one operator with channels.

    Args:
        make: the network and a batch for it.
        free: channels of each free group.
        held: slot as `name:dim` -> part of the reason why it stays.
        same: slots, which may be none of the network's, whose channels are the same, one by one.
        preserving: whether removal is masking for the channels that `a` makes.
        macs: multiply-accumulates of one forward pass, where the rule counts them.
        heads: what goes of an attention.
    """

    make: Callable[[], tuple[nn.Module, torch.Tensor]]
    free: dict[str, int | list[int]]
    held: dict[str, str] = field(default_factory=dict)
    same: tuple[tuple[str, int], ...] = ()
    preserving: bool | None = None
    macs: float | None = None
    heads: str = "whole"


def prove(case, draws=3):
    """Traces the network of a case, compares with what is expected, and proves uneven plans."""
    torch.manual_seed(0)
    net, x = case.make()
    with rules_alone():
        trace = prune.trace(net, x, heads=case.heads)
    assert sizes(trace) == case.free
    for slot, reason in case.held.items():
        assert reason in trace.protected[slot], trace.protected
    equal = [trace.slots[slot] for slot in case.same if slot in trace.slots]
    assert all(np.array_equal(equal[0], units) for units in equal)
    assert case.preserving is None or trace.preserving[trace.slots["a.weight", 0]].all() == case.preserving
    if case.macs is not None:
        assert trace.macs(np.ones(trace.units, dtype=bool)) == case.macs
    plans = [draw(trace, seed) for seed in range(draws)] if trace.groups else []
    for k, plan in enumerate(plans):
        proof = prune.check(net, plan, x, seed=k)
        assert proof.eval_forward <= 1e-10
        assert max(proof.train_forward, proof.train_gradient) <= 1e-8
        if case.macs is not None:
            with rules_alone():
                again = prune.trace(prune.apply(net, plan), x, heads=case.heads)
            assert again.macs(np.ones(again.units, dtype=bool)) == plan.costs["macs_after"]
    assert not plans or any(plan.slots for plan in plans)


# Cases ----------------------------------------------------------------------------------------------------


def below(run):
    """Runs operators that autograd takes to pieces in one piece, as they come in inference mode."""

    def whole(*values):
        with torch._C._AutoDispatchBelowAutograd():
            return run(*values)

    return whole


@dataclass(frozen=True)
class Ends:
    """The layers before and after what a case is about, and what is expected of their channels.

    Args:
        wide: channels that the first layers make.
        read: channels that the last layer reads; by default as many.
        x: makes the batch.
        make: makes a layer from its channels in and out.
        free: how many channels are free; None for all of them.
        held: part of the reason why those of `a` stay.
        straight: whether each channel made is the one read at its place; by default where nothing else is said.
        preserving: as in `Case`.
        names: the layers whose outputs are a pair's.
    """

    wide: int = 6
    read: int | None = None
    x: Callable[[], torch.Tensor] | None = None
    make: Callable[[int, int], nn.Module] = conv
    free: int | dict[str, int | list[int]] | None = None
    held: str = ""
    straight: bool | None = None
    preserving: bool | None = None
    names: str = "ac"

    @classmethod
    def split(cls, settings):
        """The ends that keyword arguments name, and the rest of these: layers by name, each a function that makes one."""
        own = {f.name for f in fields(cls)}
        return cls(**{k: v for k, v in settings.items() if k in own}), {
            k: v for k, v in settings.items() if k not in own
        }

    def batch(self):
        return image(batch=8, side=4) if self.x is None else self.x()

    def last(self):
        return self.make(self.read or self.wide, 5)

    def case(self, net, free, straight, names):
        """The case of a network whose layers `names` make what `b` reads."""
        straight = straight if self.straight is None else self.straight
        slots = (*((f"{name}.weight", 0) for name in names), ("b.weight", 1)) if straight else ()
        return Case(net, free, {"a.weight:0": self.held} if self.held else {}, slots, self.preserving)


def between(run, **settings):
    """run(y) or run(net, y) between a layer `a` and a layer `b` that reads what comes out; settings are of `Ends`."""
    ends, layers = Ends.split(settings)

    def net():
        own = {name: layer() for name, layer in layers.items()}
        first = ends.make(3, ends.wide)
        forward = (lambda m, x: m.b(run(m, m.a(x)))) if layers else (lambda m, x: m.b(run(m.a(x))))
        given = ends.batch()
        return Net(forward, a=first, b=ends.last(), **own), given

    size = ends.wide if ends.free is None else ends.free
    return ends.case(net, {"a": size} if size else {}, ends.free is None and ends.read is None, "a")


def constant(run, normed=True, **settings):
    """A zero that becomes a constant: held where it is read as it is, free under a norm that makes it zero again."""
    found = [between(run, free=0, held="becomes a constant", **settings)]
    if normed:
        again = (lambda m, y: m.n(run(y))) if "n" not in settings else run
        found.append(between(again, n=lambda: nn.BatchNorm2d(6), **settings))
    return found


def pair(run, **settings):
    """run(y, z, ...) of the outputs of several layers, read by `b`; settings are of `Ends`, `free` by group."""
    ends, layers = Ends.split(settings)

    def net():
        own = {name: layer() for name, layer in layers.items()}
        firsts = {name: ends.make(3, ends.wide) for name in ends.names}

        def forward(m, x):
            values = [getattr(m, name)(x) for name in ends.names]
            return m.b(run(m, *values) if layers else run(*values))

        return Net(forward, **firsts, b=ends.last(), **own), ends.batch()

    return ends.case(net, {"a": ends.wide} if ends.free is None else ends.free, ends.free is None, ends.names)


def whole(run, x=None, free=None, held=None, macs=None, heads="whole", **named):
    """A network written out: run(net, x) with layers by name, each a function that makes one."""

    def net():
        own = {name: layer() for name, layer in named.items()}
        return Net(run, **own), image(batch=8, side=4) if x is None else x()

    return Case(net, free or {}, held or {}, macs=macs, heads=heads)


# Broken rules ---------------------------------------------------------------------------------------------


class Deaf:
    """A tracer that does not hear one thing that a rule tells it."""

    def __init__(self, tracer, method):
        self._tracer, self._method = tracer, method

    def __getattr__(self, name):
        if name != self._method:
            return getattr(self._tracer, name)
        if name == "fresh":
            return self._unheard
        return lambda *values: Flow() if name == "unknown" else None

    def _unheard(self, size):
        """Labels that the tracer does not know to be no parameter's."""
        labels = self._tracer.fresh(size)
        known = self._tracer.observed.fresh
        known[:] = [other for other in known if other is not labels]
        return labels


TOLD = ("fresh", "equate", "protect", "rectangle", "altered", "spend", "role", "unknown")


def _each(change):
    """A rule whose outputs are changed."""

    def broken(rule):
        def run(tracer, call):
            found = rule(tracer, call)
            return change(tracer, found) if isinstance(found, Flow) else tuple(change(tracer, f) for f in found)

        return run

    return broken


def _layers(change):
    return _each(lambda tracer, flow: Flow(tuple(change(tracer, x) for x in flow.layers), flow.origin, flow.uniform))


def _renamed(tracer, layer):
    start, size = tracer.observed.count, layer.labels.size
    tracer.observed.count += size
    return Layer(np.arange(start, start + size, dtype=np.int64).reshape(layer.labels.shape), layer.zero)


def _deaf(method):
    return lambda rule: lambda tracer, call: rule(Deaf(tracer, method), call)


BROKEN = {
    "forgets": _each(lambda tracer, flow: Flow()),
    "renames": _layers(_renamed),
    "reverses": _layers(lambda tracer, x: Layer(np.flip(x.labels), x.zero, x.slot)),
    "always zero": _layers(lambda tracer, x: Layer(x.labels, True, x.slot)),
    "never zero": _layers(lambda tracer, x: Layer(x.labels, False, x.slot)),
    **{f"does not {method}": _deaf(method) for method in TOLD},
}


@contextmanager
def rules_alone():
    """Does without what makes up for a rule: the ties of trial cuts, and readers that are masked of a constant too."""
    before = remedies.turns, grouping.HOLDING
    remedies.turns = lambda *given: [found for found in before[0](*given) if not found[1]]
    grouping.HOLDING = grouping.HOLDING | {SHUT}
    try:
        yield
    finally:
        remedies.turns, grouping.HOLDING = before


@contextmanager
def ruled(op, rule):
    """Puts another rule in the table for a while."""
    before = RULES[op]
    RULES[op] = rule
    dispatch.operator.cache_clear()
    try:
        yield
    finally:
        RULES[op] = before
        dispatch.operator.cache_clear()


@dataclass
class Reached:
    """What an operator's rule did while a case ran: whether channels reached it, and how it could be broken."""

    labelled: bool = False
    broken: dict[str, None] = field(default_factory=dict)

    def watching(self, rule):
        def run(tracer, call):
            ear = Ear(tracer, self.broken)
            found = rule(ear, call)
            flows = [found] if isinstance(found, Flow) else list(found)
            layers = [layer for flow in flows for layer in flow.layers]
            inputs = [tracer.flows.get(id(t)) for t in tensors((call.args, dict(call.kwargs)))]
            self.labelled = self.labelled or any(flow is not None and flow.layers for flow in inputs) or bool(layers)
            names = ["forgets", "renames"] if layers else []
            names += ["reverses"] if any(not _palindrome(layer) for layer in layers) else []
            names += ["always zero"] if any(not layer.zero for layer in layers) else []
            names += ["never zero"] if any(layer.zero for layer in layers) else []
            self.broken.update(dict.fromkeys(names))
            return found

        return run


def _palindrome(layer):
    return np.array_equal(layer.labels, np.flip(layer.labels))


class Ear:
    """A tracer that writes down what a rule tells it."""

    def __init__(self, tracer, told):
        self._tracer, self._told = tracer, told

    def __getattr__(self, name):
        # A role of what is not a parameter says nothing, nor does an equality of labels with themselves.
        own = getattr(self._tracer, name)
        if name not in TOLD:
            return own

        def tell(*values):
            nothing = (name == "role" and values[0] is None) or (
                name == "equate" and np.array_equal(values[0].reshape(-1), values[1].reshape(-1))
            )
            if not nothing:
                self._told[f"does not {name}"] = None
            return own(*values)

        return tell


def hand_made(op, *args, flows, out, **kwargs):
    """The rule of an operator that runs nowhere here, on meta tensors whose flows are given."""
    tracer = dispatch.LabelDispatch({}, dispatch.Observations(), "whole")
    for tensor, flow in flows:
        tracer.flows[id(tensor)] = flow
    return tracer, RULES[op](tracer, Call(op, args, kwargs, out))
