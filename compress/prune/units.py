"""Units, groups and the trace: frozen data that holds names, never modules."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from math import prod

import numpy as np
import numpy.typing as npt
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from compress.prune.labels import Slot
from compress.prune.rules import Role


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
    """One multiply-accumulate operator: MACs = coefficient x the number kept of each of ``factors``.

    A factor is an array of units, or rows of them that count where all units of a column are kept.
    """

    coefficient: float
    factors: tuple[npt.NDArray[np.int64], ...]


@dataclass(frozen=True)
class Activation:
    """What one operator leaves in memory: elements of one image = coefficient x the number kept of each of `factors`.

    Args:
        coefficient: see above.
        factors: arrays of units.
        born: the call that makes it.
        dies: the last call that reads it; the number of calls where none does.
    """

    coefficient: float
    factors: tuple[npt.NDArray[np.int64], ...]
    born: int
    dies: int


@dataclass(frozen=True, eq=False)
class Attribute:
    """A size that a module keeps as a number, or in a tuple of them, and that surgery has to patch.

    Its new value is the kept length of ``slot`` times ``factor``, divided by ``divisor``; the new value of a size that
    the user's code keeps is how many places of ``units`` stay.

    Args:
        module: path of the module.
        name: the attribute, and after dots where it lies in that: ``sizes.1``, ``config.width``.
        value: the size before a cut.
        slot: what the size follows, or a slot of the units that it follows.
        factor: see above.
        divisor: see above.
        units: int64 [value, any]: a place stays if any of its units does.
    """

    module: str
    name: str
    value: int
    slot: Slot
    factor: int = 1
    divisor: int = 1
    units: npt.NDArray[np.int64] | None = None

    def after(self, kept: npt.NDArray[np.bool_], sizes: Mapping[Slot, int]) -> int:
        """The size when only the units in ``kept`` stay; ``sizes`` are the slots' lengths then."""
        if self.units is not None:
            return int(np.count_nonzero(kept[self.units].any(axis=1)))
        return sizes[self.slot] * self.factor // self.divisor


