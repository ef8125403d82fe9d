"""Remedies: what may make a call that fails after a cut get the sizes that it should have been given."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from torch import nn

from compress.prune.dispatch import Observations
from compress.prune.grouping import Choices, Grouping
from compress.prune.labels import Labels
from compress.prune.sizes import Patch, Want, candidates
from compress.prune.trial import FOLLOWS_SIZE, Blame

MOST_TURNS = 6
"""Remedies that one failing call is tried with."""

Tie = tuple[Labels, Labels]
Remedy = tuple[list[Patch], list[Tie]]


def turns(
    modules: Mapping[str, nn.Module], grouping: Grouping, blame: Blame, tried: set[tuple[int, str, str]]
) -> list[Remedy]:
    """What may help one blame, one remedy after another.

    Sizes of the blamed module, or of the closest one around it that keeps any, are patched together and alone, and
    channels are tied if the call took the number of the ones for that of the others.

    Args:
        modules: of the network that sizes are read from, by all their paths.
        grouping: its units.
        blame: what went wrong.
        tried: what other blames of the same call have led to, which is added to.
    """
    free = ~grouping.trace.protected_units
    wants = [w for w in blame.wants if free[grouping.unit_of[w.labels]].any()]
    own = grouping.touching(blame.units)
    blamed = [g.units for g in grouping.trace.groups if own[g.units].any()]
    wants += [Want(len(units), grouping.first[units][:, None]) for units in blamed]
    path = blame.module
    while True:
        found = candidates(modules[path], path, wants, grouping.unit_of, grouping.trace) if path in modules else []
        found = [own for own in found if (blame.call, *own[0].key) not in tried]
        if found or not path:
            break
        path = path.rpartition(".")[0]
    ties = [tie for tie in blame.ties if (blame.call, "tie", str(tie[1][0])) not in tried]
    tried.update((blame.call, *own[0].key) for own in found)
    tried.update((blame.call, "tie", str(tie[1][0])) for tie in ties)
    likely = [own[0] for own in found]
    remedies: list[Remedy] = [(likely, [])] if likely else []
    if ties:
        remedies += [(likely, ties[:1]), *([([], ties[:1])] if likely else [])]
    if len(likely) > 1:
        remedies += [([patch], []) for patch in likely]
        remedies += [([p for p in likely if p is not patch], []) for patch in likely if len(likely) > 2]
    remedies += [([patch], []) for own in found for patch in own[1:3]]
    return remedies[:MOST_TURNS]


def _kind(blame: Blame, remedies: list[Remedy]) -> tuple[Any, ...]:
    """The same for what fails at one line in blocks of one kind, and may be helped by the same sizes."""
    return (blame.line, *sorted({(patch.name, patch.value) for patch in remedies[0][0]}))


def _first_tie(remedies: list[Remedy]) -> list[Tie]:
    return next((ties for _, ties in remedies if ties), [])


def shared_out(open_: list[tuple[int, list[Remedy]]]) -> list[Patch]:
    """The likeliest patches of all blames at once, where a module keeps several numbers of one size.

    The first of them follows what the first call wants, the next one what the next call wants that wants something
    else; plain trying would let all follow the first.
    """
    keys: dict[tuple[str, int], dict[tuple[str, str], None]] = {}
    wants: dict[tuple[str, int], dict[bytes, Patch]] = {}
    for _, remedies in open_:
        for patch in remedies[0][0]:
            same = patch.module, patch.value
            keys.setdefault(same, {})[patch.key] = None
            wants.setdefault(same, {}).setdefault(patch.labels.tobytes(), patch)
    if not any(len(keys[same]) > 1 and len(wants[same]) > 1 for same in keys):
        return []
    found = []
    for same, names in keys.items():
        several = list(wants[same].values())
        for k, (module, name) in enumerate(names):
            found.append(Patch(module, name, same[1], several[min(k, len(several) - 1)].labels))
    return found


VAIN = 3
"""Rounds after which remedies are no longer piled up if the first call that fails says the same after each."""

ALIKE = 2
"""Failures of one line after which its remedies are no longer tried one by one."""

ROUNDS = 6
"""Rounds in which remedies are piled up, in the hope that all of them together help."""


@dataclass
class Mender:
    """Changes the choices of a trace until nothing goes wrong any more when it is cut.

    Args:
        modules: of the network that sizes are read from, by all their paths.
        observed: what passes over it have shown.
        choices: what is changed.
        group: the grouping under the choices of the moment.
        blames: what goes wrong when all groups of a grouping are cut.
        passes: whether nothing does.
        spent: whether no more cuts may be tried; then what is blamed is protected, and nothing else is done.
        where: reason -> where it held first, which is added to.
    """

    modules: Mapping[str, nn.Module]
    observed: Observations
    choices: Choices
    group: Callable[[], Grouping]
    blames: Callable[[Grouping], list[Blame]]
    passes: Callable[[Grouping], bool]
    spent: Callable[[], bool]
    where: dict[str, str]
    tried: set[tuple[int, str, str]] = field(default_factory=set)
    cleared: Grouping | None = None
    vain: Counter[tuple[Any, ...]] = field(default_factory=Counter)

    def mend(self, grouping: Grouping, blames: list[Blame]) -> Grouping:
        """Patch a size that a module keeps, else tie a split in another way, else protect what was blamed."""
        if self.spent():
            return self._held(grouping, blames)
        # A number that is computed from a size is cured by nothing, unless something failed in its module before.
        first: dict[str, int] = {}
        for blame in blames:
            first[blame.module] = min(first.get(blame.module, blame.call), blame.call)
        numbers = [b for b in blames if b.reason == FOLLOWS_SIZE and b.call == first[b.module]]
        if numbers and len(numbers) < len(blames):
            return self._turned(grouping, numbers)
        piled = self._piled(grouping, blames)
        if piled is None:
            piled = self._patched(grouping, blames)
        return self._turned(grouping, blames) if piled is None else piled

    def _turned(self, grouping: Grouping, blames: list[Blame]) -> Grouping:
        free = ~grouping.trace.protected_units
        turned = set()
        for blame in blames:
            own = grouping.touching(blame.units[free[blame.units]])
            ties = [k for k, units in grouping.ties.items() if own[units].any()]
            turned.update(ties)
            if not ties:
                self._hold(grouping, blame)
        for k in turned:
            self.choices.axis[k] = self.choices.axis.get(k, 0) + 1
        return self.group()

    def _held(self, grouping: Grouping, blames: list[Blame]) -> Grouping:
        for blame in blames:
            self._hold(grouping, blame)
        return self.group()

    def _hold(self, grouping: Grouping, blame: Blame) -> None:
        own = grouping.touching(blame.units[~grouping.trace.protected_units[blame.units]])
        self.choices.held.append((np.flatnonzero(own[grouping.unit_of]), blame.reason))
        place = ", ".join(part for part in (blame.module, blame.line) if part)
        self.where.setdefault(blame.reason, place)

    def _piled(self, grouping: Grouping, blames: list[Blame]) -> Grouping | None:
        """All likely remedies at once, and more for what then fails: sizes first, ties where there are none left."""
        known = self.choices.patches, self.choices.ties
        remedies: list[Remedy] = []
        keys = {patch.key for patch in known[0]}
        rounds, reached = ROUNDS, min(b.call for b in blames)
        said: list[tuple[int, str]] = []
        while rounds > 0:
            rounds -= 1
            helped = [(b, found) for b in blames if (found := turns(self.modules, grouping, b, set()))]
            if not remedies and helped and all(self.vain[_kind(b, found)] >= ALIKE for b, found in helped):
                break
            open_ = [(b.call, found) for b, found in helped]
            patches = shared_out(open_) or [patch for _, found in open_ for patch in found[0][0]]
            patches = [patch for patch in patches if patch.key not in keys]
            mended = {b.call for b, _ in helped for patch in patches if patch.module == b.module}
            ties = [tie for b, found in helped if b.call not in mended for tie in _first_tie(found)]
            if self.spent() or not (patches or ties):
                break
            keys.update(patch.key for patch in patches)
            remedies.append((patches, ties))
            self._take(known, remedies)
            grouping = self.group()
            blames = self.blames(grouping)
            if not blames:
                self.cleared = grouping
                return grouping
            # Where a pass ends at the first thing that fails, one is found in each round.
            rounds += min(b.call for b in blames) > reached
            reached = max(reached, min(b.call for b in blames))
            said.append(min((b.call, b.reason) for b in blames))
            if said[-VAIN:] == said[-1:] * VAIN:
                # What is piled up for later calls does not reach the first one, and so not all can pass.
                break
        self._take(known, [])
        return None

    def _patched(self, grouping: Grouping, blames: list[Blame]) -> Grouping | None:
        """Take the sizes that blamed modules keep for what their failing calls should have been given.

        Each blame's remedies are tried in turns, all blames at once: what passes is taken.
        """
        asked = [(b, found) for b in blames if (found := turns(self.modules, grouping, b, self.tried))]
        # What did not help two blocks of a kind helps none of the others.
        kinds = {b.call: _kind(b, found) for b, found in asked}
        open_ = [(b.call, found) for b, found in asked if self.vain[kinds[b.call]] < ALIKE]
        before = {b.call for b in blames}
        accepted: list[Remedy] = []
        known = self.choices.patches, self.choices.ties
        for turn in range(max((len(found) for _, found in open_), default=0)):
            trying = [(call, found[turn]) for call, found in open_ if turn < len(found)]
            if not trying or self.spent():
                break
            self._take(known, [*accepted, *(remedy for _, remedy in trying)])
            tried = self.group()
            left = self.blames(tried)
            if not left:
                self.cleared = tried
                return tried
            calls = {b.call for b in left}
            # What fails earlier than before was broken by the patch, and what comes after was not reached.
            passed = [c for c, _ in trying if c not in calls and all(c < new for new in calls - before)]
            accepted += [remedy for call, remedy in trying if call in passed]
            open_ = [(call, found) for call, found in open_ if call not in passed]
        outer = min((b.module for b, _ in asked), key=len, default="")
        if all(f"{b.module}.".startswith(f"{outer}.") for b, _ in asked):
            # Of several modules at once one may have failed by another's fault.
            self.vain.update({kinds[call] for call, _ in open_})
        self._take(known, accepted)
        return self.group() if accepted else None

    def _take(self, known: tuple[list[Patch], list[Tie]], remedies: list[Remedy]) -> None:
        patches = {patch.key: patch for patch in known[0]}
        for own, _ in remedies:
            for patch in own:
                patches.setdefault(patch.key, patch)
        self.choices.patches = list(patches.values())
        self.choices.ties = [*known[1], *(tie for _, ties in remedies for tie in ties)]

    def loosened(self, grouping: Grouping) -> Grouping:
        """Where runs were taken to be equal, but end where a size says that is followed now, they may differ."""
        followed = np.concatenate([np.empty(0, np.int64), *(p.labels.reshape(-1) for p in self.choices.patches)])
        loose = [
            k
            for k in grouping.ties
            if k in self.observed.loose and np.isin(self.observed.rectangles[k], followed).any() and not self.spent()
        ]
        if not loose:
            return grouping
        before = dict(self.choices.axis)
        self.choices.axis.update({k: self.observed.rectangles[k].ndim for k in loose})
        tried = self.group()
        if not self.passes(tried):
            self.choices.axis = before
            return grouping
        return tried
