"""Units, groups and the trace: frozen data that holds names, never modules."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase

import numpy as np
import numpy.typing as npt
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

Slot = tuple[str, int]
"""A parameter or buffer by name, and one of its dimensions."""

Role = str
"""`producer` (its rows make the channel), `consumer` (its columns read it) or `statistic` (a variance)."""


@dataclass(frozen=True)
class Group:
    """Units that occupy the same slots, such as the channels of a residual stage.

    Args:
        name: the module of its first producer.
        units: ids of its units, in channel order.
        slots: the slots that its units occupy.
    """

    name: str
    units: npt.NDArray[np.int64]
    slots: tuple[Slot, ...]


@dataclass(frozen=True)
class Cost:
    """One multiply-accumulate operator: MACs = coefficient x kept(weight dim 0) x kept(weight dim 1)."""

    weight: str
    coefficient: float


@dataclass(frozen=True)
class Attribute:
    """A size that a module keeps as a number and that surgery has to patch.

    Its new value is the kept length of `slot` times `factor`, divided by `divisor`.
    """

    module: str
    name: str
    value: int
    slot: Slot
    factor: int = 1
    divisor: int = 1


@dataclass(frozen=True)
class Trace:
    """One forward pass seen as channels.

    Args:
        architecture: SHA-256 of the names and shapes that the trace was taken from.
        units: number of units, the sets of channels that live or die together.
        slots: slot -> unit id per index; -1 where the index belongs to no unit.
        roles: slot -> role.
        groups: free groups, in the order of the forward pass.
        protected: slot as `name:dim` -> reason, for each slot with channels that must stay.
        protected_units: True for each unit that must stay.
        preserving: False for each unit whose removal is not the same as masking it.
        unknown_ops: operators without a rule, by name; the channels that reach them are protected.
        costs: the multiply-accumulate operators.
        attributes: sizes to patch.
        parameters: name -> shape of each parameter (buffers not among them).
        tied: other name of a parameter -> the name under which its slots are kept.
    """

    architecture: str
    units: int
    slots: Mapping[Slot, npt.NDArray[np.int64]]
    roles: Mapping[Slot, Role]
    groups: tuple[Group, ...]
    protected: Mapping[str, str]
    protected_units: npt.NDArray[np.bool_]
    preserving: npt.NDArray[np.bool_]
    unknown_ops: tuple[str, ...]
    costs: tuple[Cost, ...]
    attributes: tuple[Attribute, ...]
    parameters: Mapping[str, tuple[int, ...]]
    tied: Mapping[str, str] = field(default_factory=dict)

    def kept_sizes(self, kept: npt.NDArray[np.bool_]) -> dict[Slot, int]:
        """Length of each slot when only the units in `kept` (bool, one a unit) stay."""
        padded = np.append(kept, True)
        return {slot: int(padded[units].sum()) for slot, units in self.slots.items()}

    def macs(self, kept: npt.NDArray[np.bool_]) -> float:
        """Multiply-accumulates of one forward pass when only the units in `kept` stay."""
        sizes = self.kept_sizes(kept)
        total = 0.0
        for cost in self.costs:
            shape = self.parameters[cost.weight]
            n0 = sizes.get((cost.weight, 0), shape[0])
            n1 = sizes.get((cost.weight, 1), shape[1])
            total += cost.coefficient * n0 * n1
        return total


def protect(trace: Trace, patterns: Sequence[str], reason: str = "the user's choice") -> Trace:
    """The same trace, with every group protected that touches a parameter matching one of `patterns` (`*`)."""
    held = {name for name, _ in trace.slots if any(fnmatchcase(name, pattern) for pattern in patterns)}
    stay = [g for g in trace.groups if any(name in held for name, _ in g.slots)]
    units = trace.protected_units.copy()
    reasons = dict(trace.protected)
    for group in stay:
        units[group.units] = True
        for name, dim in group.slots:
            reasons.setdefault(f"{name}:{dim}", reason)
    free = tuple(g for g in trace.groups if not units[g.units].any())
    return replace(trace, groups=free, protected=reasons, protected_units=units)


def components(count: int, left: npt.NDArray[np.int64], right: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Component id of each of `count` labels under the equalities left[i] == right[i]."""
    graph = coo_array((np.ones(len(left), dtype=np.int8), (left, right)), shape=(count, count))
    return connected_components(graph, directed=False)[1].astype(np.int64)


def group_units(
    slots: Mapping[Slot, npt.NDArray[np.int64]],
    roles: Mapping[Slot, Role],
    free: npt.NDArray[np.bool_],
) -> tuple[Group, ...]:
    """Gathers the free units that occupy the same slots."""
    # Equal sums of one random 64-bit number a slot mean equal sets of slots.
    numbers = np.random.default_rng(0).integers(1, 2**63 - 1, size=len(slots), dtype=np.uint64)
    signature = np.zeros(len(free), dtype=np.uint64)
    first = np.full(len(free), len(slots), dtype=np.int64)
    for k, units in enumerate(slots.values()):
        present = np.unique(units[units >= 0])
        signature[present] += numbers[k]
        first[present] = np.minimum(first[present], k)
    ids = np.flatnonzero(free)
    order = list(slots)
    groups: list[Group] = []
    _, inverse = np.unique(signature[ids], return_inverse=True)
    for g in range(int(inverse.max()) + 1 if len(ids) else 0):
        units = ids[inverse == g]
        members = tuple(s for s in order if bool((slots[s] == units[0]).any()))
        producer = next((s for s in members if roles[s] == "producer"), members[0])
        groups.append(Group(producer[0].rsplit(".", 1)[0], units, members))
    return tuple(sorted(groups, key=lambda group: int(first[group.units[0]])))