@dataclass(frozen=True)
class Trace:
    """One forward pass seen as channels.

    Args:
        architecture: SHA-256 of the names and shapes that the trace was taken from.
        units: number of units, the sets of channels that live or die together.
        slots: slot -> unit id per index.
        roles: slot -> role.
        groups: free groups, in the order of the forward pass.
        protected: slot as ``name:dim`` -> reason, for each slot with channels that must stay.
        protected_units: True for each unit that must stay.
        preserving: False for each unit whose removal is masking it only if what it takes part in counts the kept
            channels alone: those under a norm over channels, and those that are read where they are a constant.
        unknown_ops: operators without a rule, by name; the channels that reach them are protected.
        costs: the multiply-accumulate operators.
        attributes: sizes to patch.
        parameters: name -> shape of each parameter and buffer.
        buffers: which of these are buffers.
        tied: other name of a parameter -> the name under which its slots are kept.
        substitutions: module -> the class of ``compress.prune.attention`` that has to take its place.
        activations: what the pass leaves in memory.
        unfollowed: module, name and value of each number that may be a size that a cut changes, and that none follows.
        where: reason -> the module and the line of code where it first held.
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
    substitutions: Mapping[str, str] = field(default_factory=dict)
    buffers: frozenset[str] = frozenset()
    activations: tuple[Activation, ...] = ()
    where: Mapping[str, str] = field(default_factory=dict)
    unfollowed: tuple[tuple[str, str, int], ...] = ()

    def __repr__(self) -> str:
        free = sum(len(group.units) for group in self.groups)
        return f"<Trace: {free} of {self.units} channels may go, in {len(self.groups)} groups>"

    def __str__(self) -> str:
        """The groups in the order of the forward pass, then what stays and why, most first."""
        free = sum(len(group.units) for group in self.groups)
        lines = [f"{free} of {self.units} channels may go, in {len(self.groups)} groups:"]
        width = max((len(group.name) for group in self.groups), default=0)
        for group in self.groups:
            of = "slot" if len(group.slots) == 1 else "slots"
            lines.append(f"  {group.name:<{width}}  {len(group.units):>5} channels, {len(group.slots)} {of}")
        held: dict[str, list[str]] = {}
        for slot, reason in self.protected.items():
            held.setdefault(reason, []).append(slot)
        lines += ["Some channels of these stay:"] if held else []
        for reason, slots in sorted(held.items(), key=lambda item: -len(item[1])):
            more = f" and {len(slots) - 3} more" if len(slots) > 3 else ""
            place = f" ({self.where[reason]})" if reason in self.where else ""
            lines.append(f"  {reason}{place}: {', '.join(slots[:3])}{more}")
        if self.unknown_ops:
            lines.append(f"Operators without a rule: {', '.join(self.unknown_ops)}")
        return "\n".join(lines)

    def kept_sizes(self, kept: npt.NDArray[np.bool_]) -> dict[Slot, int]:
        """Length of each slot when only the units in ``kept`` (bool, one per unit) stay."""
        # Slots that hold the same units are one array.
        distinct = {id(units): units for units in self.slots.values()}
        sizes = {key: int(np.count_nonzero(kept[units])) for key, units in distinct.items()}
        return {slot: sizes[id(units)] for slot, units in self.slots.items()}

    def macs(self, kept: npt.NDArray[np.bool_]) -> float:
        """Multiply-accumulates of one forward pass when only the units in ``kept`` stay."""
        total = 0.0
        # What one operator makes the next one reads: one array, counted once.
        stays: dict[int, int] = {}
        for cost in self.costs:
            macs = cost.coefficient
            for units in cost.factors:
                if id(units) not in stays:
                    own = kept[units] if units.ndim == 1 else kept[units].all(axis=0)
                    stays[id(units)] = int(np.count_nonzero(own))
                macs *= stays[id(units)]
            total += macs
        return total

    def unit_macs(self) -> npt.NDArray[np.float64]:
        """MACs that go with each unit when it goes alone; shape (units,)."""
        total = np.zeros(self.units)
        for cost in self.costs:
            sizes = [factor.shape[-1] for factor in cost.factors]
            for k, factor in enumerate(cost.factors):
                rest = cost.coefficient * prod(size for j, size in enumerate(sizes) if j != k)
                np.add.at(total, factor.reshape(-1), rest)
        return total

    def params(self, kept: npt.NDArray[np.bool_]) -> float:
        """Parameters when only the units in `kept` stay."""
        return float(sum(prod(shape) for name, shape in self._shapes(kept).items() if name not in self.buffers))

    def size(self, kept: npt.NDArray[np.bool_], width: int) -> float:
        """Bytes of parameters and buffers at `width` bytes a number; vectors take four where the rest takes one."""
        vector = 4 if width == 1 else width
        return float(sum(prod(shape) * (width if len(shape) > 1 else vector) for shape in self._shapes(kept).values()))

    def _shapes(self, kept: npt.NDArray[np.bool_]) -> dict[str, tuple[int, ...]]:
        """Shape of each tensor, once where it goes by several names, when only the units in `kept` stay."""
        sizes = self.kept_sizes(kept)
        return {
            name: tuple(sizes.get((name, d), n) for d, n in enumerate(shape))
            for name, shape in self.parameters.items()
            if name not in self.tied
        }

    def memory(self, kept: npt.NDArray[np.bool_], width: int) -> float:
        """Most bytes of activations that one image has alive at once, at `width` bytes a number, operator by operator
        as eager mode runs them, when only the units in `kept` stay."""
        if not self.activations:
            return 0.0
        change = np.zeros(2 + max(a.dies for a in self.activations))
        for a in self.activations:
            elements = a.coefficient
            for units in a.factors:
                elements *= np.count_nonzero(kept[units])
            change[a.born] += elements
            change[a.dies + 1] -= elements
        return float(np.cumsum(change).max()) * width


def protect(trace: Trace, patterns: Sequence[str] | str, reason: str = "the user's choice") -> Trace:
    """The same trace, with every group protected that touches a parameter matching one of ``patterns`` (``*``)."""
    patterns = [patterns] if isinstance(patterns, str) else patterns
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
    """Component id of each of ``count`` labels under the equalities left[i] == right[i]."""
    graph = coo_array((np.ones(len(left), dtype=np.int8), (left, right)), shape=(count, count))
    return connected_components(graph, directed=False)[1].astype(np.int64)


def groups_of(
    slots: Mapping[Slot, npt.NDArray[np.int64]], roles: Mapping[Slot, Role], free: npt.NDArray[np.bool_]
) -> tuple[Group, ...]:
    """Gather the free units that occupy the same slots into groups, in the order of the first slot of each."""
    ids = np.flatnonzero(free)
    if not len(ids):
        return ()
    order = list(slots)
    # Slots that hold the same units are one array, looked at once.
    sharing: dict[int, list[int]] = {}
    for k, units in enumerate(slots.values()):
        sharing.setdefault(id(units), []).append(k)
    shared = list(sharing.values())
    arrays = [slots[order[own[0]]] for own in shared]
    everything = np.concatenate(arrays)
    owner = np.repeat(np.arange(len(arrays)), [len(units) for units in arrays])
    # Equal sums of one random 64-bit number for each place in a slot mean equal places in equal slots.
    numbers = np.random.default_rng(0).integers(1, 2**63 - 1, size=len(arrays), dtype=np.uint64)
    signature = np.zeros(len(free), dtype=np.uint64)
    np.add.at(signature, everything, numbers[owner])
    _, first, inverse = np.unique(signature[ids], return_index=True, return_inverse=True)
    members = np.argsort(inverse, kind="stable")
    bounds = np.searchsorted(inverse[members], np.arange(len(first) + 1))
    # The slots of a group are those of its first unit.
    group_of = np.full(len(free), -1)
    group_of[ids[first]] = np.arange(len(first))
    seen = np.flatnonzero(group_of[everything] >= 0)
    pairs = np.unique(group_of[everything[seen]] * len(arrays) + owner[seen])
    start = np.searchsorted(pairs // len(arrays), np.arange(len(first) + 1))
    groups = []
    for g in range(len(first)):
        units = ids[members[bounds[g] : bounds[g + 1]]]
        places = sorted(k for pair in pairs[start[g] : start[g + 1]] for k in shared[pair % len(arrays)])
        own = [order[k] for k in places]
        producer = next((s for s in own if roles[s] == "producer"), own[0])
        name = producer[0].rpartition(".")[0] or producer[0]
        groups.append((places[0], Group(name, units, tuple(own))))
    return tuple(group for _, group in sorted(groups, key=lambda pair: (pair[0], int(pair[1].units[0]))))
