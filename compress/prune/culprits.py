"""Culprits: which groups make a cut fail where every channel that reaches the failing calls has to stay anyway."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from compress.prune.grouping import Grouping
from compress.prune.trial import Blame
from compress.prune.units import Group

Known = tuple[bytes, bytes, frozenset[int], frozenset[tuple[int, str]]]


@dataclass
class Culprits:
    """Finds them by cutting parts of the groups alone.

    Args:
        blames: what goes wrong when groups of a grouping are cut, who is to blame included.
        spent: whether no more cuts may be tried.
    """

    blames: Callable[[Grouping, list[Group]], list[Blame]]
    spent: Callable[[], bool]
    known: dict[Known, list[Blame]] = field(default_factory=dict)

    def of(self, grouping: Grouping, groups: list[Group], blames: list[Blame]) -> list[Blame]:
        """The blames that hold something free; where none does, what is found to fail alone.

        Args:
            grouping: whose units were cut.
            groups: those that were cut.
            blames: what went wrong then.
        """
        free = ~grouping.trace.protected_units
        found = [b for b in blames if free[b.units].any()]
        if found:
            return found
        # Remedies that change nothing of what fails do not change who makes it fail either.
        units = hashlib.blake2b(grouping.unit_of.tobytes()).digest(), grouping.trace.protected_units.tobytes()
        key = *units, frozenset(int(g.units[0]) for g in groups), frozenset((b.call, b.reason) for b in blames)
        if key not in self.known:
            self.known[key] = self._suspected(grouping, groups, blames) or self._parted(grouping, groups, blames)
        return self.known[key]

    def _suspected(self, grouping: Grouping, groups: list[Group], blames: list[Blame]) -> list[Blame]:
        """What goes wrong when only those groups are cut whose sizes the failing calls were given."""
        units = [np.empty(0, np.int64), *(units for blame in blames for units in blame.suspects)]
        suspected = grouping.touching(np.concatenate(units))
        suspects = [g for g in groups if suspected[g.units].any()]
        return self.blames(grouping, suspects) if 0 < len(suspects) < len(groups) and not self.spent() else []

    def _parted(self, grouping: Grouping, groups: list[Group], blames: list[Blame]) -> list[Blame]:
        """The groups that fail alone, found by bisection: the closest before the failing calls first, then the rest."""
        blame = blames[-1]
        if self.spent() and blame.module:
            # No cuts are left to tell by: what lies in the module stays.
            inside = [g for g in groups if any(name.startswith(f"{blame.module}.") for name, _ in g.slots)]
            groups = inside or groups
        if len(groups) == 1 or self.spent():
            return [Blame(g.units, blame.reason, blame.call, blame.module) for g in groups]
        found = [b for part in _parts(grouping, groups, blames) for b in self.blames(grouping, part)]
        # Parts that pass alone and fail together depend on each other: all groups stay.
        return found or [Blame(g.units, blame.reason, blame.call, blame.module) for g in groups]


def _parts(grouping: Grouping, groups: list[Group], blames: Sequence[Blame]) -> tuple[list[Group], list[Group]]:
    """The groups that lie closest before the failing calls, and the rest; halves where that tells nothing."""
    close = grouping.touching(np.concatenate([np.empty(0, np.int64), *(b.close for b in blames)]))
    near = [g for g in groups if close[g.units].any()]
    if 0 < len(near) < len(groups):
        return near, [g for g in groups if not close[g.units].any()]
    half = len(groups) // 2
    return groups[:half], groups[half:]
