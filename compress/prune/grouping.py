"""Group labels into units: equal labels are one unit, what is split into rectangles stays rectangular."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from compress.prune.architecture import shapes_hash
from compress.prune.attributes import attributes
from compress.prune.dispatch import Observations
from compress.prune.labels import Labels, Slot, shrink
from compress.prune.liveness import activations
from compress.prune.rules import CONSTANT
from compress.prune.sizes import Holders, Patch
from compress.prune.units import Attribute, Cost, Group, Trace, components, groups_of

HOLDING = frozenset((CONSTANT,))
"""Alterations for which channels have to stay; others are proved against a reference that makes them too."""

Units = npt.NDArray[np.int64]


@dataclass(frozen=True)
class TracedNetwork:
    """What grouping reads from the network itself.

    Args:
        modules: those from which sizes are read, substitutes in place, by all their paths.
        tensors: its parameters and buffers by name.
        tied: other name of a parameter -> the name under which its slots are kept.
        substitutions: module -> the class of ``compress.prune.attention`` that takes its place.
        heads: what goes of an attention, ``whole`` heads or ``dims`` of every head.
    """

    modules: dict[str, nn.Module]
    tensors: dict[str, torch.Tensor]
    tied: dict[str, str]
    substitutions: dict[str, str]
    heads: str


@dataclass
class Choices:
    """What trial cuts have taught.

    Args:
        axis: rectangle -> how many of its axes were tried in vain; the last axis is tried first.
        held: labels that have to stay, with the reason.
        patches: sizes that the user's modules keep as numbers.
        ties: channels of two places, one by one, of which there have to be as many.
    """

    axis: dict[int, int] = field(default_factory=dict)
    held: list[tuple[Labels, str]] = field(default_factory=list)
    patches: list[Patch] = field(default_factory=list)
    ties: list[tuple[Labels, Labels]] = field(default_factory=list)

    def key(self) -> Hashable:
        """The same for the same choices; what is held is only ever added to."""
        return self.units_key(), frozenset((*patch.key, patch.labels.tobytes()) for patch in self.patches)

    def units_key(self) -> Hashable:
        """The same for choices that give the same units: patches only add sizes that follow them."""
        ties = frozenset((a.tobytes(), b.tobytes()) for a, b in self.ties)
        return frozenset(self.axis.items()), len(self.held), ties


@dataclass(frozen=True)
class Grouping:
    """A trace, the unit of each label, and which units each rectangle ties."""

    trace: Trace
    unit_of: Units
    ties: dict[int, Units]

    @cached_property
    def first(self) -> Units:
        """The first label of each unit."""
        first = np.empty(self.trace.units, dtype=np.int64)
        # Of those written to one place the last stays.
        first[self.unit_of[::-1]] = np.arange(len(self.unit_of))[::-1]
        return first

    @cached_property
    def holders(self) -> Holders:
        """The slots that hold its units."""
        return Holders(self.trace.slots, self.trace.units)

    @cached_property
    def sized(self) -> dict[int, tuple[Patch, Attribute]]:
        """The attribute of each patch that these units were given."""
        return {}

    def touching(self, units: Units) -> npt.NDArray[np.bool_]:
        """True for each of the trace's units that is one of ``units``."""
        mask = np.zeros(self.trace.units, dtype=bool)
        mask[units] = True
        return mask

    def patched(self, patches: Sequence[Patch]) -> Grouping:
        """The same units, with further sizes that follow them."""
        trace = self.trace
        own = []
        for patch in patches:
            if id(patch) not in self.sized:
                self.sized[id(patch)] = patch, patch.attribute(self.unit_of, self.holders)
            own.append(self.sized[id(patch)][1])
        return replace(self, trace=replace(trace, attributes=(*trace.attributes, *own)))


