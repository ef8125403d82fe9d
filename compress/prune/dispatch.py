"""A dispatch mode that sees each ATen operator of a pass and asks its rule what happens to the labels."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from compress.prune.attributes import kept_numbers
from compress.prune.frames import running
from compress.prune.labels import Flow, Labels, Layer, Slot
from compress.prune.meta import Made, disjoint, makes_fresh, remembered
from compress.prune.picks import PICKS, Pick, picked
from compress.prune.rules import POINTWISE, READERS, RULES, Call, Role, Rule, tensors
from compress.prune.shapes import SHAPES

_FACTORY_NAMES = "zeros ones full empty new_zeros new_ones new_full new_empty scalar_tensor rand randn"
FACTORIES = frozenset(_FACTORY_NAMES.split(" "))
"""Operators that make a tensor of one value, or of draws that are alike, in a size that the code gives."""


PAD = "aten.constant_pad_nd"

COPIES = {"aten.clone", "aten.contiguous", "aten.alias", "aten.detach", "aten.lift_fresh", "aten._to_copy"}
"""Operators that may or may not run, depending on the memory layout: two passes need not agree on them."""

VIEWS = {"aten._unsafe_view": "aten.view", "aten.reshape": "aten.view", "aten._reshape_alias": "aten.view"}
"""The names of one reshape, which depend on the memory layout."""


Source = tuple[int, int] | str | None
"""Where a tensor comes from: a call and one of its outputs, a parameter or input by name, or None for the code."""


@dataclass(slots=True, eq=False)
class OpCall:
    """One operator call of a pass. Never changed.

    Args:
        name: without the overload.
        sources: where its inputs come from.
        shapes: of what it returned.
        flows: what that carries.
        numbers: plain numbers that it computes with.
        bounds: a slice's dimension, start and end; what a padding adds, dimension by dimension.
    """

    name: str
    sources: tuple[Source, ...]
    shapes: tuple[tuple[int, ...], ...]
    flows: tuple[Flow, ...]
    numbers: tuple[float, ...]
    bounds: tuple[Any, ...] = ()


@dataclass
class Observations:
    """What passes over one network have shown: labels, and what holds between them."""

    count: int = 0
    slots: dict[Slot, Labels] = field(default_factory=dict)
    roles: dict[Slot, Role] = field(default_factory=dict)
    equalities: list[tuple[Labels, Labels]] = field(default_factory=list)
    protections: list[tuple[Labels, str]] = field(default_factory=list)
    altered: list[tuple[Labels, str]] = field(default_factory=list)
    rectangles: list[Labels] = field(default_factory=list)
    where: dict[str, tuple[nn.Module | None, str]] = field(default_factory=dict)
    fresh: list[Labels] = field(default_factory=list)
    loose: set[int] = field(default_factory=set)
    costs: list[tuple[float, tuple[Labels, ...]]] = field(default_factory=list)
    unknown: dict[str, None] = field(default_factory=dict)
    used: set[str] = field(default_factory=set)
    picks: list[Pick] = field(default_factory=list)
    images: int = 1
    passes: list[list[OpCall]] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Operator:
    """What is known of an operator before it runs.

    Args:
        name: without the overload.
        rule: what happens to the labels; None where that is unknown.
        shape: its output's shape on the meta device, None where only torch knows.
        factory: whether it makes a tensor of one value.
        whole: whether integers among its arguments are values, not sizes, positions or counts.
        made: what it has made on the meta device so far; None where its outputs may share an input's memory.
    """

    name: str
    rule: Rule | None
    shape: Callable[..., Any] | None
    factory: bool
    whole: bool
    made: Made | None


@cache
def operator(func: Any) -> Operator:
    """What is known of an overload; asked for at each call, so it is looked up once."""
    name = str(func.overloadpacket)
    name = VIEWS.get(name, name)
    factory = name.removeprefix("aten.") in FACTORIES
    shape = SHAPES.get(str(func)) or SHAPES.get(name)
    # Torch makes an empty tensor as fast as it is remembered.
    made: Made | None = {} if makes_fresh(func) and name not in ("aten.empty", "aten.new_empty") else None
    return Operator(name, RULES.get(name), shape, factory, factory or name in POINTWISE, made)


class LabelDispatch(TorchDispatchMode):
    """Collect labels, equalities and costs while operators run.

    Args:
        state: name -> stand-in of each parameter and buffer.
        observed: what is known so far; passes add to it.
        heads: what goes of an attention, ``whole`` heads or ``dims`` of every head.
    """

    def __init__(self, state: dict[str, torch.Tensor], observed: Observations, heads: str) -> None:
        super().__init__()
        self.observed, self.heads = observed, heads
        self.alive: list[Any] = list(state.values())
        # Integers count or index; only floating tensors have channels.
        self.names = {id(t): name for name, t in reversed(state.items()) if t.dtype.is_floating_point}
        self.flows: dict[int, Flow] = {}
        self.values: dict[int, torch.Tensor] = {}
        self.sources: dict[int, Source] = dict(self.names)
        self.calls: list[OpCall] = []
        self.blank = False
        # By storage, as far as they were looked at.
        self.places: dict[int, list[torch.Tensor]] = {}
        self.placed = 0
        # Torch-function modes around a pass; further ones are the network's own.
        self.functions = 0

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        # Torch would wrap every call to keep a compiler out, at a third of the cost of a pass.
        return False

    def enter(self, value: Any, origin: str) -> None:
        """Register the tensors in ``value`` as inputs that come from ``origin``."""
        for k, tensor in enumerate(tensors(value)):
            self.alive.append(tensor)
            self.flows[id(tensor)] = Flow((), origin)
            self.sources[id(tensor)] = f"{origin} {k}"
            if k == 0 and tensor.dim():
                self.observed.images = max(int(tensor.shape[0]), 1)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        op = operator(func)
        inputs = argument_tensors(args, kwargs)
        known = meta = mixed = False
        for t in inputs:
            known = known or id(t) in self.sources
            if t.is_meta:
                meta = True
            elif t.dim():
                mixed = True
        if not known:
            if meta and mixed:
                args, kwargs = self._on_meta(args), self._on_meta(kwargs)
            out = func(*args, **kwargs) if op.made is None else remembered(func, op.made, args, kwargs)
            if op.factory:
                self._keep(out, _uniform(op.name, args))
                self.sources[id(out)] = f"{op.name} {numbers(op, args, {})}"
            return out
        quick = meta and op.shape is not None
        if meta and mixed:
            args, kwargs = self._on_meta(args), self._on_meta(kwargs)
            inputs, quick = argument_tensors(args, kwargs), False
        out = self.run(func, op, args, kwargs, quick)
        several = argument_tensors(out, None) if isinstance(out, list | tuple) else []
        outs = [out] if isinstance(out, torch.Tensor) else several
        if outs:
            self.after(op, args, kwargs, out, outs, tuple([self.source(t) for t in inputs]))
        return out

    def run(self, func: Any, op: Operator, args: Any, kwargs: Any, quick: bool) -> Any:
        """Run the operator; on the meta device its output is often made from the shape alone, which is much faster."""
        out = op.shape(*args, **kwargs) if quick and op.shape is not None else None
        if out is not None:
            return out
        return func(*args, **kwargs) if op.made is None else remembered(func, op.made, args, kwargs)

    def after(
        self, op: Operator, args: Any, kwargs: Any, out: Any, outs: list[torch.Tensor], sources: tuple[Source, ...]
    ) -> None:
        """Label the outputs and record the call."""
        flows = self.label(op, args, kwargs, out, outs)
        if op.name in COPIES:
            self.sources[id(outs[0])] = sources[0]
            return
        self.set_sources(outs, len(self.calls))
        if op.name in PICKS:
            self.observed.picks += picked(op.name, args, self.flow(args[0]))
        shapes = tuple([tuple(t.shape) for t in outs])
        bounds = tuple(args[1:4]) if op.name == "aten.slice" else tuple(args[1]) if op.name == PAD else ()
        self.calls.append(OpCall(op.name, sources, shapes, flows, numbers(op, args, kwargs), bounds))

    def source(self, tensor: torch.Tensor) -> Source:
        """Where a tensor comes from; for a constant of one value the value itself, which must not follow a size."""
        known = self.sources.get(id(tensor))
        if known is None:
            real = self.values.get(id(tensor), tensor)
            if not real.is_meta and real.numel() == 1:
                return f"constant {real.item()}"
        return known

    def set_sources(self, outs: list[torch.Tensor], call: int) -> None:
        """Record which call tensors come from."""
        for k, tensor in enumerate(outs):
            self.sources[id(tensor)] = (call, k)

    def label(self, op: Operator, args: Any, kwargs: Any, out: Any, outs: list[torch.Tensor]) -> tuple[Flow, ...]:
        call = Call(op.name, args, kwargs, out)
        if op.factory:
            results: Any = _uniform(op.name, args)
        elif op.rule is None:
            results = self.unknown(call)
        else:
            results = op.rule(self, call)
        flows = (results,) if isinstance(results, Flow) else tuple(results)
        flows += (Flow((), f"output of {op.name}"),) * (len(outs) - len(flows))
        for tensor, flow in zip(outs, flows, strict=True):
            self._keep(tensor, flow)
        if op.name.endswith("_"):
            self._written(outs[0])
        return flows

    def _keep(self, tensor: Any, flow: Flow) -> None:
        if isinstance(tensor, torch.Tensor):
            key = id(tensor)
            self.alive.append(tensor)
            self.blank = self.blank or flow.blank
            self.flows[key] = flow
            if key in self.names:
                del self.names[key]

    def _written(self, tensor: torch.Tensor) -> None:
        """Mark what shares storage with a tensor written in place: it may no longer be zero, as a channel or whole."""
        own = self.flows[id(tensor)]
        zero = all(layer.zero for layer in own.layers) and not own.origin
        if zero and not self.blank:
            return
        for other in self._sharing(tensor):
            flow = self.flows.get(id(other))
            if flow is None:
                continue
            if flow.blank:
                flow = self.flows[id(other)] = Flow(flow.layers, flow.origin, flow.uniform)
            if not (zero or other is tensor or disjoint(tensor, other)):
                self.flows[id(other)] = flow.with_zero(False)

    def _sharing(self, tensor: torch.Tensor) -> list[torch.Tensor]:
        """The tensors of the pass in one storage."""
        for other in self.alive[self.placed :]:
            if other.layout is torch.strided:
                self.places.setdefault(other.untyped_storage()._cdata, []).append(other)
        self.placed = len(self.alive)
        return self.places.get(tensor.untyped_storage()._cdata, [])

    def _on_meta(self, value: Any) -> Any:
        """Move constants that the code made on another device to the meta device, and remember their values."""
        if isinstance(value, torch.Tensor):
            if value.is_meta or not value.dim():
                return value
            meta = value.to("meta")
            self.alive.append(meta)
            self.values[id(meta)] = value
            self.sources[id(meta)] = self.sources.get(id(value))
            if id(value) in self.flows:
                self.flows[id(meta)] = self.flows[id(value)]
            return meta
        if isinstance(value, list | tuple):
            return type(value)(self._on_meta(v) for v in value)
        if isinstance(value, dict):
            return {k: self._on_meta(v) for k, v in value.items()}
        return value

    # What rules call --------------------------------------------------------------------------------------

    def flow(self, tensor: Any) -> Flow:
        key = id(tensor)
        found = self.flows.get(key)
        if found is not None:
            return found
        name = self.names.get(key)
        if name is None:
            return Flow((), "a constant")
        layers = []
        shape = tensor.shape
        for d, n in enumerate(shape):
            if n > 1:
                place = [1] * len(shape)
                place[d] = n
                layers.append(Layer(self.slot((name, d), n).reshape(place), True, (name, d)))
        self.observed.used.add(name)
        flow = self.flows[key] = Flow(tuple(layers), "" if layers else "a constant")
        return flow

    def slot(self, slot: Slot, size: int) -> Labels:
        labels = self.observed.slots.get(slot)
        if labels is None:
            start = self.observed.count
            labels = self.observed.slots[slot] = np.arange(start, start + size, dtype=np.int64)
            self.observed.count += size
        return labels

    def fresh(self, size: int) -> Labels:
        """Labels of channels that no parameter has."""
        self.observed.count += size
        labels = np.arange(self.observed.count - size, self.observed.count, dtype=np.int64)
        self.observed.fresh.append(labels)
        return labels

    def own(self, tensor: torch.Tensor, dim: int, role: Role) -> Labels | None:
        """Labels of one dimension of an unchanged parameter; None where the tensor is not one."""
        name, size = self.names.get(id(tensor)), int(tensor.shape[dim])
        if name is None or size == 1:
            return None
        self.observed.used.add(name)
        self.role((name, dim), role)
        return self.slot((name, dim), size)

    def tie(self, tensor: torch.Tensor, dim: int, labels: Labels, role: Role) -> bool:
        """Give one dimension of a parameter ``labels``; return False where the tensor is not an unchanged parameter."""
        name = self.names.get(id(tensor))
        if name is None or tensor.shape[dim] != len(labels):
            return False
        # Nothing else has a parameter's labels before its first use: it can take those that it meets.
        known = self.observed.slots.setdefault((name, dim), labels)
        if known is not labels:
            self.equate(known, labels)
        self.observed.used.add(name)
        self.role((name, dim), role)
        return True

    def value(self, tensor: torch.Tensor) -> np.ndarray[Any, Any] | None:
        """The values of a constant, or None where they are not known."""
        real = self.values.get(id(tensor), tensor)
        return None if real.is_meta or self.flow(tensor).layers else real.detach().cpu().numpy()

    def role(self, slot: Slot | None, role: Role) -> None:
        if slot is None:
            return
        known = self.observed.roles.get(slot)
        # A slot that both produces and consumes is masked as a producer; a statistic is only ever cut.
        if known is None or (known in READERS and role == "producer") or (known, role) == ("consumer", "shut"):
            self.observed.roles[slot] = role

    def equate(self, left: Labels, right: Labels) -> None:
        self.observed.equalities.append((left.reshape(-1), right.reshape(-1)))

    def protect(self, labels: Labels, reason: str) -> None:
        if reason not in self.observed.where:
            self.observed.where[reason] = running()
        self.observed.protections.append((labels.reshape(-1), reason))

    def rectangle(self, labels: Labels, loose: bool = False) -> None:
        if loose:
            self.observed.loose.add(len(self.observed.rectangles))
        self.observed.rectangles.append(labels)

    def altered(self, labels: Labels, reason: str) -> None:
        self.observed.altered.append((labels.reshape(-1), reason))

    def keeps(self, number: int) -> bool:
        """Whether the module that is running holds a number, where a cut can patch it."""
        module, _ = running()
        return module is not None and any(n == number for _, n in kept_numbers(module))

    def spend(self, macs: float, *factors: Labels) -> None:
        self.observed.costs.append((float(macs), factors))

    def unknown(self, call: Call, reason: str = "") -> Flow:
        reason = f"{reason} in {call.name}" if reason else f"unknown operator {call.name}"
        for tensor in tensors((call.args, call.kwargs)):
            flow = self.flow(tensor)
            if flow.layers:
                self.observed.unknown[call.name] = None
            for layer in flow.layers:
                self.role(layer.slot, "producer")
                self.protect(layer.labels, reason)
        return Flow((), reason)


def argument_tensors(args: Any, kwargs: Any) -> list[torch.Tensor]:
    """The tensors among an operator's arguments, in lists too, which are never nested."""
    found = []
    for value in args:
        if isinstance(value, torch.Tensor):
            found.append(value)
        elif isinstance(value, list | tuple):
            found += [item for item in value if isinstance(item, torch.Tensor)]
    return found + argument_tensors(kwargs.values(), None) if kwargs else found


def _uniform(name: str, args: Any) -> Flow:
    """The flow of a tensor of one value."""
    kind = name.removeprefix("aten.")
    value = args[2] if kind == "new_full" and len(args) > 2 else args[1] if kind == "full" and len(args) > 1 else 1
    zero = type(value) in (int, float) and value == 0
    return Flow(uniform=True, blank=zero or kind in ("zeros", "new_zeros"))


def numbers(op: Operator, args: Any, kwargs: Any) -> tuple[float, ...]:
    """The plain numbers that an operator computes with, none of which may depend on a size.

    Integers are sizes, positions and counts unless an operator is pointwise; of a group norm the channels of each group
    are included, since they have to stay.
    """
    every = [*args, *kwargs.values()] if kwargs else args
    kinds = (float, int) if op.whole else (float,)
    found = [a for a in every if type(a) in kinds]
    if op.name == "aten.native_group_norm" and args[6] > 1:
        found.append(args[4] // args[6])
    return tuple(found)
