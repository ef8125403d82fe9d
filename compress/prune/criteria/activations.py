"""Criteria of activations: what is read of a unit on images, and how well the readers do without it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from compress.errors import PlanError
from compress.prune.criteria.base import Given
from compress.prune.criteria.lasso import penalties
from compress.prune.moments import POSITIONS, Moments, as_matrix, rows
from compress.prune.reads import Call, Reads, sites, unseen


def apoz(given: Given) -> Tensor:
    """Share of what is read of a unit that is not zero: one minus the average percentage of zeros (Hu et al.,
    Network Trimming, 2016)."""
    return _mean_read(given, lambda x: (x != 0).double().mean(2))


def mean_activation(given: Given) -> Tensor:
    """Mean absolute value of what is read of a unit (Molchanov et al., 2017, who name it a baseline)."""
    return _mean_read(given, lambda x: x.double().abs().mean(2))


def hrank(given: Given) -> Tensor:
    """Mean rank of a unit's maps as a share of the highest that their size allows (Lin et al., HRank, 2020); of
    tokens, which have no map, the rank of the row."""
    return _mean_read(given, _ranks, flat=False)


def _ranks(x: Tensor) -> Tensor:
    maps = x if x.dim() == 4 else x.flatten(2).unsqueeze(2)
    return torch.linalg.matrix_rank(maps.double()).double() / min(maps.shape[2:])


def _mean_read(given: Given, judged: Callable[[Tensor], Tensor], flat: bool = True) -> Tensor:
    """The mean, over the reads of a unit and over images, of what `judged` says of [images, channels, ...]."""
    copy, found = given.copy(), sites(given.trace)
    total, count = given.zeros(), given.zeros()

    def look(call: Call, product: Callable[[Tensor], Tensor]) -> Tensor:
        out = product(call.x)
        for site in found[call.name]:
            x = out if site.made else call.x
            at = x.dim() + call.along
            x = x.movedim(at, 1) if at else x.unsqueeze(0)
            values = judged(x.flatten(2) if flat and x.dim() > 2 else x.unsqueeze(2) if x.dim() == 2 else x).cpu()
            units = site.channels(values.shape[1])
            total.index_add_(0, units, values.sum(0))
            count.index_add_(0, units, torch.full((len(units),), float(len(values)), dtype=torch.float64))
        return out

    weights = {name: copy.parameters[name] for name in found if name in copy.parameters}
    with torch.no_grad():
        for batch in given.batches():
            with Reads(weights, look):
                given.run(copy.network, batch)
    unseen(given.trace, count)
    return total / count.clamp_min(1)


# What readers make of a unit -----------------------------------------------------------------------------


@dataclass
class _Reader:
    """One weight that reads units: its matrix, the unit of each of its columns, and sums over its inputs."""

    matrix: Tensor
    columns: Tensor
    moments: Moments


def _readers(given: Given) -> list[_Reader]:
    """Every weight that reads units, with the moments of what it reads.

    Raises:
        PlanError: nothing of the kind reads a free unit.
    """
    copy = given.copy()
    found = {name: own[0] for name, own in sites(given.trace).items() if not own[0].made}
    readers: dict[str, _Reader] = {}

    def look(call: Call, product: Callable[[Tensor], Tensor]) -> Tensor:
        out = product(call.x)
        seen = rows(call, out, POSITIONS, given.generator)
        if seen is None:
            return out
        moments, site = Moments.of(*seen), found[call.name]
        if call.name in readers:
            readers[call.name].moments += moments
        else:
            matrix = as_matrix(call, call.weight.detach())
            columns = site.units.repeat_interleave(matrix.shape[2] // len(site.units))
            readers[call.name] = _Reader(matrix.double(), columns, moments)
        return out

    weights = {name: copy.parameters[name] for name in found if name in copy.parameters}
    with torch.no_grad():
        for batch in given.batches():
            with Reads(weights, look):
                given.run(copy.network, batch)
    seen = given.zeros()
    for reader in readers.values():
        seen[reader.columns] = 1
    unseen(given.trace, seen)
    return list(readers.values())


def _contributions(given: Given) -> list[Tensor]:
    """For each group [units, units]: sums of products of what two units add to the readers' outputs, each reader's
    divided by the sum of squares of its outputs."""
    place = torch.full((given.trace.units,), -1)
    found = []
    readers = _readers(given)
    for group in given.trace.groups:
        units = torch.from_numpy(group.units)
        place.fill_(-1)
        place[units] = torch.arange(len(units))
        total = torch.zeros(len(units), len(units), dtype=torch.float64)
        for reader in readers:
            at = place[reader.columns]
            mine = torch.nonzero(at >= 0).reshape(-1)
            if not len(mine):
                continue
            w, xx = reader.matrix, reader.moments.xx
            part = (w[:, :, mine].mT @ w[:, :, mine] * xx[:, mine][:, :, mine]).sum(0)
            whole = float(((w @ xx) * w).sum())
            summed = torch.zeros(len(units), len(mine), dtype=torch.float64).index_add_(0, at[mine], part)
            total += torch.zeros_like(total).index_add_(1, at[mine], summed) / max(whole, 1e-30)
        found.append(total)
    return found


def thinet(given: Given) -> Tensor:
    """Greedy choice of what its readers miss least (Luo et al., ThiNet, 2017): the next to go is the unit with which
    all that went add least to the readers' outputs. A unit's score is that sum of squares when it goes, as a share of
    the whole, and never below those that went before."""
    scores = given.zeros()
    for group, products in zip(given.trace.groups, _contributions(given), strict=True):
        left = np.ones(len(products), dtype=bool)
        table = products.numpy()
        gone, lost, last = np.zeros(len(table)), 0.0, 0.0
        for _ in range(len(table)):
            errors = np.where(left, lost + table.diagonal() + 2 * gone, np.inf)
            unit = int(errors.argmin())
            lost = float(errors[unit])
            last = scores_rise(last, lost)
            left[unit] = False
            gone += table[unit]
            scores[int(group.units[unit])] = last
    return scores


def scores_rise(last: float, now: float) -> float:
    """The next score of a greedy choice: what it cost, but above that of what went before."""
    return max(now, np.nextafter(last, np.inf) * (1 + 1e-12) + 1e-30)


def regression(given: Given) -> Tensor:
    """The penalty at which a LASSO over the readers' outputs lets go of a unit (He et al., Channel Pruning for
    Accelerating Very Deep Neural Networks, 2017). They bisect the penalty until the wanted number of channels is
    left; here it is bisected until units let go one at a time, so that one score serves every number."""
    scores = given.zeros()
    for group, products in zip(given.trace.groups, _contributions(given), strict=True):
        scores[torch.from_numpy(group.units)] = torch.from_numpy(penalties(products.numpy()))
    return scores


def second_order(given: Given) -> Tensor:
    """Greedy choice where what is left makes up for what goes: the error of a reader's outputs when a unit's columns
    go and the others are solved again, from the second moments of its inputs (the surgeon of Hassibi and Stork, 1993,
    for whole columns as in ZipLM, Kurtic et al., 2023, and OSSCAR, Meng et al., 2024). A unit's score is the error of
    it and of all that went before, each reader's as a share of its outputs' sum of squares about their mean."""
    readers = _readers(given)
    scores = given.zeros()
    for group in given.trace.groups:
        units = torch.from_numpy(group.units)
        states = [s for reader in readers if (s := _Surgeon.of(reader, units)) is not None]
        lost = last = 0.0
        left = torch.ones(len(units), dtype=torch.bool)
        for _ in range(len(units)):
            errors = torch.stack([state.errors() for state in states]).sum(0).masked_fill(~left, torch.inf)
            unit = int(errors.argmin())
            lost += max(float(errors[unit]), 0.0)
            last = scores_rise(last, lost)
            left[unit] = False
            for state in states:
                state.remove(unit)
            scores[units[unit]] = last
    return scores


class _Surgeon:
    """One reader of one group: its weights, and the inverse of its inputs' second moments, as units go.

    Args:
        w: [groups, m, n]; columns of other units stay throughout.
        inverse: [groups, n, n].
        at: the columns of each unit, as many each: [units, columns].
        whole: sum of squares of the reader's outputs about their mean.
    """

    def __init__(self, w: Tensor, inverse: Tensor, at: Tensor, whole: float) -> None:
        self.w, self.inverse, self.at, self.whole = w, inverse, at, whole

    @classmethod
    def of(cls, reader: _Reader, units: Tensor) -> _Surgeon | None:
        at = [torch.nonzero(reader.columns == unit).reshape(-1) for unit in units]
        sizes = {len(columns) for columns in at}
        if sizes == {0}:
            return None
        if len(sizes) > 1:
            raise PlanError("A reader has more columns of one unit than of another; take another criterion.")
        xx = reader.moments.centred().xx / reader.moments.count
        ridge = 1e-4 * xx.diagonal(dim1=1, dim2=2).mean(1).clamp_min(1e-12)
        xx = xx + ridge[:, None, None] * torch.eye(xx.shape[1], dtype=xx.dtype)
        whole = float(((reader.matrix @ xx) * reader.matrix).sum())
        return cls(reader.matrix.clone(), torch.linalg.inv(xx), torch.stack(at), max(whole, 1e-30))

    def errors(self) -> Tensor:
        """What each unit costs next, as a share of the whole: tr(W_S ((H^-1)_SS)^-1 W_S^T); [units]."""
        blocks = self.inverse[:, self.at[:, :, None], self.at[:, None, :]]  # [groups, units, k, k]
        columns = self.w[:, :, self.at].movedim(1, -1)  # [groups, units, k, m]
        # Of what is gone nothing is left to invert.
        gone = (blocks.diagonal(dim1=2, dim2=3) <= 0).any(2)
        blocks = torch.where(gone[..., None, None], torch.eye(blocks.shape[-1], dtype=blocks.dtype), blocks)
        solved = torch.linalg.solve(blocks, columns)
        return torch.where(gone, 0, (columns * solved).sum((2, 3))).sum(0) / self.whole

    def remove(self, unit: int) -> None:
        """Takes a unit's columns out and solves the others again."""
        at = self.at[unit]
        block, across = self.inverse[:, at][:, :, at], self.inverse[:, at]  # [groups, k, k], [groups, k, n]
        solved = torch.linalg.solve(block, across)
        self.w = self.w - self.w[:, :, at] @ solved
        self.inverse = self.inverse - across.mT @ solved
        self.w[:, :, at] = 0
        self.inverse[:, at] = 0
        self.inverse[:, :, at] = 0
