"""Remedies: what may make a call that fails after a cut get the sizes that it should have been given."""

from __future__ import annotations

import numpy as np
from torch import nn

from compress.prune.grouping import Grouping
from compress.prune.labels import Labels
from compress.prune.sizes import Patch, Want, candidates
from compress.prune.trial import Blame

MOST_TURNS = 6
"""Remedies that one failing call is tried with."""

Tie = tuple[Labels, Labels]
Remedy = tuple[list[Patch], list[Tie]]


def turns(model: nn.Module, grouping: Grouping, blame: Blame, tried: set[tuple[int, str, str]]) -> list[Remedy]:
    """What may help one blame, one remedy after another.

    Sizes of the blamed module, or of the closest one around it that keeps any, are patched together and alone, and
    channels are tied if the call took the number of the ones for that of the others.

    Args:
        model: the network that sizes are read from.
        grouping: its units.
        blame: what went wrong.
        tried: what other blames of the same call have led to, which is added to.
    """
    free = ~grouping.trace.protected_units
    wants = [w for w in blame.wants if free[grouping.unit_of[w.labels]].any()]
    _, first = np.unique(grouping.unit_of, return_index=True)
    blamed = [g.units for g in grouping.trace.groups if np.isin(g.units, blame.units).any()]
    wants += [Want(len(units), first[units][:, None]) for units in blamed]
    path, modules = blame.module, dict(model.named_modules(remove_duplicate=False))
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
