"""The penalties at which a LASSO lets go of its coefficients, from sums of products alone."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

LOWEST = 1e-4
"""The least penalty looked at, as a share of the one at which nothing is left."""

STEP = 1.3
"""How closely a single penalty is found, as a factor."""


def penalties(table: Floats, depth: int = 12) -> Floats:
    """The largest penalty p at which each b of argmin b'Tb / 2 - b'T1 + p |b|_1 is not zero.

    The range of penalties is bisected wherever coefficients come, further where several do at once; those that still
    do are told apart by their size, and so are those that come at none.

    Args:
        table: T, symmetric, positive semidefinite; shape (units, units).
        depth: how often it is bisected.

    Returns:
        shape (units,).
    """
    wanted = table.sum(1)
    highest = float(np.abs(wanted).max(initial=0.0))
    found = np.zeros(len(table))
    if highest <= 0:
        return found
    pending: list[tuple[float, float, Floats, Floats | None, int]]
    pending = [(highest, LOWEST * highest, np.zeros(len(table)), None, depth)]
    while pending:
        high, low, at_high, known, left = pending.pop()
        at_low = descend(table, wanted, low, at_high) if known is None else known
        new = (at_low != 0) & (found == 0)
        if new.any() and (low * STEP < high or (new.sum() > 1 and left > 0)):
            middle = float(np.sqrt(high * low))
            at_middle = descend(table, wanted, middle, at_high)
            # The upper half first: what it finds has come before.
            pending += [(middle, low, at_middle, at_low, left - 1), (high, middle, at_high, at_middle, left - 1)]
            continue
        found[new] = low * (1 + 0.01 * _sizes(at_low)[new])
    late = found == 0
    found[late] = LOWEST * highest * 0.99 * _sizes(np.abs(wanted))[late]
    return found


def _sizes(values: Floats) -> Floats:
    """Absolute values as shares of the largest."""
    return np.asarray(np.abs(values) / max(float(np.abs(values).max(initial=0.0)), 1e-300))


def descend(table: Floats, wanted: Floats, penalty: float, start: Floats, sweeps: int = 50) -> Floats:
    """argmin b'Tb / 2 - b'w + p |b|_1 by coordinate descent from `start`; shape (units,)."""
    b, diagonal = start.copy(), table.diagonal()
    slope = wanted - table @ b
    for _ in range(sweeps):
        moved = 0.0
        for i in np.flatnonzero(((b != 0) | (np.abs(slope) > penalty)) & (diagonal > 0)):
            free = slope[i] + diagonal[i] * b[i]
            new = np.sign(free) * max(abs(free) - penalty, 0.0) / diagonal[i]
            step = float(new - b[i])
            if step:
                slope -= table[:, i] * step
                b[i] = new
                moved = max(moved, abs(step))
        if moved < 1e-4:
            break
    return b
