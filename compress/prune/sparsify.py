"""Pruning during training: a penalty, or soft zeroing, that drives whole units towards zero before they are cut.

A `Sparsifier` is asked for its penalty once in each forward pass of a training. What it has to remember lies in
buffers, so that a training that goes on from a checkpoint goes on with it too.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from compress.errors import PlanError
from compress.prune.criteria.base import normalized
from compress.prune.planning import Plan
from compress.prune.units import Slot, Trace

Kind = Literal["group_lasso", "growing", "scales", "soft"]
"""Penalties: `group_lasso`, `growing` and `scales`; `soft` zeroes and penalises nothing."""


class Sparsifier(nn.Module):
    """What drives units of a network towards zero while it is trained.

    - `group_lasso`: the Euclidean norm of all that makes a free unit, times the root of how many weights that are
      (Wen et al., Learning Structured Sparsity in Deep Neural Networks, 2016); it grows from 0 to full strength.
    - `growing`: half the squared norm of all that makes the units that are to go, with a factor that grows from 0; the
      others hear nothing of it (Wang et al., Neural Pruning via Growing Regularization, 2021, GReg-1).
    - `scales`: the absolute scales of the free units' norms, from the start (Liu et al., Learning Efficient
      Convolutional Networks through Network Slimming, 2017).
    - `soft`: at the start of each epoch the filters of the units that would go are set to zero, and go on learning (He
      et al., Soft Filter Pruning for Accelerating Deep Convolutional Neural Networks, 2018).

    What makes a unit are its filters, and the scales and offsets of its norms: a norm undoes the shrinking of a filter
    alone.

    Args:
        trace: of the network.
        kind: see above.
        planned: from scores to the plan whose dropped units are those that are to go.
        strength: of the penalty.
        calls: forward passes of the whole training.
        epoch: forward passes of an epoch.

    Raises:
        PlanError: no such kind, or no norm scales the free units.
    """

    free: Tensor
    called: Tensor
    going: Tensor

    def __init__(
        self,
        trace: Trace,
        kind: Kind,
        planned: Callable[[Tensor], Plan],
        *,
        strength: float,
        calls: int,
        epoch: int,
    ) -> None:
        super().__init__()
        if kind not in get_args(Kind):
            raise PlanError(f"No sparsifier is called '{kind}'; there are {', '.join(get_args(Kind))}.")
        self.trace, self.kind, self.planned = trace, kind, planned
        self.strength, self.calls, self.epoch = strength, calls, max(1, epoch)
        self.filters = _produced(trace, lambda shape: len(shape) > 1)
        self.scales = [s for s in _produced(trace, lambda shape: len(shape) == 1) if s[0].endswith("weight")]
        self.made = _produced(trace, lambda shape: len(shape) > 0)
        if kind == "scales" and not self.scales:
            raise PlanError("No norm scales this network's channels, as 'scales' needs; take group_lasso or growing.")
        free = torch.zeros(trace.units, dtype=torch.bool)
        for group in trace.groups:
            free[torch.from_numpy(group.units)] = True
        self.register_buffer("free", free, persistent=False)
        self.register_buffer("called", torch.zeros((), dtype=torch.int64))
        self.register_buffer("going", torch.zeros(trace.units, dtype=torch.bool))

    def forward(self, network: nn.Module) -> Tensor:
        """The penalty of one forward pass, a scalar; the passes are counted."""
        done = int(self.called)
        self.called += 1
        weights = dict(network.named_parameters(remove_duplicate=False))
        first = next(iter(weights.values()))
        if self.kind == "scales":
            sums = self._by_unit(weights, self.scales, Tensor.abs)
            return self.strength * sums[self.free.to(sums.device)].sum().to(first.dtype)
        if self.kind == "soft":
            if done % self.epoch == 0:
                self._choose(weights)
                self._zero(weights)
            return first.new_zeros(())
        factor = self.strength * min(1.0, done / max(1, self.calls - 1))
        if self.kind == "growing" and done == 0:
            self._choose(weights)
        squares = self._by_unit(weights, self.made, Tensor.square)
        if self.kind == "growing":
            return factor / 2 * squares[self.going.to(squares.device)].sum().to(first.dtype)
        counts = self._by_unit(weights, self.made, torch.ones_like).detach()
        free = self.free.to(squares.device)
        # The slope of a root at zero is endless; what is zero stays there anyway.
        norms = (squares[free] + torch.finfo(squares.dtype).tiny).sqrt()
        return factor * (counts[free].sqrt() * norms).sum().to(first.dtype)

    def _by_unit(self, weights: Mapping[str, Tensor], slots: list[Slot], of: Callable[[Tensor], Tensor]) -> Tensor:
        """Sum a function of the weights over all that each unit has in some slots; (units,)."""
        total = None
        for name, dim in slots:
            weight = weights[name]
            rows = of(weight).sum([d for d in range(weight.dim()) if d != dim]) if weight.dim() > 1 else of(weight)
            units = torch.from_numpy(self.trace.slots[name, dim]).to(weight.device)
            total = rows.new_zeros(self.trace.units) if total is None else total
            total = total.index_add(0, units, rows)
        assert total is not None
        return total

    @torch.no_grad()
    def _choose(self, weights: Mapping[str, Tensor]) -> None:
        """Choose the units that are to go, by the norms of their filters against the mean of their group."""
        norms = self._by_unit(weights, self.filters, Tensor.square).double().sqrt().cpu()
        plan = self.planned(normalized(self.trace, norms, "mean"))
        self.going.copy_(gone_units(self.trace, plan))

    @torch.no_grad()
    def _zero(self, weights: Mapping[str, Tensor]) -> None:
        going = self.going.cpu()
        for name, dim in self.filters:
            rows = going[torch.from_numpy(self.trace.slots[name, dim])].nonzero().flatten()
            weights[name].index_fill_(dim, rows.to(weights[name].device), 0)


def gone_units(trace: Trace, plan: Plan) -> Tensor:
    """Which units a plan drops, bool (units,)."""
    gone = torch.zeros(trace.units, dtype=torch.bool)
    for key, slot in plan.slots.items():
        name, _, dim = key.rpartition(":")
        stays = torch.zeros(slot.of, dtype=torch.bool)
        stays[list(slot.kept)] = True
        gone[torch.from_numpy(trace.slots[name, int(dim)])[~stays]] = True
    return gone


def _produced(trace: Trace, fits: Callable[[tuple[int, ...]], bool]) -> list[Slot]:
    """The slots of parameters that make units of a free group."""
    return [
        slot
        for group in trace.groups
        for slot in group.slots
        if trace.roles[slot] == "producer" and slot[0] not in trace.buffers and fits(trace.parameters[slot[0]])
    ]
