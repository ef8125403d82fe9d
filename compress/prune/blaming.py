"""Cuts of a network that are tried, and who is to blame where it then no longer does what the whole one does."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from compress.errors import said_by
from compress.prune.attributes import set_size
from compress.prune.culprits import Culprits
from compress.prune.dispatch import Observations
from compress.prune.frames import failing
from compress.prune.grouping import Grouping
from compress.prune.passes import Passes
from compress.prune.picks import shifts
from compress.prune.trial import ANOTHER_WAY, Blame, Reshapes, StoppedError, TrialDispatch
from compress.prune.units import Group, Trace

TRIALS = 120
"""The number of cuts that a trace may try to find what a size follows."""

CLOSING = 40
"""Further cuts, by which it protects what still fails; whatever fails after them is protected as a whole."""


Sizes = tuple[tuple[str, str, int], ...]
"""Modules, the sizes that they keep by name, and what these become."""


@dataclass
class Verdict:
    """What was found of a grouping, which stays true of it.

    Args:
        shifts: whether its cuts may move what the code picks by position; None until that is asked.
        passed: whether all of its groups can be cut; None until that is asked.
        failure: what goes wrong in the first cut that fails, once somebody to blame is sought.
        blames: what of that holds something free, or is found to fail alone; None until that is asked.
    """

    shifts: bool | None = None
    passed: bool | None = None
    failure: list[Blame] | None = None
    blames: list[Blame] | None = None


@dataclass
class Trials:
    """Cuts that are tried of one network.

    Args:
        network: the passes over it.
        observed: what those over the whole network have shown.
        left: how many cuts may still be tried; fewer than none are those that only protect.
    """

    network: Passes
    observed: Observations
    left: int = TRIALS
    _verdicts: dict[int, tuple[Grouping, Verdict]] = field(default_factory=dict)
    _stops: bool = True
    _passed: dict[tuple[bytes, Sizes], list[npt.NDArray[np.int64]]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._culprits = Culprits(self._blamed, lambda: self.left <= 0)

    def forget(self, grouping: Grouping) -> None:
        """Drop what was found of a grouping."""
        self._verdicts.pop(id(grouping), None)

    def _verdict(self, grouping: Grouping) -> Verdict:
        return self._verdicts.setdefault(id(grouping), (grouping, Verdict()))[1]

    def blames(self, grouping: Grouping) -> list[Blame]:
        """What goes wrong when all groups are cut, of what is still free."""
        verdict = self._verdict(grouping)
        if verdict.blames is None:
            verdict.blames = self._blamed(grouping, list(grouping.trace.groups))
        return verdict.blames

    def _blamed(self, grouping: Grouping, groups: list[Group]) -> list[Blame]:
        """What goes wrong when ``groups`` are cut in a few uneven ways."""
        if self.left <= -CLOSING:
            units = np.concatenate([group.units for group in groups])
            return [Blame(units, "fixed size: too many fixed sizes to tell them apart", -1, "")]
        self.left -= 1
        blames = self._failure(grouping, groups)
        return [] if blames is None else self._culprits.of(grouping, groups, blames)

    def _shifts(self, grouping: Grouping) -> bool:
        """Whether the code picks by position what a cut may move."""
        verdict = self._verdict(grouping)
        if verdict.shifts is None:
            verdict.shifts = shifts(self.observed.picks, grouping.unit_of, ~grouping.trace.protected_units)
        return verdict.shifts

    def passes(self, grouping: Grouping) -> bool:
        """Whether all groups can be cut; nobody is sought where they cannot."""
        verdict = self._verdict(grouping)
        if verdict.passed is None:
            every = uneven(grouping.trace, list(grouping.trace.groups), self._shifts(grouping))
            verdict.passed = all(self.tried(grouping, kept, hasty=True)[0] for kept in every)
        return verdict.passed

    def _failure(self, grouping: Grouping, groups: list[Group]) -> list[Blame] | None:
        """What goes wrong in the first of the uneven cuts of ``groups`` that fails; None where none does."""
        everything, verdict = len(groups) == len(grouping.trace.groups), self._verdict(grouping)
        if everything and (verdict.passed or verdict.failure is not None):
            return verdict.failure
        found = None
        for kept in uneven(grouping.trace, groups, self._shifts(grouping)):
            passed, blames = self.tried(grouping, kept)
            if not passed:
                found = blames
                break
        if everything:
            verdict.passed, verdict.failure = found is None, found
        return found

    def tried(self, grouping: Grouping, kept: npt.NDArray[np.bool_], hasty: bool = False) -> tuple[bool, list[Blame]]:
        """Whether a cut network does what the whole one does, and what goes wrong where it does not.

        Who is to blame is found out unless it is ``hasty``.
        """
        found = grouping.trace
        cut: dict[str, dict[int, Any]] = {}
        # Slots that hold the same units are one array, looked at once.
        stays = {key: np.flatnonzero(kept[units]) for key, units in {id(u): u for u in found.slots.values()}.items()}
        sizes = {slot: len(stays[id(units)]) for slot, units in found.slots.items()}
        patched = [(a, after) for a in found.attributes if (after := a.after(kept, sizes)) != a.value]
        alike = self._passed.setdefault((kept.tobytes(), tuple((a.module, a.name, after) for a, after in patched)), [])
        if any(np.array_equal(units, grouping.unit_of) for units in alike):
            return True, []
        for (name, dim), units in found.slots.items():
            if len(stays[id(units)]) < len(units):
                cut.setdefault(name, {})[dim] = stays[id(units)]
        copies: dict[int, Any] = {}
        net, state = self.network.probe(cut, copies)
        for a, after in patched:
            module = copies.get(id(self.network.by_path[a.module]))
            set_size(net.get_submodule(a.module) if module is None else module, a.name, a.value, after)
        trial = TrialDispatch(state, self.observed, grouping, kept, self.network.heads, net, hasty=hasty)
        free = ~found.protected_units
        try:
            for k, calls in enumerate(self.observed.passes):
                trial.begin(calls)
                with nullcontext() if self._stops or hasty else Reshapes(trial):
                    others = k - len(self.observed.passes) + len(self.network.variants)
                    variant = self.network.variants[others] if others >= 0 else None
                    if variant is not None:
                        net.eval()
                    self.network.run(net, trial, training=k > 0 and variant is None, variant=variant)
        except StoppedError:
            pass
        except Exception as error:  # noqa: BLE001  (whatever the user's code raises, after a cut it means a fixed size)
            if hasty:
                return False, trial.blames
            if self._stops and isinstance(error, RuntimeError):
                # It may be a reshape, after which a trial can go on: that is watched for, at a cost, only from here on.
                self._stops = False
                return self.tried(grouping, kept)
            reason = f"fixed size: {said_by(error, 160)}"
            if not any(free[b.units].any() for b in trial.blames):
                trial.missing(reason, failing(net, error))
        else:
            if not trial.blames:
                alike.append(grouping.unit_of)
            return not trial.blames, trial.blames
        return False, trial.blames or [Blame(np.empty(0, np.int64), ANOTHER_WAY, trial.at, "")]


LARGE = 5
"""The smallest group about which one trial cut tells everything."""


def uneven(trace: Trace, groups: list[Group], picks: bool) -> list[npt.NDArray[np.bool_]]:
    """What stays in each trial: two trials, or more if the code picks channels by position.

    The first two channels go, the last one, and a share of the first half: halves, thirds and quarters lose different
    numbers, what is counted from the front, from the back or in strides becomes another channel, and groups that follow
    each other lose other shares. A small group loses its last channel. In the second trial each group loses a number
    from the front that those before it do not, nor, while there are others, those of its size that lost as many in the
    first. Trials for picks remove the first or last channel alone.
    """
    rng = np.random.default_rng(len(groups))
    kept, front, back, mixed = np.ones((4, trace.units), dtype=bool)
    alike: dict[int, int] = {}
    taken: set[tuple[int, int, int]] = set()
    for k, group in enumerate(groups):
        n = len(group.units)
        turn = alike[n] = alike.get(n, -1) + 1
        front[group.units[0]] = False
        back[group.units[-1]] = False
        if n >= LARGE:
            more = rng.permutation(np.arange(2, n // 2))
            kept[group.units[more[: round(_SHARES[k % len(_SHARES)] * len(more))]]] = False
            kept[group.units[[0, 1, -1]]] = False
        else:
            kept[group.units[-1]] = False
        left = int(np.count_nonzero(kept[group.units]))
        first = 1 + (turn + 3 * k) % (n - 1)
        # Small groups have few numbers to choose from: the first is kept as it comes.
        numbers = (1 + (turn + 3 * k + step) % (n - 1) for step in range(n - 1 if n >= LARGE else 0))
        gone = next((m for m in numbers if (n, left, m) not in taken), first)
        taken.add((n, left, gone))
        mixed[group.units[:gone]] = False
    return [kept, mixed, *([front, back] if picks else [])]


_SHARES = (1.0, 0.0, 0.5, 0.8, 0.25)
"""Of the channels of the first half, what one group after another loses in a trial."""
