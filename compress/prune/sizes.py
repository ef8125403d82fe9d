"""Sizes that the user's code fixes: what a call that fails after a cut should have been given, and who may keep it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import nn

from compress.prune.attributes import kept_numbers
from compress.prune.dispatch import PAD, OpCall
from compress.prune.labels import Flow, Labels, Slot, shrink
from compress.prune.units import Attribute, Trace


@dataclass(frozen=True, eq=False)
class Want:
    """A size that a call has in the whole network, and what it follows: int64 [size, any].

    A place stays where any of its labels does.
    """

    size: int
    labels: Labels


@dataclass(frozen=True, eq=False)
class Patch:
    """A size that a module keeps under `name` and that follows `labels`, as those of a `Want`."""

    module: str
    name: str
    value: int
    labels: Labels

    @property
    def key(self) -> tuple[str, str]:
        return self.module, self.name

    def attribute(self, unit_of: npt.NDArray[np.int64], holders: Holders) -> Attribute:
        units = unit_of[self.labels]
        units = units[:, :1] if bool((units == units[:, :1]).all()) else units
        return Attribute(self.module, self.name, self.value, holders.slot_of(units[:, 0]), units=units)


class Holders:
    """Finds the slot that holds given units, in one look.

    Args:
        slots: slot -> unit id per index.
        count: the number of units.
    """

    def __init__(self, slots: Mapping[Slot, npt.NDArray[np.int64]], count: int) -> None:
        # Slots that hold the same units are one array, and of them the first counts.
        arrays: dict[int, tuple[Slot, npt.NDArray[np.int64]]] = {}
        for slot, units in slots.items():
            arrays.setdefault(id(units), (slot, units))
        self._slots = [slot for slot, _ in arrays.values()]
        self._exactly: dict[bytes, Slot] = {}
        self._first = np.full(count, len(arrays))
        for k, (slot, units) in reversed(list(enumerate(arrays.values()))):
            self._exactly[units.tobytes()] = slot
            self._first[units] = k

    def slot_of(self, units: npt.NDArray[np.int64]) -> Slot:
        """The first slot that holds exactly these units, else the first one that holds any of them."""
        exactly = self._exactly.get(units.tobytes())
        if exactly is not None:
            return exactly
        first = int(self._first[units].min())
        return self._slots[first] if first < len(self._slots) else ("", 0)


def axes(flow: Flow) -> tuple[Want, ...]:
    """Each dimension along which a tensor has channels; the same objects whenever a flow is asked for them."""
    if flow.along is None:
        flow.along = tuple(
            Want(layer.labels.shape[d], np.moveaxis(layer.labels, d, 0).reshape(layer.labels.shape[d], -1))
            for layer in flow.layers
            for d in layer.dims
        )
    return flow.along


def wanted(call: OpCall, inputs: Sequence[Flow]) -> list[Want]:
    """The sizes that a call may have been given: of what it made, of runs that it picked, of what it was fed."""
    found = [want for flow in call.flows for want in axes(flow)]
    if call.name == PAD:
        return [*_padded(call), *found, *(want for flow in inputs for want in axes(flow))]
    if call.bounds and inputs:
        for layer in inputs[0].layers:
            at = call.bounds[0] % layer.labels.ndim
            rows = np.moveaxis(layer.labels, at, 0).reshape(layer.labels.shape[at], -1)
            found += [Want(n, rows[:n]) for n in call.bounds[1:] if type(n) is int and 1 < n < len(rows)]
    return found + [want for flow in inputs for want in axes(flow)]


def _padded(call: OpCall) -> Iterator[Want]:
    """What a padding adds before and after the channels of its input."""
    for want in (want for flow in call.flows for want in axes(flow)):
        for left, right in zip(call.bounds[::2], call.bounds[1::2], strict=True):
            if 0 < left + right < want.size and min(left, right) >= 0:
                yield Want(left, want.labels[:left])
                yield Want(right, want.labels[want.size - right :])


def whole_numbers(values: Any) -> set[int]:
    """Plain integers above 1 in a nest of lists and tuples."""
    if type(values) is int:
        return {values} if values > 1 else set()
    if isinstance(values, list | tuple):
        return {n for value in values for n in whole_numbers(value)}
    return set()


def candidates(
    module: nn.Module, path: str, wants: Sequence[Want], unit_of: npt.NDArray[np.int64], trace: Trace
) -> list[list[Patch]]:
    """For each size that the module keeps and that equals a wanted one, what it may follow, likeliest first."""
    known = {(a.module, a.name) for a in trace.attributes}
    numbers = [(name, value) for name, value in kept_numbers(module) if (path, name) not in known]
    turns: dict[int, int] = {}
    found = []
    for name, value in numbers:
        distinct = _distinct([w for w in wants if w.size == value], unit_of)
        if not distinct:
            continue
        # Equal entries of one list follow one piece each, in order.
        turn = turns.get(value, 0) % len(distinct) if "." in name else 0
        turns[value] = turns.get(value, 0) + 1
        found.append([Patch(path, name, value, want.labels) for want in distinct[turn:] + distinct[:turn]])
    return found


def _distinct(wants: Sequence[Want], unit_of: npt.NDArray[np.int64]) -> list[Want]:
    seen: dict[bytes, Want] = {}
    for want in wants:
        seen.setdefault(shrink(unit_of[want.labels]).tobytes(), want)
    return list(seen.values())
