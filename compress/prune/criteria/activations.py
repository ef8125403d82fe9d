"""Criteria of activations: what is read of a unit on images, and how well the readers do without it."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from compress.prune.criteria.base import Given
from compress.prune.criteria.lasso import penalties
from compress.prune.criteria.readers import readers
from compress.prune.criteria.second_order import rising
from compress.prune.reads import ReadCall, Reads, sites, unseen


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

    def look(call: ReadCall, product: Callable[[Tensor], Tensor]) -> Tensor:
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


def _contributions(given: Given) -> list[Tensor]:
    """For each group [units, units]: sums of products of what two units add to the readers' outputs, each reader's
    divided by the sum of squares of its outputs."""
    place = torch.full((given.trace.units,), -1)
    found = []
    found_readers = readers(given)
    for group in given.trace.groups:
        units = torch.from_numpy(group.units)
        place.fill_(-1)
        place[units] = torch.arange(len(units))
        total = torch.zeros(len(units), len(units), dtype=torch.float64)
        for reader in found_readers:
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
            last = rising(last, lost)
            left[unit] = False
            gone += table[unit]
            scores[int(group.units[unit])] = last
    return scores


def regression(given: Given) -> Tensor:
    """The penalty at which a LASSO over the readers' outputs lets go of a unit (He et al., Channel Pruning for
    Accelerating Very Deep Neural Networks, 2017). They bisect the penalty until the wanted number of channels is
    left; here it is bisected until units let go one at a time, so that one score serves every number."""
    scores = given.zeros()
    for group, products in zip(given.trace.groups, _contributions(given), strict=True):
        scores[torch.from_numpy(group.units)] = torch.from_numpy(penalties(products.numpy()))
    return scores
