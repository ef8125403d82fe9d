"""What a rule is: the call that it is given, what it may tell the tracer, and the steps that many rules share."""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass, is_dataclass
from typing import Any, Protocol

import numpy as np
import torch

from compress.prune.labels import Flow, Labels, Layer, Slot

Role = str
"""``producer`` (its rows make the channel), ``consumer`` (its columns read it), ``shut`` (its columns read it where a
masked channel is a constant: a proof masks them too) or ``statistic`` (a variance)."""

CONSTANT = "a masked channel becomes a constant on the way"
SHUT = f"{CONSTANT}, which weights read"
"""Why a unit that goes alters more than its mask does; the channels of the second kind are free nevertheless."""

READERS = ("consumer", "shut")
"""The roles of a dimension that reads channels."""


@dataclass(slots=True, eq=False)
class Call:
    """One operator call: its arguments by position and by name, and its output. Never changed."""

    name: str
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    out: Any

    def arg(self, place: int, name: str = "", default: Any = None) -> Any:
        if place < len(self.args):
            return self.args[place]
        return self.kwargs.get(name, default)


class Labeller(Protocol):
    """What a rule may do: the tracer's side of the table."""

    heads: str
    """What goes of an attention: ``whole`` heads, or the same ``dims`` in every head."""

    def flow(self, tensor: Any) -> Flow: ...
    def fresh(self, size: int) -> Labels: ...
    def own(self, tensor: torch.Tensor, dim: int, role: Role) -> Labels | None: ...
    def tie(self, tensor: torch.Tensor, dim: int, labels: Labels, role: Role) -> bool: ...
    def value(self, tensor: torch.Tensor) -> np.ndarray[Any, Any] | None: ...
    def role(self, slot: Slot | None, role: Role) -> None: ...
    def equate(self, left: Labels, right: Labels) -> None: ...
    def protect(self, labels: Labels, reason: str) -> None: ...
    def rectangle(self, labels: Labels, loose: bool = False) -> None: ...
    def altered(self, labels: Labels, reason: str) -> None: ...
    def keeps(self, number: int) -> bool: ...
    def spend(self, macs: float, *factors: Labels) -> None: ...
    def unknown(self, call: Call, reason: str = "") -> Flow: ...


Rule = Callable[[Labeller, Call], Any]


def tensors(values: Any) -> list[torch.Tensor]:
    """All tensors in nested tuples, lists, dictionaries and dataclasses."""
    if isinstance(values, torch.Tensor):
        return [values]
    if isinstance(values, list | tuple):
        return [t for v in values for t in tensors(v)]
    if isinstance(values, Mapping):
        return [t for v in values.values() for t in tensors(v)]
    if is_dataclass(values) and not isinstance(values, type):
        return [t for v in vars(values).values() for t in tensors(v)]
    return []


def named(rule: Rule, names: str) -> dict[str, Rule]:
    """One rule under several ATen names."""
    return {f"aten.{name}": rule for name in names.split()}


def dim_of(call: Call, place: int, ndim: int, default: int = 0, name: str = "dim") -> int:
    """A dimension argument, counted from the front."""
    return int(call.arg(place, name, default)) % max(ndim, 1)


def plain(flow: Flow, dim: int) -> Layer | None:
    """The only layer of an activation whose channels are along one dimension; None for any other flow."""
    if len(flow.layers) == 1:
        layer = flow.layers[0]
        if layer.slot is None and layer.dims == (dim,):
            return layer
    return None


def collapse(tracer: Labeller, layer: Layer, dims: Sequence[int]) -> Layer:
    """The layer with its labels along ``dims`` made equal: those channels live or die together."""
    dims = [d for d in dims if layer.over(d)]
    if not dims:
        return layer
    index = tuple(slice(0, 1) if d in dims else slice(None) for d in range(layer.labels.ndim))
    first = layer.labels[index]
    tracer.equate(layer.labels, np.broadcast_to(first, layer.labels.shape))
    return Layer(first, layer.zero)


def channel(tracer: Labeller, flow: Flow, dim: int, across: Container[int] = ()) -> tuple[Layer | None, list[Layer]]:
    """The layer along one dimension, and the layers that do not touch it.

    The layer is made the same wherever else it changes, but for the dimensions in ``across``.
    """
    own: Layer | None = None
    others = []
    for layer in flow.layers:
        if not layer.over(dim):
            others.append(layer)
            continue
        same = collapse(tracer, layer, [d for d in layer.dims if d != dim and d not in across])
        if own is not None:
            tracer.equate(*np.broadcast_arrays(own.labels, same.labels))
        own = own or same
    return own, others


def protect_flow(tracer: Labeller, flow: Flow, reason: str) -> None:
    for layer in flow.layers:
        tracer.protect(layer.labels, reason)


def meet(
    tracer: Labeller, operands: Sequence[tuple[Flow, Sequence[int]]], ndim: int, zero: Callable[[list[bool]], bool]
) -> tuple[Layer, ...]:
    """The layers of y[i] = f(a[i], b[i], ...) with broadcasting: channels that meet are equal.

    Args:
        operands: flow and shape of each.
        ndim: dimensions of the result.
        zero: whether y is zero, from whether each operand is.
    """
    sides = []
    for flow, shape in operands:
        pad = ndim - len(shape)
        wide = (1,) * pad
        layers = [
            layer if not pad else Layer(layer.labels.reshape(wide + layer.labels.shape), layer.zero, layer.slot)
            for layer in flow.layers
        ]
        sides.append((layers, (*wide, *shape), flow))
    merged: list[tuple[Layer, list[bool]]] = []
    for side, (layers, _, _) in enumerate(sides):
        mine: set[int] = set()
        for whole in layers:
            tracer.role(whole.slot, "producer")
            layer = _unblocked(tracer, whole, sides, side)
            if layer.labels.size == 1:
                continue
            for k, (other, zeros) in enumerate(merged):
                shared = [d for d in layer.dims if other.over(d)]
                # A kernel laid out in a row has columns and positions along one dimension, which do not meet.
                if shared and not (k in mine and layer.dims == other.dims):
                    tracer.equate(*np.broadcast_arrays(layer.labels, other.labels))
                    zeros[side] = layer.zero
                    if len(shared) < len(other.dims):
                        index = tuple(slice(None) if d in shared else slice(0, 1) for d in range(ndim))
                        merged[k] = (Layer(other.labels[index], other.zero), zeros)
                    break
            else:
                zeros = [flow.blank for _, _, flow in sides]
                zeros[side] = layer.zero
                mine.add(len(merged))
                merged.append((layer, zeros))
    return tuple(Layer(layer.labels, zero(zeros)) for layer, zeros in merged)


def _unblocked(tracer: Labeller, layer: Layer, sides: Sequence[tuple[list[Layer], Any, Flow]], own: int) -> Layer:
    """An operand with a size but no channels along a dimension cannot lose any there; nor can what meets it."""
    for k, (layers, shape, flow) in enumerate(sides):
        if k == own or flow.uniform:
            continue
        blocked = [d for d in layer.dims if shape[d] > 1 and not any(other.over(d) for other in layers)]
        if not blocked:
            continue
        if len(blocked) == len(layer.dims):
            tracer.protect(layer.labels, f"meets {flow.origin or 'positions that are not channels'}")
            return Layer(layer.labels[tuple(slice(0, 1) for _ in layer.labels.shape)])
        layer = collapse(tracer, layer, blocked)
    return layer
