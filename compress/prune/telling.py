"""Whether one trial cut tells all that more of them would: no size that it finds right could follow other channels."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from compress.prune.dispatch import Observations
from compress.prune.grouping import Grouping
from compress.prune.labels import Flow
from compress.prune.sizes import axes
from compress.prune.units import Group

SIMPLE = 12
"""The smaller of two whole numbers by whose ratio code makes one width of another, such as 8 / 3, is at most this."""


def one_tells(observed: Observations, grouping: Grouping, groups: Sequence[Group], kept: npt.NDArray[np.bool_]) -> bool:
    """Whether a size that fits the cut of ``groups`` to ``kept`` would fit any.

    A size that the code fixes shows in any cut. One that follows other channels in proportion, or rounded, shows where
    those lose another share: this is asked of every view and layer norm. No other operator may be given a size.
    """
    if observed.counted or observed.picks:
        return False
    lengths = np.asarray([(len(group.units), np.count_nonzero(kept[group.units])) for group in groups], np.int64)
    first = np.asarray([group.units[0] for group in groups], np.int64)
    return all(_only_its_own(flow, grouping, first, lengths, kept) for flow in observed.shaped)


def _only_its_own(
    flow: Flow,
    grouping: Grouping,
    first: npt.NDArray[np.int64],
    lengths: npt.NDArray[np.int64],
    kept: npt.NDArray[np.bool_],
) -> bool:
    """Whether no group but a size's own, in a simple proportion to it, has kept that, to the next whole number."""
    for axis in axes(flow):
        units = grouping.unit_of[axis.labels]
        left = int(np.count_nonzero(kept[units].any(axis=1)))
        if left == axis.size:
            continue
        others = lengths[~np.isin(first, units)]
        whole, stays = others[:, 0], others[:, 1]
        simple = np.minimum(whole, axis.size) <= SIMPLE * np.gcd(whole, axis.size)
        if bool((simple & (np.abs(stays * axis.size - whole * left) < whole)).any()):
            return False
    return True
