"""Sizes that a forward pass does not read: they would go stale in a cut, and other methods of a module read them.

An exporter swaps one method for another, a block is folded after training: both read numbers that the constructor
left behind. A method that may stand in for ``forward`` is followed as one more pass; a number that only one size of its
module can be follows that; all others are reported.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import nn

from compress.prune.attributes import kept_numbers
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


def variants(model: nn.Module) -> list[Variant]:
    """Methods that may stand in for ``forward``: of its arguments, and reading numbers that it does not."""
    found: list[Variant] = []
    for kind in dict.fromkeys(type(module) for module in model.modules()):
        own = getattr(kind, "forward", None)
        if kind.__module__.startswith("torch.") or own is None or not inspect.isfunction(own):
            continue
        numbers = {name.partition(".")[0] for m in model.modules() if type(m) is kind for name, _ in kept_numbers(m)}
        for name, method in inspect.getmembers(kind, inspect.isfunction):
            if not name.startswith("forward_") or _arguments(method) != _arguments(own):
                continue
            if numbers & (set(method.__code__.co_names) - set(own.__code__.co_names)):
                found.append((kind, name))
    return found[:MOST_VARIANTS]


def _arguments(method: Any) -> list[str]:
    return [p.name for p in inspect.signature(method).parameters.values() if p.default is p.empty]


def unread(
    model: nn.Module, grouping: Grouping, slots: Mapping[Slot, Labels]
) -> tuple[list[Patch], list[tuple[str, str, int]]]:
    """Numbers of channels that equal a size of their module which a cut changes: those that are sure, and the rest.

    Args:
        model: the network that numbers are read from.
        grouping: its units.
        slots: labels of each slot.
    """
    trace, sure, rest = grouping.trace, [], []
    free = np.zeros(trace.units, dtype=bool)
    for group in trace.groups:
        free[group.units] = True
    known = {(a.module, a.name) for a in trace.attributes}
    cut = {slot: labels for slot, labels in slots.items() if slot in trace.slots and free[trace.slots[slot]].any()}
    modules = dict(model.named_modules(remove_duplicate=False))
    for path, module in model.named_modules():
        if type(module).__module__.startswith("torch.nn"):
            continue
        inside = f"{path}." if path else ""
        own = [(slot, labels) for slot, labels in cut.items() if slot[0].startswith(inside)]
        for name, value in kept_numbers(module):
            if (path, name) in known or not _WIDTHS.search(name.rpartition(".")[2] if "." not in name else name):
                continue
            choices = list(_choices(modules, name, value, own, grouping.unit_of))
            if len(choices) == 1:
                sure.append(Patch(path, name, value, choices[0][:, None]))
            elif choices:
                rest.append((path, name, value))
    return sure, rest


def _choices(
    modules: Mapping[str, nn.Module],
    name: str,
    value: int,
    own: list[tuple[Slot, Labels]],
    unit_of: npt.NDArray[np.int64],
) -> Iterator[Labels]:
    """What a number may follow, each once; what layers of torch's keep under the same name comes alone."""
    alike: dict[bytes, Labels] = {}
    same: dict[bytes, Labels] = {}
    for (parameter, d), labels in own:
        units = unit_of[labels]
        distinct, first = np.unique(units, return_index=True)
        row = labels if len(labels) == value else labels[np.sort(first)] if len(distinct) == value else None
        if row is None:
            continue
        alike.setdefault(np.sort(unit_of[row]).tobytes(), row)
        layer = modules.get(parameter.rpartition(".")[0])
        side = ("in_channels", "in_features") if d == 1 else ("out_channels", "out_features")
        if name in side and getattr(layer, name, None) == value and len(labels) == value:
            same.setdefault(np.sort(unit_of[row]).tobytes(), row)
    yield from (same or alike).values()
