"""Watching: a dispatch mode that sees each ATen operator of a pass and asks its rule what happens to the labels."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from compress.prune.labels import Flow, Labels, Layer, Slot
from compress.prune.rules import POINTWISE, RULES, Call, Role, Rule, tensors
from compress.prune.shapes import SHAPES

PICKS = frozenset(
    f"aten.{name}"
    for name in ("slice", "select", "index", "index_select", "unbind", "gather", "split", "split_with_sizes", "roll")
)
"""Operators by which code takes channels by their place."""

FACTORIES = {"zeros", "ones", "full", "empty", "new_zeros", "new_ones", "new_full", "new_empty", "scalar_tensor"}
"""Operators that make a tensor of one value in a size that the code asks for."""


COPIES = {"aten.clone", "aten.contiguous", "aten.alias", "aten.detach", "aten.lift_fresh", "aten._to_copy"}
"""Operators that may or may not run, by the layout in memory: no two passes need to agree on them."""

VIEWS = {"aten._unsafe_view": "aten.view", "aten.reshape": "aten.view", "aten._reshape_alias": "aten.view"}
"""One reshape under several names, again by the layout in memory."""


Source = tuple[int, int] | str | None
"""Where a tensor comes from: a call and which of its outputs, a parameter or an input by name, or the code."""


@dataclass(frozen=True, slots=True)
class Seen:
    """One operator call of a pass: its name, where its inputs come from, what it gave, and its plain numbers."""

    name: str
    sources: tuple[Source, ...]
    shapes: tuple[tuple[int, ...], ...]
    flows: tuple[Flow, ...]
    numbers: tuple[float, ...]


@dataclass
class Found:
    """What passes over one network have told: labels and what holds between them."""

    count: int = 0
    slots: dict[Slot, Labels] = field(default_factory=dict)
    roles: dict[Slot, Role] = field(default_factory=dict)
    equalities: list[tuple[Labels, Labels]] = field(default_factory=list)
    protections: list[tuple[Labels, str]] = field(default_factory=list)
    altered: list[tuple[Labels, str]] = field(default_factory=list)
    rectangles: list[Labels] = field(default_factory=list)
    costs: list[tuple[float, tuple[Labels, ...]]] = field(default_factory=list)
    unknown: dict[str, None] = field(default_factory=dict)
    seen: set[str] = field(default_factory=set)
    picks: bool = False
    images: int = 1
    passes: list[list[Seen]] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Route:
    """What is known of an operator before it runs.

    Args:
        name: without the overload.
        rule: what happens to the labels, None where nobody knows.
        shape: its output's shape on the meta device, None where only torch knows.
        factory: whether it makes a tensor of one value.
        whole: whether whole numbers among its arguments are values, not sizes, places or counts.
    """

    name: str
    rule: Rule | None
    shape: Callable[..., Any] | None
    factory: bool
    whole: bool


@cache
def route(func: Any) -> Route:
    name = str(func.overloadpacket)
    name = VIEWS.get(name, name)
    factory = name.removeprefix("aten.") in FACTORIES
    shape = SHAPES.get(str(func)) or SHAPES.get(name)
    return Route(name, RULES.get(name), shape, factory, factory or name in POINTWISE)


class Watch(TorchDispatchMode):
    """Collects labels, equalities and costs while operators run.

    Args:
        state: name -> stand-in of each parameter or buffer.
        found: what is known so far; passes add to it.
        heads: `whole` or `dims`, what goes of an attention.
    """

    def __init__(self, state: dict[str, torch.Tensor], found: Found, heads: str) -> None:
        super().__init__()
        self.found, self.heads = found, heads
        self.alive: list[Any] = list(state.values())
        # Integers count or point; only what is computed with has channels.
        self.names = {id(t): name for name, t in reversed(state.items()) if t.dtype.is_floating_point}
        self.flows: dict[int, Flow] = {}
        self.values: dict[int, torch.Tensor] = {}
        self.sources: dict[int, Source] = dict(self.names)
        self.calls: list[Seen] = []

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        # Torch would wrap every call to tell a compiler to keep out, at a third of the cost of a pass.
        return False

    def enter(self, value: Any, origin: str) -> None:
        """Takes a tensor into the pass from outside."""
        for k, tensor in enumerate(tensors(value)):
            self.alive.append(tensor)
            self.flows[id(tensor)] = Flow((), origin)
            self.sources[id(tensor)] = f"{origin} {k}"
            if k == 0 and tensor.dim():
                self.found.images = max(int(tensor.shape[0]), 1)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        to = route(func)
        inputs = given(args, kwargs)
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
            out = func(*args, **kwargs)
            if to.factory:
                self._keep(out, Flow(uniform=True))
                self.sources[id(out)] = f"{to.name} {numbers(to, args, {})}"
            return out
        quick = meta and to.shape is not None
        if meta and mixed:
            args, kwargs = self._on_meta(args), self._on_meta(kwargs)
            inputs, quick = given(args, kwargs), False
        out = self.run(func, to, args, kwargs, quick)
        outs = [out] if isinstance(out, torch.Tensor) else given(out, None) if isinstance(out, list | tuple) else []
        if outs:
            self.after(to, args, kwargs, out, outs, tuple([self.source(t) for t in inputs]))
        return out

    def run(self, func: Any, to: Route, args: Any, kwargs: Any, quick: bool) -> Any:
        """The operator's output; on the meta device often from its shape alone, which is much quicker."""
        out = to.shape(*args, **kwargs) if quick and to.shape is not None else None
        return func(*args, **kwargs) if out is None else out

    def after(
        self, to: Route, args: Any, kwargs: Any, out: Any, outs: list[torch.Tensor], sources: tuple[Source, ...]
    ) -> None:
        """Finds what the outputs carry, and remembers the call."""
        flows = self.label(to, args, kwargs, out, outs)
        if to.name in COPIES:
            self.sources[id(outs[0])] = sources[0]
            return
        self.come(outs, len(self.calls))
        self.found.picks = self.found.picks or (to.name in PICKS and any(flow.layers for flow in flows))
        seen = tuple([tuple(t.shape) for t in outs])
        self.calls.append(Seen(to.name, sources, seen, flows, numbers(to, args, kwargs)))

    def source(self, tensor: torch.Tensor) -> Source:
        """Where a tensor comes from; of a constant of one value that value, which must not follow a size."""
        known = self.sources.get(id(tensor))
        if known is None:
            real = self.values.get(id(tensor), tensor)
            if not real.is_meta and real.numel() == 1:
                return f"constant {real.item()}"
        return known

    def come(self, outs: list[torch.Tensor], call: int) -> None:
        """Remembers which call tensors come from."""
        for k, tensor in enumerate(outs):
            self.sources[id(tensor)] = (call, k)

    def label(self, to: Route, args: Any, kwargs: Any, out: Any, outs: list[torch.Tensor]) -> tuple[Flow, ...]:
        call = Call(to.name, args, kwargs, out)
        if to.factory:
            results: Any = Flow(uniform=True)
        elif to.rule is None:
            results = self.unknown(call)
        else:
            results = to.rule(self, call)
        flows = (results,) if isinstance(results, Flow) else tuple(results)
        flows += (Flow((), f"output of {to.name}"),) * (len(outs) - len(flows))
        for tensor, flow in zip(outs, flows, strict=True):
            self._keep(tensor, flow)
        if to.name.endswith("_"):
            self._written(outs[0])
        return flows

    def _keep(self, tensor: Any, flow: Flow) -> None:
        if isinstance(tensor, torch.Tensor):
            self.alive.append(tensor)
            self.flows[id(tensor)] = flow
            self.names.pop(id(tensor), None)

    def _written(self, tensor: torch.Tensor) -> None:
        """What shares storage with a tensor written in place may hold something else than zero now."""
        own = self.flows[id(tensor)]
        if all(layer.zero for layer in own.layers) and not own.origin:
            return
        storage = tensor.untyped_storage()._cdata
        for other in self.alive:
            if other is not tensor and id(other) in self.flows and other.untyped_storage()._cdata == storage:
                self.flows[id(other)] = self.flows[id(other)].with_zero(False)

    def _on_meta(self, value: Any) -> Any:
        """Constants that the code made on another device meet tensors without storage; their values are kept."""
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

    # What rules call -------------------------------------------------------------------------------------

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
        self.found.seen.add(name)
        flow = self.flows[key] = Flow(tuple(layers), "" if layers else "a constant")
        return flow

    def slot(self, slot: Slot, size: int) -> Labels:
        labels = self.found.slots.get(slot)
        if labels is None:
            labels = self.found.slots[slot] = np.arange(self.found.count, self.found.count + size, dtype=np.int64)
            self.found.count += size
        return labels

    def fresh(self, size: int) -> Labels:
        """Labels of channels that no parameter has."""
        self.found.count += size
        return np.arange(self.found.count - size, self.found.count, dtype=np.int64)

    def own(self, tensor: torch.Tensor, dim: int, role: Role) -> Labels | None:
        """Labels of one dimension of a parameter that nothing has been computed from; None where it is not one."""
        name, size = self.names.get(id(tensor)), int(tensor.shape[dim])
        if name is None or size == 1:
            return None
        self.found.seen.add(name)
        self.role((name, dim), role)
        return self.slot((name, dim), size)

    def tie(self, tensor: torch.Tensor, dim: int, labels: Labels, role: Role) -> bool:
        """Says that one dimension of a parameter carries `labels`; False where it is not a parameter as it came."""
        name = self.names.get(id(tensor))
        if name is None or tensor.shape[dim] != len(labels):
            return False
        # Nothing else has a parameter's labels before its first use: it can take those that it meets.
        known = self.found.slots.setdefault((name, dim), labels)
        if known is not labels:
            self.equate(known, labels)
        self.found.seen.add(name)
        self.role((name, dim), role)
        return True

    def value(self, tensor: torch.Tensor) -> np.ndarray[Any, Any] | None:
        """What a constant holds, where that is known."""
        real = self.values.get(id(tensor), tensor)
        return None if real.is_meta or self.flow(tensor).layers else real.detach().cpu().numpy()

    def role(self, slot: Slot | None, role: Role) -> None:
        if slot is None:
            return
        known = self.found.roles.get(slot)
        # What makes and reads is masked where it makes; a statistic is only ever cut.
        if known is None or (known, role) == ("consumer", "producer"):
            self.found.roles[slot] = role

    def equate(self, left: Labels, right: Labels) -> None:
        self.found.equalities.append((left.reshape(-1), right.reshape(-1)))

    def protect(self, labels: Labels, reason: str) -> None:
        self.found.protections.append((labels.reshape(-1), reason))

    def rectangle(self, labels: Labels) -> None:
        self.found.rectangles.append(labels)

    def altered(self, labels: Labels, reason: str) -> None:
        self.found.altered.append((labels.reshape(-1), reason))

    def spend(self, macs: float, *factors: Labels) -> None:
        self.found.costs.append((float(macs), factors))

    def unknown(self, call: Call, reason: str = "") -> Flow:
        reason = f"{reason} in {call.name}" if reason else f"unknown operator {call.name}"
        for tensor in tensors((call.args, call.kwargs)):
            flow = self.flow(tensor)
            if flow.layers:
                self.found.unknown[call.name] = None
            for layer in flow.layers:
                self.role(layer.slot, "producer")
                self.protect(layer.labels, reason)
        return Flow((), reason)


