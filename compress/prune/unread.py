"""Sizes that a forward pass does not read: they would go stale in a cut, and other methods of a module read them.

An exporter swaps one method for another, a block is folded after training: both read numbers that the constructor
left behind. A method that may stand in for ``forward`` is followed as one more pass; a number that only one size of its
module can be follows that; all others are reported.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import nn

from compress.prune.attributes import distinct, kept_numbers
from compress.prune.grouping import Grouping
from compress.prune.labels import Labels, Slot
from compress.prune.sizes import Patch

_WIDTHS = re.compile(
    r"(^|_)(c|ch|chs|chan|chans|channel|channels|dim|dims|width|widths|features|planes|inplanes|outplanes|hidden|embed"
    r"|inner|filters|units|nf|inp|oup)\d*(_|$)"
)
"""Names of numbers of channels; what is called a window, a stride or a number of classes is none."""

MOST_VARIANTS = 3

Variant = tuple[type, str]
"""A class and the method of it that takes the place of ``forward``."""


def variants(modules: Sequence[nn.Module]) -> list[Variant]:
    """Methods that may stand in for ``forward``: of its arguments, and reading numbers that it does not."""
    found: list[Variant] = []
    for kind in dict.fromkeys(type(module) for module in modules):
        own = getattr(kind, "forward", None)
        if kind.__module__.startswith("torch.") or own is None or not inspect.isfunction(own):
            continue
        names = {name for base in kind.__mro__ for name in vars(base) if name.startswith("forward_")}
        for name in sorted(names):
            method = getattr(kind, name)
            if not inspect.isfunction(method) or _arguments(method) != _arguments(own):
                continue
            numbers = {n.partition(".")[0] for m in modules if type(m) is kind for n, _ in kept_numbers(m)}
            if numbers & (set(method.__code__.co_names) - set(own.__code__.co_names)):
                found.append((kind, name))
    return found[:MOST_VARIANTS]


def _arguments(method: Any) -> list[str]:
    return [p.name for p in inspect.signature(method).parameters.values() if p.default is p.empty]


def unread(
    modules: Mapping[str, nn.Module], grouping: Grouping, slots: Mapping[Slot, Labels]
) -> tuple[list[Patch], list[tuple[str, str, int]]]:
    """Numbers of channels that equal a size of their module which a cut changes: those that are sure, and the rest.

    Args:
        modules: of the network that numbers are read from, by all their paths.
        grouping: its units.
        slots: labels of each slot.
    """
    trace, sure, rest = grouping.trace, [], []
    free = np.zeros(trace.units, dtype=bool)
    for group in trace.groups:
        free[group.units] = True
    known = {(a.module, a.name) for a in trace.attributes}
    # Slots that hold the same units are one array, looked at once.
    arrays = {id(units): units for units in trace.slots.values()}
    loses = {key for key, units in arrays.items() if free[units].any()}
    numbers = {
        path: own
        for path, module in distinct(modules)
        if not type(module).__module__.startswith("torch.nn")
        and (own := [n for n in kept_numbers(module) if (path, n[0]) not in known and _WIDTHS.search(n[0])])
    }
    # The slots within each module that keeps such numbers.
    inside: dict[str, list[tuple[Slot, Labels]]] = {path: [] for path in numbers}
    holders: dict[str, list[str]] = {}
    for slot, labels in slots.items():
        if id(trace.slots.get(slot)) in loses:
            layer = slot[0].rpartition(".")[0]
            if layer not in holders:
                holders[layer] = [path for path in _above(layer) if path in inside]
            for path in holders[layer]:
                inside[path].append((slot, labels))
    rows = _Rows(grouping.unit_of)
    for path, own in numbers.items():
        for name, value in own:
            choices = list(_choices(modules, name, value, inside[path], rows))
            if len(choices) == 1:
                sure.append(Patch(path, name, value, choices[0][:, None]))
            elif choices:
                rest.append((path, name, value))
    return sure, rest


def _above(path: str) -> Iterator[str]:
    """A module's path and those of all that it lies in, up to the network's own."""
    yield path
    while path:
        path = path.rpartition(".")[0]
        yield path


class _Rows:
    """What a number may follow of labels, and the units in it; asked again and again for the same."""

    def __init__(self, unit_of: npt.NDArray[np.int64]) -> None:
        self._unit_of = unit_of
        self._known: dict[tuple[int, int], tuple[bytes, Labels] | None] = {}

    def of(self, labels: Labels, value: int) -> tuple[bytes, Labels] | None:
        """The units, in order of their ids, and ``value`` labels that have them; None where there are not as many."""
        key = id(labels), value
        if key not in self._known:
            self._known[key] = self._found(labels, value)
        return self._known[key]

    def _found(self, labels: Labels, value: int) -> tuple[bytes, Labels] | None:
        if len(labels) < value:
            return None
        row = labels
        if len(labels) > value:
            first = np.unique(self._unit_of[labels], return_index=True)[1]
            if len(first) != value:
                return None
            row = labels[np.sort(first)]
        return np.sort(self._unit_of[row]).tobytes(), row


def _choices(
    modules: Mapping[str, nn.Module], name: str, value: int, own: list[tuple[Slot, Labels]], rows: _Rows
) -> Iterator[Labels]:
    """What a number may follow, each once; what layers of torch's keep under the same name comes alone."""
    alike: dict[bytes, Labels] = {}
    same: dict[bytes, Labels] = {}
    for (parameter, d), labels in own:
        found = rows.of(labels, value)
        if found is None:
            continue
        units, row = found
        alike.setdefault(units, row)
        side = ("in_channels", "in_features") if d == 1 else ("out_channels", "out_features")
        if name in side and len(labels) == value:
            layer = modules.get(parameter.rpartition(".")[0])
            if getattr(layer, name, None) == value:
                same.setdefault(units, row)
    yield from (same or alike).values()
