"""Criteria of second order: what a unit costs when what is left is solved again to make up for it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from compress.errors import PlanError
from compress.prune.criteria.base import Given
from compress.prune.criteria.readers import Reader, readers


def second_order(given: Given) -> Tensor:
    """Greedy choice where what is left makes up for what goes: the error of a reader's outputs when a unit's columns
    go and the others are solved again, from the second moments of its inputs (the surgeon of Hassibi and Stork, 1993,
    for whole columns as in ZipLM, Kurtic et al., 2023, and OSSCAR, Meng et al., 2024). A unit's score is the error of
    it and of all that went before, each reader's as a share of its outputs' sum of squares about their mean."""
    return _choice(given, [(reader, reader.matrix, None) for reader in readers(given)])


def kfac(given: Given) -> Tensor:
    """The same choice with the error of a reader's outputs weighed by what the loss says of them: the second moments
    of inputs and of the loss's slopes at the outputs, multiplied, stand for the Fisher information (K-FAC, Martens
    and Grosse, 2015; for pruning Wang et al., EigenDamage, 2019). A unit's score is what the loss rises by, to second
    order, when it and all that went before are gone and the others make up for them."""
    weighed = []
    for reader in readers(given, slopes=True):
        # W' S W sums over what the outputs' directions cost: half of a root of S goes with the weight.
        values, vectors = torch.linalg.eigh(reader.slopes / max(2 * reader.images, 1))
        root = vectors * values.clamp_min(0).sqrt().unsqueeze(1)
        weighed.append((reader, root.mT @ reader.matrix, 1.0))
    return _choice(given, weighed)


def _choice(given: Given, weights: Sequence[tuple[Reader, Tensor, float | None]]) -> Tensor:
    """Greedily, group by group: the next to go is the unit that adds least to the readers' errors together.

    Args:
        given: the units.
        weights: readers, the weights whose error counts, and what a reader's error is divided by: None for the sum of
            squares of its outputs.
    """
    scores = given.zeros()
    for group in given.trace.groups:
        units = torch.from_numpy(group.units)
        states = [s for reader, w, whole in weights if (s := _Surgeon.of(reader, w, units, whole)) is not None]
        lost = last = 0.0
        left = torch.ones(len(units), dtype=torch.bool)
        for _ in range(1 if given.trial else len(units)):
            errors = torch.stack([state.errors() for state in states]).sum(0).masked_fill(~left, torch.inf)
            unit = int(errors.argmin())
            lost += max(float(errors[unit]), 0.0)
            last = rising(last, lost)
            left[unit] = False
            for state in states:
                state.remove(unit)
            scores[units[unit]] = last
    return scores


def rising(last: float, now: float) -> float:
    """The next score of a greedy choice: what it cost, but above that of what went before."""
    return max(now, float(np.nextafter(last, np.inf)) * (1 + 1e-12) + 1e-30)


class _Surgeon:
    """One reader of one group: its weights, and the inverse of its inputs' second moments, as units go.

    Args:
        w: [groups, m, n]; columns of other units stay throughout.
        inverse: [groups, n, n].
        at: the columns of each unit, as many each: [units, columns].
        whole: what errors are divided by.
    """

    def __init__(self, w: Tensor, inverse: Tensor, at: Tensor, whole: float) -> None:
        self.w, self.inverse, self.at, self.whole = w, inverse, at, whole
        self.left = torch.ones(len(at), dtype=torch.bool)
        self.dead = torch.zeros(inverse.shape[1], dtype=torch.bool)

    @classmethod
    def of(cls, reader: Reader, w: Tensor, units: Tensor, whole: float | None) -> _Surgeon | None:
        at = [torch.nonzero(reader.columns == unit).reshape(-1) for unit in units]
        sizes = {len(columns) for columns in at}
        if sizes == {0}:
            return None
        if len(sizes) > 1:
            raise PlanError("A reader has more columns of one unit than of another; take another criterion.")
        xx = reader.moments.centred().xx / reader.moments.count
        ridge = 1e-4 * xx.diagonal(dim1=1, dim2=2).mean(1).clamp_min(1e-12)
        # What hardly moves about a large mean is rounding, and sums of that may have no inverse that means anything.
        raw = reader.moments.xx / reader.moments.count
        ridge = torch.maximum(ridge, 1e-6 * raw.diagonal(dim1=1, dim2=2).mean(1))
        xx = xx + ridge[:, None, None] * torch.eye(xx.shape[1], dtype=xx.dtype)
        if whole is None:
            whole = float(((w @ xx) * w).sum())
        return cls(w.clone(), torch.linalg.inv(xx), torch.stack(at), max(whole, 1e-30))

    def errors(self) -> Tensor:
        """What each unit costs next, divided by `whole`: tr(W_S ((H^-1)_SS)^-1 W_S^T); [units], 0 once gone."""
        left = torch.nonzero(self.left).reshape(-1)
        at = self.at[left]
        if at.shape[1] == 1:
            # A number has no need of a solver, which takes most of the time of a network of 1 x 1 convolutions.
            own = self.inverse.diagonal(dim1=1, dim2=2)[:, at[:, 0]]
            cost = (self.w[:, :, at[:, 0]].square().sum(1) / own).sum(0)
        else:
            blocks = self.inverse[:, at[:, :, None], at[:, None, :]]  # [groups, left, k, k]
            columns = self.w[:, :, at].movedim(1, -1)  # [groups, left, k, m]
            cost = (columns * torch.linalg.solve(blocks, columns)).sum((0, 2, 3))
        return cost.new_zeros(len(self.left)).index_put_((left,), cost / self.whole)

    def remove(self, unit: int) -> None:
        """Takes a unit's columns out and solves the others again."""
        at = self.at[unit]
        across = self.inverse[:, at]  # [groups, k, n]
        solved = torch.linalg.solve(across[:, :, at], across)
        # In place: a layer of thousands of columns is gone through once for each unit.
        self.w.baddbmm_(self.w[:, :, at], solved, alpha=-1)
        self.inverse.baddbmm_(across.mT.contiguous(), solved, alpha=-1)
        self.left[unit] = False
        self.dead[at] = True
        if self.dead.sum() * 4 > len(self.dead):
            self._drop()

    def _drop(self) -> None:
        """Forgets the columns that are gone, so that what is left costs less to go through."""
        stays = torch.nonzero(~self.dead).reshape(-1)
        place = torch.zeros(len(self.dead), dtype=torch.long)
        place[stays] = torch.arange(len(stays))
        self.w, self.inverse = self.w[:, :, stays], self.inverse[:, stays][:, :, stays]
        self.at, self.dead = place[self.at], torch.zeros(len(stays), dtype=torch.bool)
