"""Lottery tickets (Frankle and Carbin, ICLR 2019): a sparse network trained from the weights it was born with."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from compress.errors import ModelError
from compress.sparse.magnitude import by_pattern, largest_first
from compress.sparse.masks import Layers, Masks, Train, weights_of


def find_ticket(
    model: nn.Module,
    state: Mapping[str, Tensor],
    train: Train,
    rates: float | Mapping[str, float],
    rounds: int,
    layers: Layers = "all",
) -> Masks:
    """Train, cut the smallest of what is left of each layer, go back to ``state``; again and again.

    Args:
        model: rewound and masked in the end, ready to be trained once more.
        state: where it goes back to: as it was drawn, or, for rewinding, after some steps of training.
        train: trains it, keeping what it is given, for phases ``round 0``, ``round 1``, ...
        rates: share of a layer's survivors that goes each round; LeNet-300 has 0.2, its classifier 0.1.
        rounds: how often.
        layers: which kinds.

    Returns:
        The ticket.

    Raises:
        ModelError: no round, or a rate outside 0 to 1.
    """
    if rounds < 1:
        raise ModelError(f"A ticket was to be found in {rounds} rounds; give at least one.")
    masks: Masks | None = None
    rewind(model, state)
    for number in range(rounds):
        train(model, masks.hold if masks is not None else None, f"round {number}")
        masks = fewer(model, masks, rates, layers)
        rewind(model, state, masks)
    assert masks is not None
    return masks


def fewer(model: nn.Module, masks: Masks | None, rates: float | Mapping[str, float], layers: Layers = "all") -> Masks:
    """Drop a share of each layer's survivors, the smallest |w| first; a layer without a rate stays as it is."""
    weights = weights_of(model, layers)
    kept = dict(masks.kept) if masks is not None else {}
    for name, rate in by_pattern(weights, rates).items():
        if not 0 <= rate <= 1:
            raise ModelError(f"{rate} of '{name}' cannot go each round; give a share from 0 to 1.")
        size = weights[name].detach().abs().flatten()
        alive = kept[name].flatten() if name in kept else size >= 0
        # What went before is below everything, so it is never taken again.
        order = size.masked_fill(~alive.to(size.device), -1)
        kept[name] = largest_first(order, round((1 - rate) * int(alive.sum()))).view_as(weights[name])
    return Masks(kept)


def rewind(model: nn.Module, state: Mapping[str, Tensor], masks: Masks | None = None) -> None:
    """Load a state from before, and mask it; make the optimizer anew afterwards, or its momentum is of another past."""
    model.load_state_dict(state)
    if masks is not None:
        masks.apply_(model)


def redraw(model: nn.Module, masks: Masks, seed: int) -> None:
    """Draw a network anew under the same masks, which "Rethinking" (Liu et al., 2019) trains in place of the ticket.

    Weights that stay are drawn from a normal distribution of variance 2 / n, n the mean number of them that an output
    has; all else is drawn as its layer does.

    Args:
        model: changed; it obeys the masks afterwards.
        masks: which weights stay.
        seed: of what is drawn.
    """
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        for module in model.modules():
            if callable(reset := getattr(module, "reset_parameters", None)):
                reset()
        for name, weight in weights_of(model).items():
            if name in masks.kept:
                alive = int(masks.kept[name].sum()) / len(weight)
                weight.normal_(0, (2 / max(alive, 1.0)) ** 0.5)
    masks.apply_(model)