def given(args: Any, kwargs: Any) -> list[torch.Tensor]:
    """The tensors among an operator's arguments, which lists hold at one depth only."""
    found = []
    for value in args:
        if isinstance(value, torch.Tensor):
            found.append(value)
        elif isinstance(value, list | tuple):
            found += [item for item in value if isinstance(item, torch.Tensor)]
    return found + given(kwargs.values(), None) if kwargs else found


def numbers(to: Route, args: Any, kwargs: Any) -> tuple[float, ...]:
    """The plain numbers that an operator computes with, none of which may follow a size.

    Whole ones are sizes, places and counts where an operator is not pointwise; of a group norm it is the channels of a
    group that stay.
    """
    given = [*args, *kwargs.values()] if kwargs else args
    found = [a for a in given if type(a) is float or (to.whole and type(a) is int)]
    if to.name == "aten.native_group_norm" and args[6] > 1:
        found.append(args[4] // args[6])
    return tuple(found)


def module_path(model: nn.Module) -> str:
    """Path of the innermost module whose method is running, "" where there is none."""
    paths = {id(module): path for path, module in model.named_modules()}
    frame = sys._getframe(1)
    while frame is not None:
        own = frame.f_locals.get("self")
        if id(own) in paths and isinstance(own, nn.Module):
            return paths[id(own)]
        frame = frame.f_back  # type: ignore[assignment]
    return ""
