"""What a criterion is, and what it is given."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn

from compress.prune.architecture import named_parameters
from compress.prune.calibration import CalibrationBatch, Copy, Forward, Loss, batches, default_loss, finite, run
from compress.prune.units import Trace

Needs = Literal["weights", "gradients", "activations"]
Normalization = Literal["none", "mean", "max", "cost"]


@dataclass(frozen=True)
class Given:
    """What a criterion scores by.

    Args:
        trace: the units.
        model: the network, which no criterion changes.
        seed: of everything random.
        data: batches, gone through once; None for criteria of weights.
        loss: from outputs and targets to the mean loss of a batch; None for `default_loss`.
        forward: how to run the network on a batch's inputs; None for `network(inputs)`.
        trial: only whether it can score is asked: a choice of one unit after the other ends with the first.
    """

    trace: Trace
    model: nn.Module
    seed: int = 0
    data: Iterable[Any] | None = None
    loss: Loss | None = None
    forward: Forward | None = None
    generator: torch.Generator = field(default_factory=torch.Generator)
    trial: bool = False

    @property
    def weights(self) -> dict[str, Tensor]:
        return named_parameters(self.model)

    def copy(self) -> Copy:
        return Copy.of(self.trace, self.model)

    def batches(self) -> Iterable[CalibrationBatch]:
        return batches(self.data)

    def run(self, network: nn.Module, batch: CalibrationBatch) -> Any:
        return run(network, batch, self.forward)

    def loss_of(self, network: nn.Module, batch: CalibrationBatch, number: int) -> Tensor:
        """The mean loss of one batch."""
        outputs = self.run(network, batch)
        if self.loss is None:
            return finite(default_loss(outputs, batch.targets, self.generator), number)
        return finite(self.loss(outputs, batch.targets), number)

    def zeros(self) -> Tensor:
        """float64 (units,)."""
        return torch.zeros(self.trace.units, dtype=torch.float64)


@dataclass(frozen=True)
class Criterion:
    """How much worse the network would be without a unit.

    Args:
        function: from what is given to one score a unit, float64, higher stays.
        needs: what it looks at; all but `weights` need data.
        paper: where it was published.
        cost: what it takes, in passes over the data.
        normalize: what makes its scores comparable from group to group: `none` for those in units of the loss.
    """

    function: Callable[[Given], Tensor]
    needs: Needs
    paper: str
    cost: str
    normalize: Normalization = "mean"


def normalized(trace: Trace, scores: Tensor, how: Normalization) -> Tensor:
    """Scores that compare from group to group.

    Args:
        trace: the units and their groups.
        scores: one per unit, shape (units,).
        how: `none` as they are; `mean` and `max` divided by the group's mean or largest; `cost` divided by the
            unit's share of the network's MACs.

    Returns:
        float64 (units,); units of no group as they were.
    """
    scores = scores.detach().double().clone()
    if how == "cost":
        macs = torch.from_numpy(trace.unit_macs())
        return scores / (macs / macs.max().clamp_min(1e-30)).clamp_min(1e-12)
    if how == "none":
        return scores
    for group in trace.groups:
        units = torch.from_numpy(group.units)
        own = scores[units]
        scores[units] = own / (float(own.mean() if how == "mean" else own.abs().max()) or 1.0)
    return scores


def by_unit(trace: Trace, values: Mapping[tuple[str, int], Tensor]) -> Tensor:
    """Sums of what each index of some slots has to say, gathered by unit; float64 (units,)."""
    total = torch.zeros(trace.units, dtype=torch.float64)
    for slot, value in values.items():
        total.index_add_(0, torch.from_numpy(trace.slots[slot]), value.detach().double().cpu())
    return total


def over(tensor: Tensor, dim: int) -> Tensor:
    """Sums over all dimensions but one."""
    rest = [d for d in range(tensor.dim()) if d != dim]
    return tensor.sum(rest) if rest else tensor