def group_units(network: TracedNetwork, observed: Observations, choices: Choices) -> Grouping:
    """Units, groups and protections from what passes have shown and trial cuts have taught, all but the patches."""
    unit_of, ties = _units(observed, choices)
    count = int(unit_of.max()) + 1 if len(unit_of) else 0
    # Slots that share their labels share their units.
    distinct = {id(labels): labels for labels in observed.slots.values()}
    distinct |= {id(labels): labels for _, factors in observed.costs for labels in factors}
    units_of = {key: unit_of[labels] for key, labels in distinct.items()}
    slots = {slot: units_of[id(labels)] for slot, labels in observed.slots.items() if slot in observed.roles}
    produced, preserving = np.zeros(count, dtype=bool), np.ones(count, dtype=bool)
    for slot, units in slots.items():
        if observed.roles[slot] == "producer":
            produced[units] = True
    for labels, _ in observed.altered:
        preserving[unit_of[labels]] = False
    groups, protected, stay = _protected(observed, choices, unit_of, slots, produced)
    trace = Trace(
        architecture=shapes_hash(network.tensors),
        units=count,
        slots=slots,
        roles={slot: observed.roles[slot] for slot in slots},
        groups=groups,
        protected=protected,
        protected_units=stay | ~produced,
        preserving=preserving,
        unknown_ops=tuple(observed.unknown),
        costs=tuple(Cost(macs, tuple(units_of[id(labels)] for labels in factors)) for macs, factors in observed.costs),
        attributes=tuple(attributes(network.modules, slots, network.tied, network.heads)),
        parameters={name: tuple(tensor.shape) for name, tensor in network.tensors.items()},
        tied=network.tied,
        substitutions=network.substitutions,
        buffers=frozenset(
            f"{path}.{name}" if path else name
            for path, module in network.modules.items()
            for name, buffer in module._buffers.items()
            if buffer is not None
        ),
        activations=activations(observed.passes[0], unit_of, observed.images) if observed.passes else (),
    )
    return Grouping(trace, unit_of, ties)


def _units(observed: Observations, choices: Choices) -> tuple[Units, dict[int, Units]]:
    """The unit of each label, and which units each rectangle ties."""
    empty = np.empty(0, np.int64)
    equal = [*observed.equalities, *choices.ties]
    left = np.concatenate([empty, *(a for a, _ in equal)])
    right = np.concatenate([empty, *(b for _, b in equal)])
    unit_of = components(observed.count, left, right)
    imposed: dict[int, Labels] = {}
    # What one rectangle ties can make another one whole, or uneven; a few rounds settle it.
    for _ in range(4):
        more = _rectangles(observed, choices, unit_of, imposed)
        if not more:
            break
        left = np.concatenate([left, *(a for a, _ in more)])
        right = np.concatenate([right, *(b for _, b in more)])
        unit_of = components(observed.count, left, right)
    return unit_of, {k: np.unique(unit_of[labels]) for k, labels in imposed.items()}


def _protected(
    observed: Observations,
    choices: Choices,
    unit_of: Units,
    slots: dict[Slot, Units],
    produced: npt.NDArray[np.bool_],
) -> tuple[tuple[Group, ...], dict[str, str], npt.NDArray[np.bool_]]:
    """The free groups, why each other slot stays, and for each unit whether it stays for a reason."""
    reasons, reason_of = _reasons(observed, choices, unit_of, len(produced))
    stay = reason_of >= 0
    groups = []
    for group in groups_of(slots, observed.roles, ~stay & produced):
        if len(group.units) > 1:
            groups.append(group)
            continue
        # A network cannot lose the only channel that it has in a place.
        reason_of[group.units] = len(reasons)
        stay[group.units] = True
    reasons.append("its channels only go all together")
    protected = {}
    # Slots that hold the same units are one array, looked at once.
    why: dict[int, str] = {}
    for slot, units in slots.items():
        if id(units) not in why:
            held = np.unique(reason_of[units]) if stay[units].any() else ()
            why[id(units)] = "; ".join(sorted(reasons[k] for k in held if k >= 0))
        if why[id(units)]:
            protected[f"{slot[0]}:{slot[1]}"] = why[id(units)]
    return tuple(groups), protected, stay


def _reasons(observed: Observations, choices: Choices, unit_of: Units, count: int) -> tuple[list[str], Units]:
    """All reasons, and the first one that holds for each unit, -1 where none does."""
    numbers: dict[str, int] = {}
    reason_of = np.full(count, -1, dtype=np.int64)
    constants = [(labels, reason) for labels, reason in observed.altered if reason in HOLDING]
    for labels, reason in reversed([*observed.protections, *choices.held, *constants]):
        reason_of[unit_of[labels]] = numbers.setdefault(reason, len(numbers))
    return list(numbers), reason_of


def _rectangles(
    observed: Observations, choices: Choices, unit_of: Units, imposed: dict[int, Labels]
) -> list[tuple[Labels, Labels]]:
    """Equalities for each rectangle whose units change along more than one of its axes."""
    more = []
    for k, labels in enumerate(observed.rectangles):
        tried = choices.axis.get(k, 0)
        units = shrink(unit_of[labels])
        if k in imposed or tried >= labels.ndim or sum(n > 1 for n in units.shape) <= 1:
            continue
        imposed[k] = labels.reshape(-1)
        axis = labels.ndim - 1 - tried
        first = labels[tuple(slice(None) if d == axis else slice(0, 1) for d in range(labels.ndim))]
        more.append((labels.reshape(-1), np.broadcast_to(first, labels.shape).reshape(-1)))
    return more
