"""Global sparse momentum over units instead of weights: what becomes next to nothing is a channel, and is cut whole.

Our own variant of GSM (Ding et al., 2019), not the paper's. A unit is a set of channels that live or die together
(``compress.prune.trace``). The first-order cost of its removal is
    T(u) = |sum over the parameters that produce u of dL/dW * W|
and only the Q units of the whole network with the largest T hear the loss in a step; what produces the others decays,
scales and biases of their norms too, so that their output fades. In the end they go with nothing to mend.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from compress.errors import ModelError
from compress.prune.planning import Plan, plan_from_kept
from compress.prune.units import Trace
from compress.sparse.masks import bare


class UnitGSM(Optimizer):
    """SGD whose loss gradient reaches the producers of the Q units that it says most of.

    One unit of each group always learns, so that no layer dies; protected units always do. Weights decay as in GSM,
    other parameters only while all they produce in a channel is passive. Ranks agree, as they do under GSM.

    Args:
        model: traced by ``trace``; its parameters are trained.
        trace: of this model.
        lr: alpha.
        keep: Q, of the free units.
        momentum: beta.
        weight_decay: eta.

    Raises:
        ModelError: Q is below the number of groups or above that of the free units.
    """

    def __init__(
        self, model: nn.Module, trace: Trace, lr: float, keep: int, momentum: float = 0.98, weight_decay: float = 5e-4
    ) -> None:
        free = sum(len(group.units) for group in trace.groups)
        if not len(trace.groups) <= keep <= free:
            raise ModelError(
                f"{keep} of {free} free units cannot be kept; ask for {len(trace.groups)}, one per group, to {free}."
            )
        named = dict(bare(model).named_parameters())
        super().__init__(named.items(), {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "keep": keep})
        self._produced = producers(named, trace)
        self._trace = trace
        self.active = torch.ones(trace.units, dtype=torch.bool)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take one step; returns the closure's loss. Afterwards ``active`` tells which units learned."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        costs = unit_costs(self._produced, self._trace.units)
        self.active = chosen(costs, self._trace, int(self.param_groups[0]["keep"]))
        passive = {}
        for p, dim, units in self._produced:
            if p.grad is not None:
                stays = self.active[units].to(p.device)
                along = [-1 if d == dim else 1 for d in range(p.dim())]
                p.grad.mul_(stays.view(along))
                passive[p] = (~stays).to(p.dtype).view(along)
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    self._update(p, group, passive.get(p))
        return loss

    def _update(self, p: Tensor, group: dict[str, Any], passive: Tensor | None) -> None:
        if "momentum_buffer" not in self.state[p]:
            self.state[p]["momentum_buffer"] = torch.zeros_like(p)
        buffer = self.state[p]["momentum_buffer"].mul_(group["momentum"]).add_(p.grad)
        if p.dim() > 1:
            buffer.add_(p, alpha=group["weight_decay"])
        elif passive is not None:
            buffer.add_(p * passive, alpha=group["weight_decay"])
        p.add_(buffer, alpha=-group["lr"])


def producers(named: dict[str, nn.Parameter], trace: Trace) -> list[tuple[nn.Parameter, int, Tensor]]:
    """Parameter, dimension and unit of each index, for every parameter that produces units."""
    return [
        (named[name], dim, torch.from_numpy(units))
        for (name, dim), units in trace.slots.items()
        if name in named and trace.roles[name, dim] == "producer"
    ]


def unit_costs(produced: list[tuple[nn.Parameter, int, Tensor]], count: int) -> Tensor:
    """T of each unit, float64 [units], from the gradients as they are."""
    total = torch.zeros(count, dtype=torch.float64)
    for p, dim, units in produced:
        if p.grad is not None:
            product = (
                (p.grad * p.detach()).movedim(dim, 0).flatten(1) if p.dim() > 1 else (p.grad * p.detach())[:, None]
            )
            total.index_add_(0, units, product.double().sum(1).cpu())
    return total.abs()


def chosen(costs: Tensor, trace: Trace, keep: int) -> Tensor:
    """Booleans [units]: the protected ones, the best of each group, and the best of all to make ``keep`` free ones."""
    active = torch.from_numpy(trace.protected_units.copy())
    free = torch.from_numpy(np.concatenate([group.units for group in trace.groups]))
    for group in trace.groups:
        units = torch.from_numpy(group.units)
        active[units[costs[units].argmax()]] = True
    left = free[~active[free]]
    order = costs[left].sort(descending=True, stable=True).indices
    active[left[order[: keep - len(trace.groups)]]] = True
    return active


def plan_of_largest(model: nn.Module, trace: Trace, keep: int) -> Plan:
    """The plan that keeps the ``keep`` free units whose producers are largest, one a group at least.

    ``compress.prune.apply`` cuts by it; what goes has faded, so nothing needs to be trained afterwards.
    """
    size = torch.zeros(trace.units, dtype=torch.float64)
    for p, dim, units in producers(dict(bare(model).named_parameters()), trace):
        square = p.detach().double().square()
        size.index_add_(0, units, (square.movedim(dim, 0).flatten(1).sum(1) if p.dim() > 1 else square).cpu())
    kept = chosen(size, trace, keep).numpy()
    return plan_from_kept(trace, kept, asked={"criterion": "unit_gsm", "keep": keep})
