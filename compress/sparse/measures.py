"""What tells whether training has made a network sparse: survivors, the gap at Q, reactivation, what the cut costs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from compress.errors import ModelError
from compress.sparse.masks import Masks, weights_of

ALIVE = 0.01
"""A weight survives that is at least this share of the smallest kept one; what is below is next to nothing."""


@dataclass(frozen=True)
class Readiness:
    """How ready a network is to lose all but its ``keep`` largest weights.

    Attributes:
        keep: Q.
        survivors: weights that are not next to nothing; Q when training was long enough.
        gap: the largest dropped |w| by the smallest kept; 0 when all that goes is zero, 1 when nothing sets them apart.
        energy: share of the sum of squares that goes.
    """

    keep: int
    survivors: int
    gap: float
    energy: float


def readiness(parameters: Iterable[Tensor], keep: int) -> Readiness:
    """Look at all weights together, as the cut will.

    Raises:
        ModelError: ``keep`` is not between 1 and the number of weights.
    """
    size = torch.cat([p.detach().abs().flatten().double() for p in parameters]).sort(descending=True).values
    if not 1 <= keep <= len(size):
        raise ModelError(f"There are {len(size)} weights, of which {keep} cannot be kept; ask for 1 to {len(size)}.")
    least, rest = float(size[keep - 1]), size[keep:]
    whole = float(size.square().sum())
    return Readiness(
        keep,
        # Where even the kept ones are zero, only what is above zero survives.
        int((size >= ALIVE * least).sum()) if least > 0 else int((size > 0).sum()),
        float(rest[0]) / least if len(rest) and least > 0 else 0.0,
        float(rest.square().sum()) / whole if whole > 0 else 0.0,
    )


class Reactivation:
    """Count which weights were passive and became active again: what fixed masks cannot do.

    Shown the active weights now and then (each epoch, say), it says which share of those that were passive came back.
    """

    def __init__(self) -> None:
        self.shares: list[float] = []
        self._before: list[Tensor] = []

    def look(self, active: Sequence[Tensor]) -> None:
        """Compare with the look before; the first has nothing to compare with."""
        now = [mask.detach().clone() for mask in active]
        if self._before:
            back = sum(int((new & ~old).sum()) for old, new in zip(self._before, now, strict=True))
            self.shares.append(back / max(1, sum(int((~old).sum()) for old in self._before)))
        self._before = now

    def state_dict(self) -> dict[str, Tensor]:
        """What was seen so far, for a training that goes on later."""
        shares = torch.tensor(self.shares, dtype=torch.float64)
        return {"shares": shares, **{f"before.{k}": mask for k, mask in enumerate(self._before)}}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Go on from what ``state_dict`` gave."""
        self.shares = state["shares"].tolist()
        self._before = [state[f"before.{k}"].bool() for k in range(len(state) - 1)]


@dataclass(frozen=True)
class Approximation:
    """What the loss was said to change by when weights go, and what it changed by.

    Attributes:
        predicted: minus the sum of gradient times weight, the first-order term.
        actual: the loss without them minus the loss with them.
        relative: |predicted - actual| by |actual|; infinity where only the actual change is zero.
    """

    predicted: float
    actual: float
    relative: float


def approximation(
    model: nn.Module, masks: Masks, loss: Callable[[nn.Module], Tensor], names: Iterable[str] | None = None
) -> dict[str, Approximation]:
    """Hold the first-order estimate that GSM ranks by against the truth, one layer's dropped weights at a time.

    Args:
        model: evaluated as it is, unchanged afterwards.
        masks: what would stay.
        loss: the network's loss on some batch; must not change the network.
        names: layers; None for all that the masks name.

    Returns:
        Name -> both changes of the loss.
    """
    found: dict[str, Approximation] = {}
    triples = {name: (p, mask) for name, p, mask in masks.parameters(model)}
    chosen = list(names) if names is not None else list(triples)
    with torch.enable_grad():
        before = loss(model)
        gradients = torch.autograd.grad(before, [triples[name][0] for name in chosen])
    for name, gradient in zip(chosen, gradients, strict=True):
        p, mask = triples[name]
        predicted = -float((gradient * p.detach())[~mask].double().sum())
        own = p.detach().clone()
        with torch.no_grad():
            p.masked_fill_(~mask, 0)
            actual = float(loss(model)) - float(before.detach())
            p.copy_(own)
        wrong = abs(predicted - actual)
        found[name] = Approximation(
            predicted, actual, wrong / abs(actual) if actual else (0.0 if not wrong else float("inf"))
        )
    return found


def layers_dropped(masks: Masks) -> Mapping[str, float]:
    """Share of each layer that goes, most first: the sensitivity that GSM finds while it trains."""
    dropped = {name: 1 - share for name, share in masks.density().items()}
    return dict(sorted(dropped.items(), key=lambda item: -item[1]))


def layers_alone(model: nn.Module, density: float, loss: Callable[[nn.Module], Tensor]) -> dict[str, float]:
    """What the loss rises by when one layer alone keeps that share of its weights, the largest.

    The truth that a sensitivity of layers is held against, such as ``layers_dropped``.

    Args:
        model: evaluated as it is, unchanged afterwards.
        density: share that stays, above 0 and at most 1.
        loss: the network's loss on some batch; must not change the network.

    Raises:
        ModelError: another density.

    Returns:
        Name -> loss without the others of that layer, minus the loss of the whole.
    """
    if not 0 < density <= 1:
        raise ModelError(f"A density of {density:g} is impossible; give a share above 0 and at most 1.")
    found = {}
    with torch.no_grad():
        whole = float(loss(model))
        for name, weight in weights_of(model).items():
            own, size = weight.detach().clone(), weight.detach().abs().flatten()
            stays = torch.zeros_like(size, dtype=torch.bool)
            stays[size.topk(max(1, round(density * size.numel()))).indices] = True
            weight.masked_fill_(~stays.view_as(weight), 0)
            found[name] = float(loss(model)) - whole
            weight.copy_(own)
    return found
