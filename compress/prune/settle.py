"""From labels to units: equalities make units, what is split into rectangles stays rectangular, reasons protect."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from compress.prune.attributes import attributes
from compress.prune.labels import Labels, shrink
from compress.prune.liveness import activations
from compress.prune.planning import shapes_hash
from compress.prune.units import Attribute, Cost, Trace, components, group_units
from compress.prune.watch import Found


@dataclass
class Choices:
    """What trial cuts have taught.

    Args:
        axis: rectangle -> how many of its axes were tried in vain; the last axis is tried first.
        held: labels that have to stay, with the reason.
        patches: sizes that modules of the user's keep as numbers.
    """

    axis: dict[int, int] = field(default_factory=dict)
    held: list[tuple[Labels, str]] = field(default_factory=list)
    patches: list[Attribute] = field(default_factory=list)


@dataclass(frozen=True)
class Settled:
    """A trace, the unit of each label, and which units each rectangle ties."""

    trace: Trace
    unit_of: npt.NDArray[np.int64]
    tied: dict[int, npt.NDArray[np.int64]]


def settle(
    model: nn.Module,
    tensors: dict[str, torch.Tensor],
    found: Found,
    choices: Choices,
    tied: dict[str, str],
    substitutions: dict[str, str],
    heads: str,
) -> Settled:
    """Units, groups and protections out of what was watched and what trials have taught."""
    empty = np.empty(0, np.int64)
    left = np.concatenate([empty, *(a for a, _ in found.equalities)])
    right = np.concatenate([empty, *(b for _, b in found.equalities)])
    unit_of = components(found.count, left, right)
    imposed: dict[int, npt.NDArray[np.int64]] = {}
    # What one rectangle ties can make another one whole, or uneven; a few rounds settle it.
    for _ in range(4):
        more = _rectangles(found, choices, unit_of, imposed)
        if not more:
            break
        left = np.concatenate([left, *(a for a, _ in more)])
        right = np.concatenate([right, *(b for _, b in more)])
        unit_of = components(found.count, left, right)
    ties = {k: np.unique(unit_of[labels]) for k, labels in imposed.items()}
    count = int(unit_of.max()) + 1 if len(unit_of) else 0
    # Slots that share their labels share their units.
    distinct = {id(labels): labels for labels in found.slots.values()}
    units_of = {key: unit_of[labels] for key, labels in distinct.items()}
    slots = {slot: units_of[id(labels)] for slot, labels in found.slots.items() if slot in found.roles}
    reasons, reason_of = _reasons(found, choices, unit_of, count)
    stay = reason_of >= 0
    produced, preserving = np.zeros(count, dtype=bool), np.ones(count, dtype=bool)
    for slot, units in slots.items():
        if found.roles[slot] == "producer":
            produced[units] = True
    for labels, _ in found.altered:
        preserving[unit_of[labels]] = False
    groups = []
    for group in group_units(slots, found.roles, ~stay & produced):
        if len(group.units) > 1:
            groups.append(group)
            continue
        # A network cannot lose the only channel that it has in a place.
        reason_of[group.units] = len(reasons)
        stay[group.units] = True
    reasons.append("its channels only go all together")
    protected = {}
    for slot, units in slots.items():
        if stay[units].any():
            held = np.unique(reason_of[units])
            protected[f"{slot[0]}:{slot[1]}"] = "; ".join(sorted(reasons[k] for k in held if k >= 0))
    sizes = [*attributes(model, slots, tied, heads), *choices.patches]
    trace = Trace(
        architecture=shapes_hash(tensors),
        units=count,
        slots=slots,
        roles={slot: found.roles[slot] for slot in slots},
        groups=tuple(groups),
        protected=protected,
        protected_units=stay | ~produced,
        preserving=preserving,
        unknown_ops=tuple(found.unknown),
        costs=tuple(Cost(macs, tuple(unit_of[labels] for labels in factors)) for macs, factors in found.costs),
        attributes=tuple(sizes),
        parameters={name: tuple(tensor.shape) for name, tensor in tensors.items()},
        tied=tied,
        substitutions=substitutions,
        buffers=frozenset(name for name, _ in model.named_buffers(remove_duplicate=False)),
        activations=activations(found.passes[0], unit_of, found.images) if found.passes else (),
    )
    return Settled(trace, unit_of, ties)


def _reasons(
    found: Found, choices: Choices, unit_of: npt.NDArray[np.int64], count: int
) -> tuple[list[str], npt.NDArray[np.int64]]:
    """All reasons, and the first one that holds for each unit, -1 where none does."""
    numbers: dict[str, int] = {}
    reason_of = np.full(count, -1, dtype=np.int64)
    constants = [(labels, reason) for labels, reason in found.altered if "norm over channels" not in reason]
    for labels, reason in reversed([*found.protections, *choices.held, *constants]):
        reason_of[unit_of[labels]] = numbers.setdefault(reason, len(numbers))
    return list(numbers), reason_of


def _rectangles(
    found: Found, choices: Choices, unit_of: npt.NDArray[np.int64], imposed: dict[int, npt.NDArray[np.int64]]
) -> list[tuple[Labels, Labels]]:
    """Equalities for each rectangle whose units change along more than one of its axes."""
    more = []
    for k, labels in enumerate(found.rectangles):
        tried = choices.axis.get(k, 0)
        units = shrink(unit_of[labels])
        if k in imposed or tried >= labels.ndim or sum(n > 1 for n in units.shape) <= 1:
            continue
        imposed[k] = labels.reshape(-1)
        axis = labels.ndim - 1 - tried
        first = labels[tuple(slice(None) if d == axis else slice(0, 1) for d in range(labels.ndim))]
        more.append((labels.reshape(-1), np.broadcast_to(first, labels.shape).reshape(-1)))
    return more
